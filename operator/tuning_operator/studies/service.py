"""The parts of a running study server, joined."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tuning_operator.protocol import Changes, Problem, StudyKey
from tuning_operator.studies.auth.tokens import Verifier
from tuning_operator.studies.errors import Unavailable
from tuning_operator.studies.metrics import Metrics, Standing
from tuning_operator.studies.storage.base import Store
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry
from tuning_operator.studies.study.surroundings import Surroundings

SAMPLING_THREADS = 4
"""Studies that sample at the same time. Sampling is mostly Python, so more would not be faster."""


class Service:
    """The studies of one store, and who may use them."""

    def __init__(self, store: Store, verifier: Verifier) -> None:
        self.verifier = verifier
        self.feed = ChangeFeed(self._unsettled)
        self.metrics = Metrics(self._standings, store)
        self._store = store
        self._executor = ThreadPoolExecutor(SAMPLING_THREADS, thread_name_prefix="sampling")
        self._studies = Registry(Surroundings(store, self._executor, self.feed))
        self._open = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether this server is the one that writes the record, and the database answers."""
        return self._open.is_set() and self._store.writable

    @property
    def studies(self) -> Registry:
        """The studies. Raises Unavailable until the server is ready."""
        self._check_ready()
        return self._studies

    async def changes(self, after: str | None, seconds: float) -> Changes:
        """Return the studies that changed since a cursor. Raises Unavailable until the server is ready."""
        self._check_ready()
        return await self.feed.after(after, seconds)

    async def start(self) -> None:
        """Become the only writer of the record; returns when that is so."""
        await self._store.open()
        self._open.set()

    async def lost(self) -> None:
        """Return when this server is no longer the only writer."""
        await self._store.lost()

    async def stop(self) -> None:
        """Make everything durable and let go of the record."""
        self._open.clear()
        await asyncio.to_thread(self._executor.shutdown)
        await self._store.close()

    async def _unsettled(self) -> list[StudyKey]:
        return await self._studies.unsettled()

    def _standings(self) -> list[Standing]:
        return [Standing(engine.key, engine.counts) for engine in self._studies]

    def _check_ready(self) -> None:
        if not self._open.is_set():
            message = (
                "the study server is starting: it waits for the database, or for the previous server to stop"
            )
            raise Unavailable(Problem(field="server", message=message))
