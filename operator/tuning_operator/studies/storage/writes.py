"""Waiting for writes: in threads, on an event loop, for one write or for many."""

import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from tuning_operator.studies.storage.changes import Change
from tuning_operator.studies.storage.errors import StorageUnavailable
from tuning_operator.studies.storage.milestone import Milestone


class Writes:
    """What a deferred block wrote."""

    def __init__(self, settled: Milestone) -> None:
        """`settled` reaches a change's number when the change has its outcome."""
        self._settled = settled
        self._changes: list[Change] = []

    def add(self, change: Change) -> None:
        """Count one more."""
        self._changes.append(change)

    async def durable(self) -> None:
        """Return when all are durable. Raises the error of the first that was refused."""
        if self._changes:
            await self._settled.wait(max(change.seq for change in self._changes))
        self._raise_first()

    def wait(self, timeout: float | None = None) -> None:
        """Wait as `durable` does, in a thread. Raises StorageUnavailable after `timeout` seconds."""
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
