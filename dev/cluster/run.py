"""Running programs: quietly, and with what they said when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dev.cluster.cache import lock
from dev.cluster.console import LackingError, step

if TYPE_CHECKING:
    from collections.abc import Callable

SEARCH_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs are looked for: a user's PATH may lack the system's."""


class CommandError(Exception):
    """A program ended with an error; the message holds its last lines."""


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> str:
    """Return what the program printed on standard output.

    Raises:
        CommandError: it ended with an error, or there is no such program.
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
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CommandError(f"{' '.join(words)[:300]} ended with {done.returncode}:\n{said}")
    return done.stdout


def succeeds(*command: str | Path, env: dict[str, str] | None = None) -> bool:
    """Say whether the program ends well."""
    try:
        run(*command, env=env)
    except CommandError:
        return False
    return True


def pipe(source: list[str], sink: list[str]) -> None:
    """Run a program with another's output as its input.

    Raises:
        CommandError: one of them ended with an error.
    """
    environment = {**os.environ, "PATH": SEARCH_PATH}
    with subprocess.Popen(
        source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False, env=environment
    ) as giver:
        taken = subprocess.run(sink, stdin=giver.stdout, capture_output=True, check=False, env=environment)
        said = giver.communicate()[1]
    if giver.returncode or taken.returncode:
        words = (said + taken.stderr + taken.stdout).decode(errors="replace").splitlines()[-25:]
        raise CommandError(f"{' '.join(source)} | {' '.join(sink)}:\n" + "\n".join(words))


def wait(what: str, until: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds.

    Raises:
        CommandError: it did not within the time.
    """
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise CommandError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def found(name: str) -> str | None:
    """Return the path of a program of the machine."""
    return shutil.which(name, path=SEARCH_PATH)


def packages(*programs_and_packages: tuple[str, str]) -> None:
    """Install the Debian packages whose (program or file, package) is missing.

    Raises:
        LackingError: this is no Debian, or not root.
    """
    missing = sorted({package for program, package in programs_and_packages if not _present(program)})
    if not missing:
        return
    if not found("apt-get") or os.geteuid() != 0:
        raise LackingError(
            f"missing here: {', '.join(missing)}. Install them, or run as root on Debian or Ubuntu."
        )
    with lock("apt"), step(f"install {', '.join(missing)}"):
        install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        if not succeeds(*install, env=quiet):
            run("apt-get", "update", "-qq", env=quiet)
            run(*install, env=quiet)


def _present(program: str) -> bool:
    return Path(program).exists() if "/" in program else found(program) is not None
