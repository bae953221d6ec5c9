"""How far the writer has come. Who waits on an event loop is woken once a transaction, not once a write."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable


class Milestone:
    """A number that only grows; threads raise it, tasks wait for it."""

    def __init__(self) -> None:
        self.reached: float = 0
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def wait(self, number: int) -> None:
        """Return when the number is reached."""
        if self.reached >= number:
            return
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.reached >= number:
                return
            self._waiting.append((number, future))
        await future

    def reach(self, number: float) -> None:
        """Raise the number, and wake who waits for it."""
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


def _wake(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # whoever waited may have given up
            future.set_result(None)
