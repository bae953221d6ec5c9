"""Root file systems of Debian packages, where no base image can be pulled."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dev.cluster.cache import cached, digest
from dev.cluster.console import step
from dev.cluster.run import packages, run

SLIM = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"]


def root_tar(
    name: str, suite: str, include: list[str], variant: str = "minbase", hooks: tuple[str, ...] = ()
) -> Path:
    """Return a tar file of a Debian root file system with the packages, made once.

    Args:
        hooks: shell lines run at the end on the host, with the root's path in "$1".
    """

    def make(path: Path) -> None:
        packages(("mmdebstrap", "mmdebstrap"))
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in SLIM]
        options += [f"--customize-hook={hook}" for hook in hooks]
        with step(f"assemble {name} from Debian {suite}"), tempfile.TemporaryDirectory() as scratch:
            run("mmdebstrap", f"--variant={variant}", "--mode=root", f"--include={','.join(include)}", *options,
                "--aptopt=Acquire::Languages none", suite, path, env={"TMPDIR": scratch})  # fmt: skip

    return cached(f"roots/{name}-{digest(suite, variant, *include, *hooks)}.tar", make)
