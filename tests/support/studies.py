"""Studies of a server without HTTP, for tests of what a study does."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.protocol import AskRequest, StudyDefinition, StudyKey, TellRequest
from tuning_operator.studies.storage.base import MemoryStore, Store, Writes
from tuning_operator.studies.study.context import Context, Threads
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuning_operator.studies.study.engine import StudyEngine

KEY = StudyKey("ml", "mnist")
X = {"name": "x", "type": "float", "low": 0, "high": 1}


class Servers:
    """Servers on one record; each `start` is another process, as far as the record can tell."""

    def __init__(self, threads: Threads, store: Store | None = None) -> None:
        self.threads = threads
        self.store = store or MemoryStore()
        self.now = 0.0
        """The time on the servers' clocks."""

    def start(self) -> Registry:
        async def unsettled() -> list[StudyKey]:
            return await registry.unsettled()

        self.feed = ChangeFeed(unsettled)
        registry = Registry(Context(self.store, self.threads, self.feed), clock=lambda: self.now)
        return registry

    def optuna(self) -> optuna.Study:
        """Return the study as plain Optuna sees it."""
        return optuna.load_study(study_name="ml/mnist", storage=self.store.storage)


@pytest.fixture
def threads() -> Iterator[Threads]:
    """The threads of a server."""
    threads = Threads()
    yield threads
    threads.close()


@pytest.fixture
def servers(threads: Threads) -> Servers:
    """Servers on an empty record in memory."""
    return Servers(threads)


@pytest.fixture
def registry(servers: Servers) -> Registry:
    """The studies of a server that has just started."""
    return servers.start()


class HeldStore(MemoryStore):
    """A store in memory that behaves as if nothing written while it is held were durable."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.conflict_count = 0
        self._released = asyncio.Event()

    def hold(self) -> None:
        """From now on, nothing becomes durable."""
        self.held = True
        self._released.clear()

    def let_go(self) -> None:
        """Make everything durable."""
        self.held = False
        self._released.set()

    async def durable(self) -> None:
        """Wait while the store is held."""
        if self.held:
            await self._released.wait()

    @contextmanager
    def deferred(self) -> Iterator[Writes]:
        """Writes wait while the store is held."""
        yield self

    def conflicts(self, study_id: int) -> int:
        """The test decides."""
        return self.conflict_count


def definition(**changes: Any) -> StudyDefinition:
    """Return the definition of a study that maximizes one objective over one float."""
    maximized = {"objectives": [{"metric": "acc", "direction": "maximize"}], "searchSpace": [X]}
    return StudyDefinition.model_validate(maximized | changes)


async def declared(
    registry: Registry, definition_: StudyDefinition | None = None, key: StudyKey = KEY
) -> StudyEngine:
    """Declare a study, and return it."""
    await registry.declare(key, definition_ or definition())
    return await registry.find(key)


async def ask(engine: StudyEngine, parallelism: int, max_trials: int = 1000) -> list[int]:
    """Ask for trials; return the numbers of those that are running."""
    summary = await engine.ask(AskRequest(parallelism=parallelism, max_trials=max_trials))
    return [trial.number for trial in summary.running]


def complete(*values: Any) -> TellRequest:
    """Return a result."""
    return TellRequest(state="COMPLETE", values=list(values))
