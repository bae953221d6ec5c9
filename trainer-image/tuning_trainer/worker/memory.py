"""The memory that processes use, by /proc. Pages that several processes share count for each in part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def used_by_tree(pid: int, enough: int) -> int:
    """Return the bytes that a process and its descendants use; an upper bound if that is below `enough`."""
    pids = tree(pid)
    resident = sum(map(_resident, pids))
    return resident if resident <= enough else sum(map(used, pids))


def used(pid: int) -> int:
    """Return the bytes that a process uses: its proportional set size."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children(found[-1])
    return found


def children(pid: int) -> list[int]:
    """Return the children of a process; none where the system does not show them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                found += map(int, (thread / "children").read_text().split())
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0
