"""The Docker engine: the machine's own, or Debian's started by hand where none runs.

By hand it needs two things on machines whose root lacks CAP_SYS_RESOURCE (sandboxes): a runtime that does not ask for
that capability, and an unchanged OOM score. It gets a containerd of its own, since by itself it would join whatever
answers at the default socket.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from dev.cluster.cache import ROOT, lock
from dev.cluster.console import Lacking, step
from dev.cluster.run import CommandFailed, packages, run, succeeds, wait

STATE = ROOT / "engine"
SOCKET = Path("/var/run/docker.sock")
CAP_SYS_RESOURCE = 24

_CONTAINERD = """version = 2
root = "{state}/containerd"
state = "{state}/containerd-run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{state}/containerd.sock"
"""


def up() -> None:
    """Have a Docker engine that answers.

    Raises:
        Lacking: there is none, and none can be started here.
    """
    if _answers():
        return
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Lacking(
            "no Docker engine answers. Start Docker (Docker Desktop, or `sudo systemctl start docker`)."
        )
    packages(
        ("dockerd", "docker.io"), ("containerd", "containerd"), ("runc", "runc"), ("docker", "docker.io")
    )
    with lock("engine"), step("start the Docker engine"):
        if not _answers():
            down()
            _start()


def down() -> None:
    """Stop the engine that `up` started, and remove its mounts; another's engine is left alone."""
    for name in ("dockerd", "containerd"):
        _stop(name)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{STATE}/")), reverse=True):
        succeeds("umount", "--lazy", mount)


def started_by_us() -> bool:
    """Say whether the engine that runs is the one that `up` started."""
    return _pid("dockerd") is not None


def _answers() -> bool:
    return shutil.which("docker") is not None and succeeds("docker", "version")


def _start() -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    for stale in (SOCKET, STATE / "docker.pid", STATE / "containerd.sock"):
        stale.unlink(missing_ok=True)
    (STATE / "containerd.toml").write_text(_CONTAINERD.format(state=STATE))
    _spawn("containerd", "-c", STATE / "containerd.toml")
    wait("containerd", (STATE / "containerd.sock").exists)
    _spawn(
        "dockerd", f"--data-root={STATE}/data", f"--exec-root={STATE}/exec", f"--pidfile={STATE}/docker.pid",
        f"--host=unix://{SOCKET}", f"--containerd={STATE}/containerd.sock", "--storage-driver=overlay2",
        "--oom-score-adjust=0", *_runtime(),
    )  # fmt: skip
    try:
        wait("the Docker engine", _answers)
    except CommandFailed as error:
        log = "\n".join((STATE / "dockerd.log").read_text().splitlines()[-8:])
        raise Lacking(f"Docker does not start here:\n{log}") from error


def _runtime() -> list[str]:
    """Privileged containers (kind's nodes) ask for every capability; a root without one can't give it."""
    bounding = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    if int(bounding.split()[1], 16) & (1 << CAP_SYS_RESOURCE):
        return []
    wrapper = STATE / "runc-within-limits"
    wrapper.write_text(
        f"#!{sys.executable}\n" + Path(__file__).with_name("runc_within_limits.py").read_text()
    )
    wrapper.chmod(0o755)
    return [f"--add-runtime=within-limits={wrapper}", "--default-runtime=within-limits"]


def _spawn(program: str, *arguments: str | Path) -> None:
    executable = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    with (STATE / f"{program}.log").open("w") as log:
        process = subprocess.Popen(
            [str(executable), *map(str, arguments)], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    (STATE / f"{program}.pid").write_text(str(process.pid))


def _pid(name: str) -> int | None:
    """Return the pid of a process of ours that lives; a pid file may be stale and its number another's now."""
    try:
        pid = int((STATE / f"{name}.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(STATE).encode() in command else None


def _stop(name: str) -> None:
    pid = _pid(name)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    try:
        wait(f"the end of {name}", lambda: _pid(name) is None, 20)
    except CommandFailed:
        os.kill(pid, signal.SIGKILL)
        wait(f"the end of {name}", lambda: _pid(name) is None, 10)


def image_id(name: str) -> str | None:
    """Return the id of an image that the engine has."""
    try:
        return run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip()
    except CommandFailed:
        return None
