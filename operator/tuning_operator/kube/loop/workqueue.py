"""The queue between what happens and what is done about it, as controllers in Go have it.

A key is in the queue once, however often it is added; it is never handed to two workers at once; added while
a worker has it, it comes back when the worker is done. Times are the event loop's.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF = 0.25  # seconds
LAST_BACKOFF = 60.0  # seconds


class WorkQueue(Generic[K]):
    """Keys to work on."""

    def __init__(self) -> None:
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._running: set[K] = set()
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Condition()

    def add(self, key: K) -> None:
        """Have the key worked on as soon as a worker is free."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._running:
            self._push(key)

    def add_after(self, key: K, delay: float) -> None:
        """Have the key worked on in so many seconds; of several such times the earliest holds."""
        if delay <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        planned = self._later.get(key)
        if planned and planned.when() <= loop.time() + delay:
            return
        if planned:
            planned.cancel()
        self._later[key] = loop.call_later(delay, self._due, key)

    def retry(self, key: K) -> float:
        """Have the key worked on after its back-off, which doubles each time; return it in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_BACKOFF * 2.0 ** min(failures, 16), LAST_BACKOFF)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Let the key's next back-off begin small again."""
        self._failures.pop(key, None)

    def hasten(self) -> None:
        """Have all keys that wait for their back-off worked on now: what they failed of may be mended."""
        for key in list(self._failures):
            self.add(key)

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key that will not come back by itself."""
        self.succeeded(key)
        if planned := self._later.pop(key, None):
            planned.cancel()

    async def get(self) -> K:
        """Wait for a key; the caller must call `done` with it."""
        async with self._wake:
            await self._wake.wait_for(lambda: self._ready)
            key = self._ready.popleft()
        if planned := self._later.pop(key, None):
            planned.cancel()  # it is looked at now; the worker says when to look next
        self._dirty.discard(key)
        self._running.add(key)
        return key

    def done(self, key: K) -> None:
        """Say that the worker is through with a key."""
        self._running.discard(key)
        if key in self._dirty:
            self._push(key)

    def __len__(self) -> int:
        """Return how many keys are waiting or worked on, not counting those for later."""
        return len(self._dirty | self._running)

    def _due(self, key: K) -> None:
        self._later.pop(key, None)
        self.add(key)

    def _push(self, key: K) -> None:
        self._ready.append(key)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._wake:
            self._wake.notify()
