"""The parts of a running study server, joined."""

import asyncio
from datetime import UTC, datetime, timedelta

from tuning_operator.protocol import Changes, Problem
from tuning_operator.studies.auth.tokens import Verifier
from tuning_operator.studies.errors import Unavailable
from tuning_operator.studies.metrics import Metrics, StudyCounts
from tuning_operator.studies.pace import Pace
from tuning_operator.studies.storage.base import Store
from tuning_operator.studies.study.context import Context, Threads
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry

AWAY_SECONDS = 1.0
"""How long it takes at most until a client that waits for changes hears that the database is unavailable."""


class Service:
    """The studies of one store, their change feed and metrics."""

    def __init__(self, store: Store, verifier: Verifier) -> None:
        self.verifier = verifier
        self.feed = ChangeFeed(lambda: self._studies.unsettled())
        self.metrics = Metrics(
            lambda: [StudyCounts(engine.key, engine.counts) for engine in self._studies], store
        )
        self.pace = Pace(self.metrics)
        self._store = store
        self._threads = Threads()
        self._studies = Registry(Context(store, self._threads, self.feed))
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
        """Return the studies that changed since a cursor. Raises Unavailable until the server is ready.

        It waits for a change, unless the database is unavailable.
        """
        self._check_ready()
        end = asyncio.get_running_loop().time() + seconds
        while True:
            left = end - asyncio.get_running_loop().time()
            found = await self.feed.after(after, min(left, AWAY_SECONDS) if self._store.writable else 0)
            if not self._store.writable:
                return found.model_copy(update={"unavailable": "the database does not answer"})
            if found.studies or found.cursor != after or left <= AWAY_SECONDS or self.feed.closed:
                return found

    async def expire(self, age: timedelta) -> None:
        """Delete the records whose TuningStudy was deleted this long ago."""
        await self.studies.expire(datetime.now(UTC) - age)

    async def start(self) -> None:
        """Become the only writer of the record; return when that is so."""
        await self._store.open()
        self._open.set()

    def close(self) -> None:
        """Reply at once to the requests that wait for a change: the server is stopping."""
        self.feed.close()
        for engine in self._studies:
            engine.workers.close()

    async def lost(self) -> Exception:
        """Return when this server can write no more, with the reason: Fenced if another one took over."""
        return await self._store.lost()

    async def stop(self) -> None:
        """Make everything durable and release the record."""
        self._open.clear()
        await asyncio.to_thread(self._threads.close)
        await self._store.close()

    def _check_ready(self) -> None:
        if not self._open.is_set():
            message = (
                "the study server is starting: it waits for the database, or for the previous server to stop"
            )
            raise Unavailable(Problem(field="server", message=message))
