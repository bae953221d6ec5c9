"""Runs programs and waits for conditions. Output is shown only when a program fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEARCH_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
"""PATH with the system's folders, which a user's PATH may lack."""


class CommandError(Exception):
    """A program failed; the message contains its last lines of output."""


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> str:
    """Run a program and return its standard output.

    Raises:
        CommandError: the program failed or doesn't exist.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, "PATH": SEARCH_PATH, **(env or {})}
    try:
        done = subprocess.run(
            words, env=environment, cwd=cwd, input=stdin, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CommandError(f"{words[0]}: {error}") from error
    if done.returncode:
        output = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CommandError(f"{' '.join(words)[:300]} exited with code {done.returncode}:\n{output}")
    return done.stdout


def succeeds(*command: str | Path, env: dict[str, str] | None = None) -> bool:
    """Run a program; return whether it succeeded."""
    try:
        run(*command, env=env)
    except CommandError:
        return False
    return True


def pipe(source: list[str], sink: list[str]) -> None:
    """Run two programs, the first one's output as the second one's input.

    Raises:
        CommandError: one of them failed.
    """
    environment = {**os.environ, "PATH": SEARCH_PATH}
    with subprocess.Popen(
        source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False, env=environment
    ) as first:
        second = subprocess.run(sink, stdin=first.stdout, capture_output=True, check=False, env=environment)
        errors = first.communicate()[1]
    if first.returncode or second.returncode:
        output = (errors + second.stderr + second.stdout).decode(errors="replace").splitlines()[-25:]
        raise CommandError(f"{' '.join(source)} | {' '.join(sink)} failed:\n" + "\n".join(output))


def wait(what: str, until: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until a condition is true.

    Raises:
        CommandError: it was not true in time.
    """
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise CommandError(f"timed out after {seconds:.0f} s waiting for {what}")
        time.sleep(0.1)


def found(name: str) -> str | None:
    """Return the path of a program on this machine."""
    return shutil.which(name, path=SEARCH_PATH)
