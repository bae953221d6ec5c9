"""The change feed: which studies changed since a cursor; waiting until there is one."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tuning_operator.protocol import Changes, StudyKey

MOST_STUDIES = 10_000
"""The studies whose last change is remembered."""


class Waiters:
    """Requests that wait until something happens, or the server is stopping."""

    def __init__(self) -> None:
        self.closed = False
        """Whether the server is stopping, so that no request waits."""
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self, seconds: float) -> None:
        """Wait for the next `wake`, at most this long."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=max(seconds, 0))
        finally:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """Let the waiting requests look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def close(self) -> None:
        """Reply at once to every request, waiting ones included: the server is stopping."""
        self.closed = True
        self.wake()


class ChangeFeed(Waiters):
    """Changes of studies, in order; a study that changed often counts once, at its last change.

    A cursor is `EPOCH.SEQUENCE`. The epoch is new with each start of the server. The reply to a cursor of
    another epoch, or from before changes that are no longer remembered, is every study that may need
    attention.

    Args:
        unsettled: the studies that may need attention whatever has changed.
    """

    def __init__(self, unsettled: Callable[[], Awaitable[list[StudyKey]]]) -> None:
        super().__init__()
        self._unsettled = unsettled
        self._epoch = secrets.token_hex(4)
        self._sequence = 0
        self._last: OrderedDict[StudyKey, int] = OrderedDict()
        self._dropped = 0
        """The latest change that is no longer remembered."""

    def mark(self, key: StudyKey) -> None:
        """Add a change, which is durable, and wake the waiting requests."""
        self._sequence += 1
        self._last[key] = self._sequence
        self._last.move_to_end(key)
        if len(self._last) > MOST_STUDIES:
            _, self._dropped = self._last.popitem(last=False)
        self.wake()

    async def after(self, cursor: str | None, seconds: float) -> Changes:
        """Return the changes after a cursor; waits up to `seconds` for the first one."""
        since = self._since(cursor)
        if since is None:
            now = self._sequence  # before the record is read: later changes are reported again
            return self._changes(now, await self._unsettled())
        if since >= self._sequence and not self.closed:
            await self.wait(seconds)
        return self._changes(self._sequence, self._changed(since))

    def _since(self, cursor: str | None) -> int | None:
        epoch, _, sequence = (cursor or "").partition(".")
        known = epoch == self._epoch and sequence.isdecimal() and int(sequence) >= self._dropped
        return int(sequence) if known else None

    def _changed(self, since: int) -> list[StudyKey]:
        found: list[StudyKey] = []
        for key, sequence in reversed(self._last.items()):
            if sequence <= since:
                break
            found.append(key)
        return found[::-1]

    def _changes(self, sequence: int, keys: list[StudyKey]) -> Changes:
        return Changes(
            cursor=f"{self._epoch}.{sequence}", studies=[(key.namespace, key.name) for key in keys]
        )
