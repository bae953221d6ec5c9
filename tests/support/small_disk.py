"""A small file system that a test can fill."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


class SmallDisk:
    """A tmpfs. As a context manager, it is mounted for the length of the block, which needs root or sudo."""

    def __init__(self, mebibytes: int) -> None:
        self._options = f"size={mebibytes}m,mode=755"
        self._as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tuning-disk-")
        self.path = Path(self._folder.name)
        self.path.chmod(0o755)
        options = f"{self._options},uid={os.geteuid()}"
        command = [*self._as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            self._folder.cleanup()
            pytest.skip(
                f"FULL DISKS ARE NOT TESTED: this user can't mount a file system ({done.stderr.strip()})"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Lazily: processes that end may have files open for a moment.
        subprocess.run([*self._as_root, "umount", "--lazy", self._folder.name], check=True)
        self._folder.cleanup()

    def fill(self) -> None:
        """Use all of the space that is left."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with pytest.raises(OSError, match="No space left"):
                    any(not file.write(bytes(size)) for _ in itertools.count())

    def make_room(self) -> None:
        (self.path / "ballast").unlink()
