"""SIGTERM: the pod is being stopped. Exit quickly and report nothing: the replacement pod gets the trial."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
DELIVERY_GRACE = 10.0  # seconds to deliver a result when the pod is stopped at that moment
EXIT_GRACE = 20.0  # seconds for threads and atexit functions of the user's code after the trial


class Stopped(SystemExit):
    """Raised in the main thread on SIGTERM, so that the user's `finally` blocks run."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stopping:
    """Watches for SIGTERM, even if the user's code (for example, Lightning) installs its own handler."""

    def __init__(self) -> None:
        self._installed = False
        self._delivering = False
        self._received = False
        self._handled = False
        self._open_pipe()

    def install(self) -> None:
        """Install the handler. Without one, process 1 of a container ignores SIGTERM."""
        self._installed = True
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal = self._noting(signal.signal)  # type: ignore[assignment]
        # Written also while the main thread runs no Python code; asyncio replaces it.
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=self._leave_to_default)
        sys.unraisablehook = self._send_again(sys.unraisablehook)

    @property
    def received(self) -> bool:
        """Whether the process has received SIGTERM."""
        with contextlib.suppress(BlockingIOError):
            self._received = self._received or signal.SIGTERM in os.read(self._seen, 65536)
        return self._received

    def start_delivery(self) -> None:
        """A result is being delivered from now on: after SIGTERM it gets a few more seconds.

        This has no effect in a worker process: SIGTERM, for example from its pool, ends it at once.
        """
        self._delivering = True
        # Python allows it in the main thread only.
        if self._installed and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _noting(self, set_handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Let the handlers that the user's code installs for SIGTERM note its arrival first."""

        @functools.wraps(set_handler)
        def note_and_set(signalnum: Any, handler: Any) -> Any:
            if signalnum == signal.SIGTERM and callable(handler) and not isinstance(handler, _Noting):
                handler = _Noting(self, handler)
            return set_handler(signalnum, handler)

        return note_and_set

    def note(self) -> None:
        """Note that SIGTERM has arrived; in a forked child, it is not the trial's."""
        self._received = self._received or self._installed

    def _send_again(self, hook: Callable[[Any], Any]) -> Callable[[Any], None]:
        """Send SIGTERM again where Python drops the exception: while it forks, and in __del__."""

        def send_again(unraisable: Any) -> None:
            if unraisable.exc_type is not Stopped:
                hook(unraisable)
                return
            self._handled = False
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()

        return send_again

    def _open_pipe(self) -> None:
        self._seen, self._woken = os.pipe()
        os.set_blocking(self._seen, False)
        os.set_blocking(self._woken, False)

    def _leave_to_default(self) -> None:
        """Let SIGTERM end a forked child (such as a data loader's worker) as usual, unseen by its parent."""
        self._installed = False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._open_pipe()
        _unblock()

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._received = True
        again, self._handled = self._handled, True
        if again:
            os._exit(EXIT_CODE)
        if self._delivering:
            exit_within(DELIVERY_GRACE, EXIT_CODE)
        else:
            raise Stopped


class _Noting:
    """A handler of the user's code."""

    def __init__(self, stopping: Stopping, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._stopping = stopping
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._stopping.note()
        self._handler(number, frame)


def _block() -> None:
    """Block SIGTERM while the process forks: the child would lose it or pass it to its parent."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class TimeLimit:
    """Stops the trial at its timeout, as SIGTERM does, and after EXIT_GRACE more seconds by force."""

    def __init__(self, seconds: float | None, on_expiry: Callable[[], None]) -> None:
        self.expired = False
        self._on_expiry = on_expiry
        self._timer = None if seconds is None else threading.Timer(seconds, self._expire)
        if self._timer and seconds is not None:
            self._timer.daemon = True
            self._timer.start()
            self._watchdog = Watchdog(seconds + 2 * EXIT_GRACE)

    def cancel(self) -> None:
        """Let the result be delivered, however long that takes."""
        if self._timer and not self.expired:
            self._timer.cancel()
            self._watchdog.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._on_expiry()
        exit_within(EXIT_GRACE, 1)
        os.kill(os.getpid(), signal.SIGTERM)


class Watchdog:
    """Ends the process after some seconds, also if its code never returns to Python's interpreter.

    It rests while the process forks: a child, which has no thread for it, would wait for that thread forever
    as soon as it cancels it or ends.
    """

    def __init__(self, seconds: float) -> None:
        self._end: float | None = time.monotonic() + seconds
        self._start()
        os.register_at_fork(before=self._stop, after_in_parent=self._start, after_in_child=self._forget)

    def cancel(self) -> None:
        """Let the process go on."""
        if self._end is not None:
            self._forget()
            faulthandler.cancel_dump_traceback_later()

    def _start(self) -> None:
        if self._end is not None:
            remaining = max(self._end - time.monotonic(), 0.1)
            faulthandler.dump_traceback_later(remaining, exit=True, file=2)

    def _stop(self) -> None:
        if self._end is not None:
            faulthandler.cancel_dump_traceback_later()

    def _forget(self) -> None:
        self._end = None


def exit_within(seconds: float, code: int) -> None:
    """End the process after some seconds, whatever it is doing then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
