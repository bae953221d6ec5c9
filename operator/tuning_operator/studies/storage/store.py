"""The storage as the study server uses it: on an event loop, which must not wait for the database."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from tuning_operator.studies.storage.base import Extent, Fenced
from tuning_operator.studies.storage.storage import PostgresStorage
from tuning_operator.studies.storage.writes import Writes


class PostgresStore:
    """A `tuning_operator.studies.storage.base.Store` in Postgres."""

    def __init__(
        self, url: str, *, shard: int = 0, pod: str | None = None, write_timeout: float = 60.0
    ) -> None:
        """Connect to nothing yet. The arguments are those of PostgresStorage."""
        self.shard = shard
        self._postgres = PostgresStorage(
            url, shard=shard, pod=pod, write_timeout=write_timeout, wait=False, on_end=self._note_end
        )
        self._lost = asyncio.Event()
        self._end: Exception = Fenced()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def storage(self) -> BaseStorage:
        """The storage as Optuna knows it; no write waits until it is durable: see `durable`."""
        return self._postgres

    @property
    def writable(self) -> bool:
        """Whether this process is the writer and the database answered when last asked."""
        return self._postgres.writable()

    @property
    def commits(self) -> int:
        """How many transactions were committed since the start."""
        return self._postgres.commits

    async def open(self) -> None:
        """Become the only writer; return when that is so."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._postgres.wait_for_lock)

    async def lost(self) -> Exception:
        """Return when nothing can be written any more, and why: Fenced if another writer took over."""
        await self._lost.wait()
        return self._end

    async def close(self) -> None:
        """Make durable what is not yet, and let others write."""
        await asyncio.to_thread(self._postgres.close)

    def deferred(self) -> AbstractContextManager[Writes]:
        """Have this task's or thread's writes in the block collected, for the caller to wait for."""
        return self._postgres.deferred(wait=False)

    async def durable(self) -> None:
        """Return when every write made before, by anyone, is durable or refused. Raises Fenced."""
        await self._postgres.durable()

    def refresh(self, study_id: int) -> None:
        """Read what others wrote to a study; blocking. Raises KeyError when they deleted it."""
        self._postgres.refresh(study_id)

    def conflicts(self, study_id: int) -> int:
        """Return how often memory was corrected after a refused write to a trial of a study."""
        return self._postgres.conflicts(study_id)

    def release(self, study_id: int) -> None:
        """Drop a study from memory, to be read again when needed; blocking. Nobody may be using it."""
        self._postgres.release(study_id)

    def running(self) -> list[str]:
        """Return the names of the studies with a running trial; blocking."""
        return self._postgres.running()

    def extents(self, prefix: str) -> dict[str, Extent]:
        """Return the studies whose names start with a prefix, by name; blocking."""
        return self._postgres.extents(prefix)

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Create trials, numbered in this order; return their ids. Raises KeyError, StorageUnavailable."""
        return self._postgres.create_trials(study_id, trials)

    def rename(self, study_id: int, name: str) -> None:
        """Give a study another name; blocking. Nobody may be using it."""
        self._postgres.rename_study(study_id, name)

    def report(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Set the intermediate values of several steps. Raises KeyError, UpdateFinishedTrialError."""
        self._postgres.set_trial_intermediate_values(trial_id, values)

    def _note_end(self, error: Exception) -> None:
        self._end = error
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lost.set)
