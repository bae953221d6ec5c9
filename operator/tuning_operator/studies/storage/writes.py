"""Waiting for writes: in threads, on an event loop, for one write or for many."""

import asyncio
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from tuning_operator.studies.storage.errors import StorageUnavailable


class Writes:
    """What a deferred block wrote."""

    def __init__(self) -> None:
        self._outcomes: list[Future[Any]] = []

    def add(self, outcome: Future[Any]) -> None:
        """Count one more."""
        self._outcomes.append(outcome)

    async def durable(self) -> None:
        """Return when all are durable. Raises the error of the first that was refused."""
        for outcome in reversed(self._outcomes):  # the last one first: the others are mostly done then
            if not outcome.done():
                await asyncio.wait([asyncio.wrap_future(outcome)])
        self._raise_first()

    def wait(self, timeout: float | None = None) -> None:
        """Wait as `durable` does, in a thread. Raises StorageUnavailable after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for outcome in self._outcomes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait_for(outcome, left, raising=False)
        self._raise_first()

    def _raise_first(self) -> None:
        for outcome in self._outcomes:
            outcome.result()


def wait_for(outcome: Future[Any], timeout: float | None, *, raising: bool = True) -> Any:
    """Return a write's outcome or raise its error. Raises StorageUnavailable after `timeout` seconds."""
    try:
        error = outcome.exception(timeout)
    except FutureTimeoutError:
        raise StorageUnavailable(f"The database has not answered for {timeout:.0f} s.") from None
    if error is not None and raising:
        raise error
    return None if error else outcome.result()
