"""Debian's Docker engine started by hand, where none runs: in containers and sandboxes without systemd.

It needs care where root lacks CAP_SYS_RESOURCE: a runtime that does not ask for it, and an unchanged OOM
score. It gets a containerd of its own, since by itself it would join whatever answers at the default socket.
What it changes on the machine (processes, mounts, bridges, firewall rules) is undone by `down`, also after a
crash.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dev.cluster import engine, processes
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import LackingError, step
from dev.cluster.run import CommandError, found, packages, run, succeeds, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = ROOT / "engine"
SOCKET = Path("/var/run/docker.sock")
CAP_SYS_RESOURCE = 24
BRIDGE = r"docker0|br-[0-9a-f]{12}"

_CONTAINERD = """version = 2
root = "{state}/containerd"
state = "{state}/containerd-run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{state}/containerd.sock"
"""


def up() -> None:
    """Have a Docker engine that answers: the machine's, or ours.

    Raises:
        LackingError: there is none, and none can be started here.
    """
    if engine.answers():
        return
    _check_that_we_may()
    packages(
        ("dockerd", "docker.io"), ("docker", "docker.io"), ("containerd", "containerd"), ("runc", "runc"),
        ("iptables", "iptables"), ("ip", "iproute2"),
    )  # fmt: skip
    with lock("engine"), step("start the Docker engine"):
        if not engine.answers():
            _check_that_we_may()
            down()
            _start()


def down() -> None:
    """Stop the engine that `up` started, with its containers, mounts and bridges; another's is left alone."""
    if not STATE.exists():
        return
    processes.stop(STATE, "dockerd")
    processes.kill(_orphans())
    processes.kill(processes.running(STATE, "containerd-shim"))
    processes.stop(STATE, "containerd")
    _unmount()
    if not _others():
        _remove_network()


def is_ours() -> bool:
    """Say whether an engine of ours runs, or left traces of a run that was killed."""
    return bool(processes.running(STATE, "dockerd") or processes.running(STATE, "containerd") or _mounts())


def _check_that_we_may() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise LackingError(
            f"no Docker engine answers ({engine.complaint()}). Start Docker (Docker Desktop; "
            "`sudo systemctl start docker`), and see that you may use it (`sudo usermod -aG docker $USER`, "
            "then log in again)."
        )
    if os.environ.get("DOCKER_HOST"):
        raise LackingError(f"the Docker engine at DOCKER_HOST={os.environ['DOCKER_HOST']} does not answer.")
    if other := _others():
        raise LackingError(f"a Docker engine runs (process {other[0].pid}) but does not answer. Restart it.")
    if found("dockerd") and Path("/run/systemd/system").exists():
        raise LackingError("the Docker engine does not run. Start it: `systemctl start docker`.")
    STATE.mkdir(parents=True, exist_ok=True)
    kind = run("stat", "--file-system", "--format=%T", STATE).strip()
    if kind in {"overlayfs", "tmpfs", "nfs"}:
        raise LackingError(
            f"Docker's overlay file system can't lie in {STATE}, which is on {kind}: "
            "set XDG_CACHE_HOME to a folder on a disk (ext4, xfs)."
        )


def _others() -> list[psutil.Process]:
    """Return the Docker engines that are not ours."""
    ours = {process.pid for process in processes.running(STATE, "dockerd")}
    return [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "dockerd" and process.pid not in ours and _in_our_network(process)
    ]


def _in_our_network(process: psutil.Process) -> bool:
    """Tell apart an engine inside a container, whose processes the machine sees as well."""
    try:
        return Path(f"/proc/{process.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def _start() -> None:
    for stale in (SOCKET, STATE / "docker.pid", STATE / "containerd.sock"):
        stale.unlink(missing_ok=True)
    (STATE / "forward-policy").write_text(run("iptables", "-S", "FORWARD").split()[2])
    (STATE / "containerd.toml").write_text(_CONTAINERD.format(state=STATE))
    processes.start(STATE, "containerd", "containerd", "--config", f"{STATE}/containerd.toml")
    wait("containerd", (STATE / "containerd.sock").exists)
    dockerd = processes.start(
        STATE, "dockerd", "dockerd", f"--data-root={STATE}/data", f"--exec-root={STATE}/exec",
        f"--pidfile={STATE}/docker.pid", f"--host=unix://{SOCKET}", f"--containerd={STATE}/containerd.sock",
        "--storage-driver=overlay2", "--oom-score-adjust=0", *_runtime(),
    )  # fmt: skip
    try:
        wait("the Docker engine", lambda: engine.answers() or not processes.alive(dockerd))
        run("docker", "version")
    except CommandError as error:
        raise LackingError(f"Docker does not start here:\n{processes.log_tail(STATE, 'dockerd')}") from error


def _runtime() -> list[str]:
    """Privileged containers (kind's nodes) ask for every capability; a root without one can't give it."""
    bounding = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    if int(bounding.split()[1], 16) & (1 << CAP_SYS_RESOURCE):
        return []
    wrapper = STATE / "runc-within-limits"
    python = Path(sys.executable).resolve()  # not the virtual environment's: that one comes and goes
    program = Path(__file__).with_name("runc_within_limits.py").read_text()
    wrapper.write_text(f"#!{python} -IS\n{program}")
    wrapper.chmod(0o755)
    return [f"--add-runtime=within-limits={wrapper}", "--default-runtime=within-limits"]


def _orphans() -> Iterator[psutil.Process]:
    """Yield the processes of our containers: a killed engine leaves them."""
    folder = STATE / "data/containers"
    ids = [container.name for container in folder.iterdir()] if folder.exists() else []
    for process in psutil.process_iter():
        try:
            groups = Path(f"/proc/{process.pid}/cgroup").read_text()
        except OSError:
            continue
        if any(f"/docker/{identity}" in groups for identity in ids):
            yield process


def _mounts() -> list[str]:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((mount for mount in mounted if mount.startswith(f"{STATE}/")), reverse=True)


def _unmount() -> None:
    for mount in _mounts():
        succeeds("umount", "--lazy", mount)


def _remove_network() -> None:
    """Remove the bridges and firewall rules of an engine that is gone."""
    for link in json.loads(run("ip", "-json", "link", "show", "type", "bridge") or "[]"):
        if re.fullmatch(BRIDGE, link.get("ifname", "")):
            succeeds("ip", "link", "delete", link["ifname"])
    for table in ("nat", "filter"):
        rules = run("iptables-save", "--table", table)
        kept = without_dockers_rules(rules)
        if kept != rules:
            run("iptables-restore", "--table", table, stdin=kept)
    policy = STATE / "forward-policy"
    if policy.exists():
        succeeds("iptables", "--policy", "FORWARD", policy.read_text())
        policy.unlink()


def without_dockers_rules(saved: str) -> str:
    """Return what `iptables-save` printed, less Docker's chains and rules."""
    lines = saved.splitlines(keepends=True)
    return "".join(line for line in lines if not re.search(rf"DOCKER|(?<![\w-])({BRIDGE})(?![\w-])", line))
