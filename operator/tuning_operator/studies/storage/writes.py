"""Waiting for writes: in threads, on an event loop, for one write or for many."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any

from tuning_operator.studies.storage.base import StorageUnavailable
from tuning_operator.studies.storage.changes import Change


class Progress:
    """The number of the last write that is settled: threads raise it, tasks wait for it.

    Tasks are woken once a transaction, not once a write.
    """

    def __init__(self) -> None:
        self.reached: float = 0
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def wait(self, number: int) -> None:
        """Return when the number is reached."""
        if self.reached >= number:
            return
        waiter = number, asyncio.get_running_loop().create_future()
        with self._lock:
            if self.reached >= number:
                return
            self._waiting.append(waiter)
        try:
            await waiter[1]
        except asyncio.CancelledError:
            with self._lock, suppress(ValueError):  # it has just been reached
                self._waiting.remove(waiter)
            raise

    def reach(self, number: float) -> None:
        """Raise the number, and wake the tasks that wait for it."""
        with self._lock:
            self.reached = number
            due = [future for awaited, future in self._waiting if awaited <= number]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > number]
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
        for future in due:
            by_loop[future.get_loop()].append(future)
        for loop, futures in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, futures)


class Writes:
    """The writes of a deferred block."""

    def __init__(self, settled: Progress, flush: Callable[[], None]) -> None:
        """Begin with none.

        Args:
            settled: reaches a change's number when the change has its outcome.
            flush: has the changes written that are queued.
        """
        self._settled = settled
        self._flush = flush
        self._changes: list[Change] = []

    def add(self, change: Change) -> None:
        """Add one more."""
        self._changes.append(change)

    async def durable(self) -> None:
        """Return when all are durable. Raises the error of the first that was refused."""
        if self._changes:
            self._flush()
            await self._settled.wait(max(change.seq for change in self._changes))
        self._raise_first()

    def wait(self, timeout: float | None = None) -> None:
        """Wait as `durable` does, in a thread. Raises StorageUnavailable after `timeout` seconds."""
        self._flush()
        deadline = None if timeout is None else time.monotonic() + timeout
        for change in self._changes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait_for(change.outcome, left, raising=False)
        self._raise_first()

    def _raise_first(self) -> None:
        for change in self._changes:
            change.outcome.result()


def wait_for(outcome: Future[Any], timeout: float | None, *, raising: bool = True) -> Any:
    """Return a write's outcome or raise its error. Raises StorageUnavailable after `timeout` seconds."""
    try:
        error = outcome.exception(timeout)
    except FutureTimeoutError:
        raise StorageUnavailable(f"The database has not answered for {timeout:.0f} s.") from None
    if error is not None and raising:
        raise error
    return None if error else outcome.result()


def _wake(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # its task may have given up
            future.set_result(None)
