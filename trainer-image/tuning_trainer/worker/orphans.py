"""Processes whose parent has ended, such as daemons.

Each trial's process adopts those of its trial. Once it has ended itself, they become children of the
supervisor, which ends them.
"""

from __future__ import annotations

import contextlib
import os
import signal

from tuning_trainer.worker import memory

SET_CHILD_SUBREAPER = 36  # of prctl


def adopt(wanted: bool = True) -> None:
    """Become the parent of descendants whose parent ends, as process 1 of a container is, or no longer."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def end(except_for: int | None) -> None:
    """End the children of this process but one, and their descendants."""
    for child in memory.children(os.getpid()):
        if child == except_for:
            continue
        for pid in memory.tree(child):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(child, os.WNOHANG)
