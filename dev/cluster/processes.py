"""Background processes that outlive us, found again by what they run: no pid file that could be stale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dev.cluster.run import SEARCH_PATH, CommandError, found

if TYPE_CHECKING:
    from collections.abc import Iterable


def start(folder: Path, name: str, program: str | Path, *arguments: str) -> psutil.Process:
    """Start a program in a session of its own, with its output in FOLDER/NAME.log.

    One of the arguments must name the folder: by it the process is found again. Not at once, though: the
    kernel lets us go on a moment before the new program's command line can be read. Whoever waits for the
    program's start asks the process returned (`alive`).
    """
    executable = found(str(program))
    if executable is None:
        raise CommandError(f"no program {program} on this machine")
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
    """Say whether a process still runs: a child of ours that ended stays a zombie until we end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(folder: Path, name: str) -> list[psutil.Process]:
    """Return the processes of a program, built by us under a name that begins so, that work on the folder."""
    matching = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"]
        if not command or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if Path(command[0]).name.startswith(name) and any(f"{folder}/" in word for word in command[1:]):
            matching.append(process)
    return matching


def stop(folder: Path, *names: str, patience: float = 20) -> None:
    """End these programs' processes on the folder, one program after another, and wait until each is gone."""
    for name in names:
        processes = running(folder, name)
        for process in processes:
            process.terminate()
        _, stubborn = psutil.wait_procs(processes, timeout=patience)
        kill(stubborn)


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes without asking them, and wait until they are gone."""
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
