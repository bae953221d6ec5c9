"""Root file systems and images of Debian packages, where no public image can be pulled."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dev.cluster.cache import cached, digest
from dev.cluster.console import step
from dev.cluster.run import packages, run

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREAD = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"]
"""Left out, as in the public slim images."""


def root_tar(name: str, suite: str, include: list[str], hooks: tuple[str, ...] = ()) -> Path:
    """Return a tar file of a Debian root file system with the packages, made once.

    Args:
        hooks: shell lines run at the end on the host, with the root's path in "$1".
    """

    def make(path: Path) -> None:
        packages(
            ("mmdebstrap", "mmdebstrap"),
            ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
        )
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNREAD]
        options += [f"--customize-hook={hook}" for hook in hooks]
        with step(f"assemble {name} from Debian {suite}"), tempfile.TemporaryDirectory() as scratch:
            run(
                "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(include)}", *options,
                "--aptopt=Acquire::Languages none", suite, path, env={"TMPDIR": scratch},
            )  # fmt: skip

    return cached(f"roots/{name}-{digest(suite, *include, *hooks)}.tar", make)


@contextmanager
def build_context(tree: Path, recipe: Path) -> Iterator[Path]:
    """Make a folder to build an image in: the recipe's files, and the tree as root.tar without a copy."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        context = Path(folder)
        shutil.copytree(recipe, context, dirs_exist_ok=True)
        (context / "root.tar").hardlink_to(tree)
        yield context
