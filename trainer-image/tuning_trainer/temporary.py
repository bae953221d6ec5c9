"""Where the runtime has its own temporary files."""

from __future__ import annotations

import tempfile

IN_MEMORY = "/dev/shm"  # noqa: S108


def temporary_folder() -> str:
    """Return the folder for temporary files."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # every usual place is read-only
        return IN_MEMORY


def new_folder(prefix: str) -> str:
    """Create a folder, in memory if the one for temporary files is full; return its path."""
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=temporary_folder())
    except OSError:
        return tempfile.mkdtemp(prefix=prefix, dir=IN_MEMORY)
