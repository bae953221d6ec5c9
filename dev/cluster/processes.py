"""Background processes that outlive this one, found by their command line since PID files go stale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dev.cluster.run import SEARCH_PATH, CommandError, found

if TYPE_CHECKING:
    from collections.abc import Iterable


def start(folder: Path, name: str, program: str | Path, *arguments: str) -> psutil.Process:
    """Start a program in its own session, with its output in FOLDER/NAME.log.

    One of the arguments must contain the folder's path, so that `running` finds the process. Its command line
    can be read only a moment after the start: to wait for it, check the returned process with `alive`.
    """
    executable = found(str(program))
    if executable is None:
        raise CommandError(f"{program} not found on this machine")
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        streams = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        environment = {**os.environ, "PATH": SEARCH_PATH}
        pid = os.posix_spawn(
            executable, [executable, *arguments], environment, file_actions=[null, *streams], setsid=True
        )
    finally:
        os.close(log)
    return psutil.Process(pid)


def alive(process: psutil.Process) -> bool:
    """Return whether a process is running. An exited child, which stays a zombie, is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(folder: Path, name: str) -> list[psutil.Process]:
    """Return the processes whose program's name starts with `name` and whose arguments contain the folder."""
    matching = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"]
        if not command or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if Path(command[0]).name.startswith(name) and any(f"{folder}/" in word for word in command[1:]):
            matching.append(process)
    return matching


def stop(folder: Path, *names: str, patience: float = 20) -> None:
    """Terminate the folder's processes, one program after another, and wait until they have exited."""
    for name in names:
        processes = running(folder, name)
        for process in processes:
            process.terminate()
        _, stubborn = psutil.wait_procs(processes, timeout=patience)
        kill(stubborn)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes and wait until they have exited."""
    killed = list(processes)
    for process in killed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(killed, timeout=10)


def log_tail(folder: Path, name: str, lines: int = 8) -> str:
    """Return the last lines of a program's log."""
    path = folder / f"{name}.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"
