"""Runs Debian's Docker engine where no engine runs: in containers and sandboxes without systemd.

Where root lacks CAP_SYS_RESOURCE, the engine needs a runtime that does not request it, and an unchanged OOM
score. It has a containerd of its own; otherwise it would use any that listens on the default socket.
`down` undoes every change to the machine (processes, mounts, bridges, firewall rules), even after a crash.
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
from dev.cluster.bare.debian import install_packages
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import RequirementError, step
from dev.cluster.run import CommandError, found, run, succeeds, wait

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
    """Start a Docker engine unless one is running.

    Raises:
        RequirementError: no engine is running, and this machine can't start one.
    """
    if engine.answers():
        return
    with lock("engine"):
        if engine.answers():
            return
        _check_requirements()
        install_packages(
            ("dockerd", "docker.io"), ("docker", "docker.io"), ("containerd", "containerd"), ("runc", "runc"),
            ("iptables", "iptables"), ("ip", "iproute2"),
        )  # fmt: skip
        with step("start the Docker engine"):
            if not engine.answers():  # where systemd runs, it starts the engine that was installed
                _check_requirements()
                down()
                _start()


def down() -> None:
    """Stop the engine that `up` started, with its containers, mounts and bridges; leave others alone."""
    if not STATE.exists():
        return
    processes.stop(STATE, "dockerd")
    processes.kill(_container_processes())
    processes.kill(processes.running(STATE, "containerd-shim"))
    processes.stop(STATE, "containerd")
    for mount in _mounts():
        succeeds("umount", "--lazy", mount)
    if not _others():
        _remove_network()


def is_ours() -> bool:
    """Return whether an engine started by `up` is running, or was killed and left mounts behind."""
    return bool(processes.running(STATE, "dockerd") or processes.running(STATE, "containerd") or _mounts())


def _check_requirements() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise RequirementError(
            f"Can't connect to Docker ({engine.error_message()}). Start Docker Desktop or run "
            "`sudo systemctl start docker`, and make sure that you have access "
            "(`sudo usermod -aG docker $USER`, then log in again)."
        )
    if os.environ.get("DOCKER_HOST"):
        raise RequirementError(
            f"The Docker engine at DOCKER_HOST={os.environ['DOCKER_HOST']} does not respond."
        )
    if other := _others():
        raise RequirementError(
            f"A Docker engine is running (process {other[0].pid}) but does not respond. Restart it."
        )
    if found("dockerd") and Path("/run/systemd/system").exists():
        raise RequirementError("The Docker engine is not running. Start it with `systemctl start docker`.")
    STATE.mkdir(parents=True, exist_ok=True)
    file_system = run("stat", "--file-system", "--format=%T", STATE).strip()
    if file_system in {"overlayfs", "tmpfs", "nfs"}:
        raise RequirementError(
            f"Docker's overlay storage doesn't work on {file_system}, the file system of {STATE}. "
            "Set XDG_CACHE_HOME to a folder on ext4 or xfs."
        )


def _others() -> list[psutil.Process]:
    """Return the running Docker engines that `up` did not start."""
    ours = {process.pid for process in processes.running(STATE, "dockerd")}
    return [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "dockerd" and process.pid not in ours and _shares_our_network(process)
    ]


def _shares_our_network(process: psutil.Process) -> bool:
    """Exclude engines inside containers: their processes are visible from here too."""
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
        raise RequirementError(
            f"Docker does not start on this machine:\n{processes.log_tail(STATE, 'dockerd')}"
        ) from error


def _runtime() -> list[str]:
    """Return options for a runtime that works without a capability that privileged containers request."""
    bounding = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    if int(bounding.split()[1], 16) & (1 << CAP_SYS_RESOURCE):
        return []
    wrapper = STATE / "runc-within-limits"
    python = Path(sys.executable).resolve()  # the virtual environment may be removed while the engine runs
    program = Path(__file__).with_name("runc_within_limits.py").read_text()
    wrapper.write_text(f"#!{python} -IS\n{program}")
    wrapper.chmod(0o755)
    return [f"--add-runtime=within-limits={wrapper}", "--default-runtime=within-limits"]


def _container_processes() -> Iterator[psutil.Process]:
    """Yield the processes of our containers, which a killed engine leaves running."""
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


def _remove_network() -> None:
    """Remove the bridges and firewall rules that the stopped engine left."""
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
    """Return the output of `iptables-save` without Docker's chains and rules."""
    lines = saved.splitlines(keepends=True)
    return "".join(line for line in lines if not re.search(rf"DOCKER|(?<![\w-])({BRIDGE})(?![\w-])", line))
