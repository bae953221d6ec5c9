"""What all studies of a server share: the store, the threads, the change feed, the heap."""

import asyncio
import gc
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from optuna.exceptions import UpdateFinishedTrialError

from tuning_operator.protocol import StudyKey
from tuning_operator.studies.storage.base import Store, Writes
from tuning_operator.studies.study.feed import ChangeFeed

COMMIT_SECONDS = 20.0
"""How long a request waits for the database. Its writes stay queued: the request sent again finds them."""
AWAY_SECONDS = 1.0
"""The same once the database is known to be away: clients are informed soon, and try again."""
SAMPLING_THREADS = 4
"""Studies that sample at the same time. Sampling is mostly Python, so more would not be faster."""
RESULT_THREADS = 32
"""Studies that end a trial at the same time. Some samplers read all trials then (BruteForceSampler)."""
RECORD_THREADS = 8
"""Studies that are declared, loaded or copied, or whose record is read again, at the same time."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """The threads of blocking work: a pool for each kind, so that sampling delays neither results nor loads.

    A study uses one thread of `sampling` or `results` at a time (StudyEngine has a lock), so the studies
    share these pools fairly.
    """

    def __init__(self) -> None:
        self.sampling = ThreadPoolExecutor(SAMPLING_THREADS, "sampling")
        self.results = ThreadPoolExecutor(RESULT_THREADS, "results")
        self.records = ThreadPoolExecutor(RECORD_THREADS, "records")

    def close(self) -> None:
        """Return when all work has ended; blocking."""
        for pool in (self.sampling, self.results, self.records):
            pool.shutdown()


class Context:
    """The store, the threads and the change feed of a server, for its studies."""

    def __init__(self, store: Store, threads: Threads, feed: ChangeFeed) -> None:
        self.store = store
        self.threads = threads
        self.feed = feed
        self._announcing: set[asyncio.Task[None]] = set()

    async def settle(self, *several: Writes) -> None:
        """Return once all that a reply may be based on is durable: these writes, and those of other requests.

        Raises the error of the first of `several` that was refused, and TimeoutError when the database does
        not answer.
        """
        async with asyncio.timeout(self._patience):
            await self._durable(several)

    async def announce(self, key: StudyKey, *several: Writes) -> None:
        """Settle writes that change a study, then mark the change, also if the caller stops waiting."""
        task = asyncio.create_task(self._announce(key, several))
        self._announcing.add(task)
        task.add_done_callback(self._announced)
        async with asyncio.timeout(self._patience):
            await asyncio.shield(task)

    @property
    def _patience(self) -> float:
        return COMMIT_SECONDS if self.store.writable else AWAY_SECONDS

    async def _announce(self, key: StudyKey, several: Iterable[Writes]) -> None:
        try:
            await self._durable(several)
        except UpdateFinishedTrialError:  # another process ended the trial first: a change as well
            self.feed.mark(key)
            raise
        self.feed.mark(key)

    def _announced(self, task: asyncio.Task[None]) -> None:
        self._announcing.discard(task)
        if not task.cancelled():
            task.exception()  # marked as retrieved: the caller raises it, unless it has left

    async def _durable(self, several: Iterable[Writes]) -> None:
        await self.store.durable()
        for writes in several:
            await writes.durable()


async def in_thread(pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a thread of a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args, **kwargs))


def freeze_heap() -> None:
    """Collect garbage, and leave out what remains of later collections.

    With 100,000 trials in memory, each full collection would hold up replies for 0.1 to 0.2 s. Collecting
    first keeps garbage from becoming permanent, and takes about 2 ms for each 1,000 trials that are new.
    Frozen objects are freed with their last reference, unless they are part of a cycle.
    """
    gc.collect()
    gc.freeze()
