"""SIGTERM: the pod is being stopped and the next one takes the same trial: exit quickly, tell nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
DELIVERY_GRACE = 10.0  # seconds for a result that is on its way when the pod is stopped
EXIT_GRACE = 20.0  # seconds for what the user's code left running (threads, atexit) when the trial is over


class Stopped(SystemExit):
    """Raised in the main thread on SIGTERM, so that the user's `finally` blocks run."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stopping:
    """Watches for SIGTERM, also after the user's code (Lightning, say) has installed a handler of its own."""

    def __init__(self) -> None:
        self._delivering = False
        self._received = False
        self._seen, self._woken = os.pipe()
        os.set_blocking(self._seen, False)
        os.set_blocking(self._woken, False)

    def install(self) -> None:
        """Take SIGTERM over. A process with number 1 would ignore it otherwise."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)  # hears signals whoever handles them
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_leave_alone)

    @property
    def received(self) -> bool:
        """Whether the process was told to stop."""
        with contextlib.suppress(BlockingIOError):
            self._received = self._received or signal.SIGTERM in os.read(self._seen, 65536)
        return self._received

    def start_delivery(self) -> None:
        """From now on a result is on its way: SIGTERM leaves it a few seconds."""
        self._delivering = True
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        again, self._received = self._received, True
        if again:
            os._exit(EXIT_CODE)
        if self._delivering:
            exit_within(DELIVERY_GRACE, EXIT_CODE)
        else:
            raise Stopped


def _hold() -> None:
    """Hold SIGTERM back while the process forks: a child would lose it, or tell its parent of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _leave_alone() -> None:
    """Let a forked child (a data loader's worker) die of SIGTERM as usual, its parent not hear of it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release()


def exit_within(seconds: float, code: int) -> None:
    """End the process after some seconds, whatever it does then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
