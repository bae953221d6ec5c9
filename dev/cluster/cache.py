"""The cache folder: what was built once, by what it was built from. Half-made entries never count."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuning-operator"


def digest(*parts: str | bytes | Path) -> str:
    """Return a short hash of texts and of files' contents: the key of what is made from them."""
    total = hashlib.sha256()
    for part in parts:
        content = (
            part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        )
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:12]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return ROOT/name, made if need be by `make(path)`; it appears whole or not at all."""
    place = ROOT / name
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock(f"{place.parent.name}-{place.name}"):
        if place.exists():
            return place
        folder = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        try:
            make(folder / place.name)
            (folder / place.name).rename(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return place


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process at a time in; a killed holder's lock is free at once."""
    (ROOT / "locks").mkdir(parents=True, exist_ok=True)
    with (ROOT / "locks" / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
