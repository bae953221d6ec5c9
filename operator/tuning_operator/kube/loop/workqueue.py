"""The queue between events and workers, after the work queue of Kubernetes' own controllers (client-go).

A key is in the queue once, however often it is added; it is never handed to two workers at once; if it is
added while a worker has it, it comes back when the worker is done. Times are the event loop's.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

LONGEST_PAUSE = 1.0  # seconds
FIRST_BACKOFF = 0.25  # seconds
LAST_BACKOFF = 60.0  # seconds


class WorkQueue(Generic[K]):
    """Keys to work on."""

    def __init__(self) -> None:
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._running: set[K] = set()
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._backoffs: dict[K, tuple[int, float]] = {}
        """How often in a row each key has failed, and when its back-off ends."""
        self._began: dict[K, float] = {}
        self._worked: dict[K, tuple[float, float]] = {}
        """When the last work on a key ended, and how long it took."""
        self._within: dict[K, tuple[float, float]] = {}
        """The arguments of `add_within` for keys that a worker has."""
        self._progress = 0.0
        """When a key was last done, or came into an empty queue."""
        self._wake = asyncio.Condition()

    def add(self, key: K) -> None:
        """Queue the key for the next free worker."""
        if key in self._dirty:
            return
        if not len(self):
            self._progress = asyncio.get_running_loop().time()
        self._dirty.add(key)
        if key not in self._running:
            self._push(key)

    def add_after(self, key: K, delay: float) -> None:
        """Queue the key after a delay in seconds; if it has several, the earliest counts."""
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

    def add_within(self, key: K, share: float, delay: float = 0) -> None:
        """Queue the key after a delay, such that work on it takes no more than a share of the time.

        Changes of a large study come one after another, and work on it takes long: one pass serves many. Long
        work makes no key wait longer than a second.
        """
        if key in self._running:
            before = self._within.get(key, (share, delay))
            self._within[key] = max(share, before[0]), min(delay, before[1])
            return
        ended, took = self._worked.get(key, (0.0, 0.0))
        pause = min(took / share - took, LONGEST_PAUSE)
        self.add_after(key, max(delay, ended + pause - asyncio.get_running_loop().time()))

    def retry(self, key: K) -> float:
        """Queue the key after its back-off, which doubles each time; return what is left of it.

        A key that was added during its back-off, and failed again, has learned nothing new: in a short outage
        with many events, the back-off must not grow as in a long one.
        """
        now = asyncio.get_running_loop().time()
        failures, end = self._backoffs.get(key, (0, now))
        if end <= now:
            end = now + min(FIRST_BACKOFF * 2.0 ** min(failures, 16), LAST_BACKOFF)
            self._backoffs[key] = failures + 1, end
        self.add_after(key, end - now)
        return end - now

    def succeeded(self, key: K) -> None:
        """Reset the key's back-off."""
        self._backoffs.pop(key, None)

    def retry_now(self) -> None:
        """Queue all keys that wait for their back-off now: what made them fail may be over."""
        for key in list(self._backoffs):
            self.add(key)

    def hurry(self) -> None:
        """Queue all keys that wait for their delay or back-off now."""
        for key in list(self._later):
            self.add(key)

    def forget(self, key: K) -> None:
        """Drop what is known of a key: it does not come back unless it is added again."""
        self.succeeded(key)
        self._began.pop(key, None)
        self._worked.pop(key, None)
        if planned := self._later.pop(key, None):
            planned.cancel()

    async def get(self) -> K:
        """Wait for a key; the caller must call `done` with it."""
        async with self._wake:
            await self._wake.wait_for(lambda: self._ready)
            key = self._ready.popleft()
        if planned := self._later.pop(key, None):
            planned.cancel()  # it is worked on now; the worker decides when it is next
        self._dirty.discard(key)
        self._running.add(key)
        self._began[key] = asyncio.get_running_loop().time()
        return key

    def done(self, key: K) -> None:
        """Return a key that `get` handed out; if it was added meanwhile, it is next in line again."""
        self._running.discard(key)
        self._progress = asyncio.get_running_loop().time()
        if key in self._began:  # otherwise it was forgotten
            began = self._began.pop(key)
            self._worked[key] = self._progress, self._progress - began
        if key in self._dirty:
            self._push(key)
        elif key in self._within:
            self.add_within(key, *self._within[key])
        self._within.pop(key, None)

    def __len__(self) -> int:
        """Return how many keys are waiting or worked on, not counting those with a delay."""
        return len(self._dirty | self._running)

    def age(self) -> float:
        """Return for how many seconds keys have been waiting or in work without one being done."""
        return asyncio.get_running_loop().time() - self._progress if len(self) else 0.0

    def _due(self, key: K) -> None:
        self._later.pop(key, None)
        self.add(key)

    def _push(self, key: K) -> None:
        self._ready.append(key)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._wake:
            self._wake.notify()
