"""The cache of built files. An entry's key is made from its inputs, and incomplete entries are never used."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuning-operator"
MAKING = ".making-"


def digest(*parts: str | bytes | Path) -> str:
    """Return a short hash of texts and file contents, for the key of a cache entry."""
    total = hashlib.sha256()
    for part in parts:
        content = (
            part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        )
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:12]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return ROOT/name. If it doesn't exist, `make(path)` creates it; it appears only once it is complete."""
    folder, _, last = name.rpartition("/")
    return cached_together(folder, [last], lambda scratch, _: make(scratch / last))[0]


def cached_together(folder: str, names: list[str], make: Callable[[Path, list[str]], None]) -> list[Path]:
    """Return ROOT/folder/name for each name. One call of `make` creates all that are missing.

    Args:
        make: called with a scratch folder and the missing names, which it creates in that folder.
    """
    home = ROOT / folder
    places = [home / name for name in names]
    if all(place.exists() for place in places):
        return places
    home.mkdir(parents=True, exist_ok=True)
    with lock("-".join([folder.replace("/", "-"), *names])[:200]):
        missing = [place.name for place in places if not place.exists()]
        if missing:
            with _scratch(home) as scratch:
                make(scratch, missing)
                for name in missing:
                    (scratch / name).rename(home / name)
    return places


@contextmanager
def lock(name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock between processes. If its holder is killed, the lock is released.

    Args:
        shared: whether others that ask for a shared lock can hold it at the same time.
    """
    (ROOT / "locks").mkdir(parents=True, exist_ok=True)
    with (ROOT / "locks" / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """Create a locked scratch folder; remove those that killed processes left."""
    with lock("scratch"):
        for other in home.glob(f"{MAKING}*"):
            _remove_if_abandoned(other)
        scratch = Path(tempfile.mkdtemp(prefix=MAKING, dir=home))
        held = os.open(scratch, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def _remove_if_abandoned(scratch: Path) -> None:
    held = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(held)
