"""What the server needs of its storage beyond Optuna's BaseStorage."""

import asyncio
from typing import Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState


class Store(Protocol):
    """A storage that answers from memory and makes durable what was written to it."""

    @property
    def storage(self) -> BaseStorage:
        """The storage as Optuna knows it."""

    async def open(self) -> None:
        """Become the only writer; waits until an earlier one is gone."""

    async def lost(self) -> None:
        """Return when another writer may have taken over: from then on nothing can be written."""

    async def close(self) -> None:
        """Make durable what is not yet, and let others write."""

    async def durable(self) -> None:
        """Return when all that was written before is durable."""

    async def pick_up(self, study_id: int) -> None:
        """Read what others wrote to a study."""

    async def running(self) -> list[str]:
        """Return the names of the studies with a running trial."""


class MemoryStore:
    """A store that forgets everything when the process ends: for tests."""

    def __init__(self) -> None:
        self.storage: BaseStorage = optuna.storages.InMemoryStorage()

    async def open(self) -> None:
        """There is no other writer."""

    async def lost(self) -> None:
        """Never return: nobody can take over."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """There is nothing to flush."""

    async def durable(self) -> None:
        """Memory is all there is."""

    async def pick_up(self, study_id: int) -> None:
        """Others cannot write here."""

    async def running(self) -> list[str]:
        """Return the names of the studies with a running trial."""
        return [
            study.study_name
            for study in self.storage.get_all_studies()
            if self.storage.get_n_trials(study._study_id, TrialState.RUNNING)  # noqa: SLF001
        ]
