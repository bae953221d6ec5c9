"""Debian packages: root file systems of images made from them, and their installation on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dev.cluster.cache import ROOT, cached, digest, lock
from dev.cluster.console import RequirementError, step
from dev.cluster.run import found, run, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXCLUDED = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"]
"""Left out, as in the public slim images."""


def root_tar(name: str, suite: str, include: list[str]) -> Path:
    """Return a tar file of a Debian root file system with the packages, made on first use."""

    def make(path: Path) -> None:
        install_packages(
            ("mmdebstrap", "mmdebstrap"),
            ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
        )
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
        with step(f"assemble {name} from Debian {suite}"), tempfile.TemporaryDirectory() as scratch:
            run(
                "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(include)}", *options,
                "--aptopt=Acquire::Languages none", suite, path, env={"TMPDIR": scratch},
            )  # fmt: skip

    return cached(f"roots/{name}-{digest(suite, *include)}.tar", make)


@contextmanager
def build_context(recipe: Path, archives: Mapping[str, Path]) -> Iterator[Path]:
    """Create a build context: the recipe's files, and archives of the cache, hard-linked by these names."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        context = Path(folder)
        shutil.copytree(recipe, context, dirs_exist_ok=True)
        for name, archive in archives.items():
            (context / name).hardlink_to(archive)
        yield context


def install_packages(*programs_and_packages: tuple[str, str]) -> None:
    """Install the packages whose program (a name or a path) is missing from this machine.

    Raises:
        RequirementError: the machine isn't Debian or Ubuntu, or the user isn't root.
    """
    packages = _missing(programs_and_packages)
    if not packages:
        return
    if not found("apt-get") or os.geteuid() != 0:
        raise RequirementError(
            f"These packages are missing: {', '.join(packages)}. "
            "Install them, or run as root on Debian or Ubuntu to have them installed."
        )
    with lock("apt"):
        packages = _missing(programs_and_packages)  # another process or thread may have installed them
        if not packages:
            return
        with step(f"install {', '.join(packages)}"):
            install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            if not succeeds(*install, env=quiet):
                run("apt-get", "update", "-qq", env=quiet)
                run(*install, env=quiet)


def _missing(programs_and_packages: Iterable[tuple[str, str]]) -> list[str]:
    return sorted(
        {
            package
            for program, package in programs_and_packages
            if not (Path(program).exists() if "/" in program else found(program))
        }
    )
