"""Running programs: quietly, and with what they said when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from dev.cluster.console import Lacking, step


SEARCH_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs are looked for: a user's PATH may lack the system's."""


class CommandFailed(Exception):
    """A program ended with an error; the message holds its last lines."""


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> str:
    """Return what the program printed on standard output.

    Raises:
        CommandFailed: it ended with an error, or there is no such program.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise CommandFailed(f"{words[0]}: {error}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CommandFailed(f"{' '.join(words)[:300]} ended with {done.returncode}:\n{said}")
    return done.stdout


def succeeds(*command: str | Path, env: dict[str, str] | None = None) -> bool:
    """Say whether the program ends well."""
    try:
        run(*command, env=env)
    except CommandFailed:
        return False
    return True


def wait(what: str, until: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds.

    Raises:
        CommandFailed: it did not within the time.
    """
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise CommandFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def packages(*programs_and_packages: tuple[str, str]) -> None:
    """Install the Debian packages whose (program or file, package) is missing.

    Raises:
        Lacking: this is no Debian, or not root.
    """
    missing = sorted({package for program, package in programs_and_packages if not _present(program)})
    if not missing:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Lacking(
            f"missing here: {', '.join(missing)}. Install them, or run as root on Debian or Ubuntu."
        )
    with step(f"install {', '.join(missing)}"):
        install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        if not succeeds(*install, env=quiet):
            run("apt-get", "update", "-qq", env=quiet)
            run(*install, env=quiet)


def _present(program: str) -> bool:
    return Path(program).exists() if "/" in program else shutil.which(program, path=SEARCH_PATH) is not None
