"""What the server needs of its storage beyond Optuna's BaseStorage, and a storage in memory."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, NamedTuple, Protocol, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

SHARD = "tuning:shard"
"""A study's system attribute: the shard in which it was created, if that is not 0. It never changes."""


def shard_in(system_attrs: Mapping[str, Any]) -> int:
    """Return the shard of the study with these system attributes; others' studies belong to shard 0."""
    return int(system_attrs.get(SHARD, 0))


class Fenced(RuntimeError):  # noqa: N818  it is a state more than a mistake
    """Another process writes this shard now: this one must end, it can never write again."""


class StorageUnavailable(TimeoutError):  # noqa: N818
    """Postgres did not answer in time. A write stays queued and is kept as soon as it can be."""


class OtherShard(RuntimeError):  # noqa: N818  a property of the study
    """A write to a study of another shard, whose server is its only writer."""


class Writes(Protocol):
    """The writes of a piece of work."""

    async def durable(self) -> None:
        """Return when all are durable; raise the error of the first that was refused."""


class Extent(NamedTuple):
    """How large a study is."""

    trials: int
    finished: datetime | None
    """When its last trial ended, in local time as in Optuna."""


class Store(Protocol):
    """A storage that answers from memory and makes durable what was written to it."""

    @property
    def storage(self) -> BaseStorage:
        """The storage as Optuna knows it."""

    @property
    def shard(self) -> int:
        """The shard whose studies can be written here."""

    @property
    def writable(self) -> bool:
        """Whether this process is the writer and the database answered when last asked."""

    @property
    def commits(self) -> int:
        """How many transactions were committed since the start."""

    async def open(self) -> None:
        """Become the only writer; return when that is so."""

    async def lost(self) -> Exception:
        """Return when nothing can be written any more, and why: Fenced if another writer took over."""

    async def close(self) -> None:
        """Make durable what is not yet, and let others write."""

    def deferred(self) -> AbstractContextManager[Writes]:
        """Have this thread's writes in the block apply to memory at once, without waiting for them.

        Creating a study or a trial, starting a waiting trial and deleting a study wait all the same, so they
        are not for the event loop.
        """

    async def durable(self) -> None:
        """Return when every write made before, by anyone, is durable or refused."""

    def conflicts(self, study_id: int) -> int:
        """Return how often a write to a study's trials was refused and memory corrected since it was loaded.

        What was read from memory before a conflict may have been a write that is not in the database.
        """

    def refresh(self, study_id: int) -> None:
        """Read what others wrote to a study; blocking. Raises KeyError when they deleted it."""

    def release(self, study_id: int) -> None:
        """Drop a study from memory, to be read again when needed; blocking.

        Nobody may be using the study. One with a write that is not durable stays in memory.
        """

    def running(self) -> list[str]:
        """Return the names of the studies with a running trial; blocking."""

    def extents(self, prefix: str) -> Mapping[str, Extent]:
        """Return the studies whose names start with a prefix, by name; blocking."""

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Create trials, numbered in this order, and return their ids when that is durable; blocking.

        Raises KeyError when the study is gone, TimeoutError.
        """

    def rename(self, study_id: int, name: str) -> None:
        """Give a study another name; blocking. Nobody may be using it. Raises KeyError, TimeoutError."""

    def report(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Set the intermediate values of several steps. Raises KeyError, UpdateFinishedTrialError."""


class NothingToWait:
    """Writes to memory: they are never more durable than at once."""

    async def durable(self) -> None:
        """Return at once."""


class MemoryStore:
    """A store that forgets everything when the process ends: for tests, and for trying out."""

    writable = True
    commits = 0
    shard = 0

    def __init__(self) -> None:
        self.storage: BaseStorage = optuna.storages.InMemoryStorage()

    async def open(self) -> None:
        """There is no other writer."""

    async def lost(self) -> Exception:
        """Never return: nobody can take over."""
        never: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        """There is nothing to flush."""

    @contextmanager
    def deferred(self) -> Iterator[Writes]:
        """Writes do not wait here anyway."""
        yield NothingToWait()

    async def durable(self) -> None:
        """Memory is all there is."""

    def conflicts(self, study_id: int) -> int:  # noqa: ARG002
        """No other process writes here."""
        return 0

    def refresh(self, study_id: int) -> None:
        """Others cannot write here."""

    def release(self, study_id: int) -> None:
        """Memory is all there is."""

    def running(self) -> list[str]:
        """Return the names of the studies with a running trial."""
        return [
            study.study_name
            for study in self.storage.get_all_studies()
            if self.storage.get_n_trials(study._study_id, TrialState.RUNNING)  # noqa: SLF001
        ]

    def extents(self, prefix: str) -> Mapping[str, Extent]:
        """Return the studies whose names start with a prefix, by name."""
        found = {}
        for study in self.storage.get_all_studies():
            if study.study_name.startswith(prefix):
                trials = self.storage.get_all_trials(study._study_id, deepcopy=False)  # noqa: SLF001
                ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
                found[study.study_name] = Extent(len(trials), max(ends, default=None))
        return found

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
        """Create trials; return their ids."""
        return [self.storage.create_new_trial(study_id, trial) for trial in trials]

    def rename(self, study_id: int, name: str) -> None:
        """Give a study another name."""
        storage = cast("Any", self.storage)  # Optuna's storages have no way to do it
        before, storage._studies[study_id].name = storage._studies[study_id].name, name  # noqa: SLF001
        storage._study_name_to_id[name] = storage._study_name_to_id.pop(before)  # noqa: SLF001

    def report(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Set the intermediate values of several steps."""
        for step, value in values.items():
            self.storage.set_trial_intermediate_value(trial_id, step, value)
