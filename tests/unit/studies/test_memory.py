"""What stays in memory: the studies in use. Everything else goes, and is read again when it is needed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from tuning_operator.protocol import RefitRequest, StudyKey
from tuning_operator.studies.errors import NotFound
from tuning_operator.studies.storage import PostgresStorage, PostgresStore
from tuning_operator.studies.study import registry as registry_module
from tuning_operator.studies.study.registry import IDLE_SECONDS, RECENT_SECONDS

from tests.support.studies import KEY, Servers, ask, complete, declared, definition
from tests.support.studies import registry as registry
from tests.support.studies import servers as servers
from tests.support.studies import threads as threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tuning_operator.studies.study.context import Threads
    from tuning_operator.studies.study.engine import StudyEngine
    from tuning_operator.studies.study.registry import Registry

NewStorage = Callable[..., PostgresStorage]


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def on_postgres(threads: Threads, store: PostgresStore) -> Servers:
    return Servers(threads, store)


async def finished(registry: Registry, name: str, trials: int) -> StudyEngine:
    """Declare a study and complete some trials."""
    engine = await declared(registry, key=StudyKey("ml", name))
    for number in range(trials):
        await ask(engine, 1)
        await engine.tell(number, complete(number / 10))
    return engine


def in_memory(registry: Registry) -> list[str]:
    return sorted(engine.key.name for engine in registry)


def trials_in_memory(store: PostgresStore) -> int:
    return len(store._postgres._library._memory._of_trial)


async def test_a_name_that_was_asked_for_leaves_nothing(registry: Registry) -> None:
    for number in range(10):
        with pytest.raises(NotFound):
            await registry.find(StudyKey("ml", f"unknown-{number}"))
        await registry.forget(StudyKey("ml", f"unknown-{number}"))
    await declared(registry)
    await registry.forget(KEY)
    assert len(registry._locks) == 0
    assert in_memory(registry) == []


async def test_an_unused_study_is_dropped_when_another_is_loaded(
    registry: Registry, servers: Servers
) -> None:
    await finished(registry, "old", 1)
    await finished(registry, "used", 1)
    servers.now = IDLE_SECONDS
    assert registry.loaded(StudyKey("ml", "used"))
    servers.now += 1
    await declared(registry, key=StudyKey("ml", "new"))
    assert in_memory(registry) == ["new", "used"]
    again = await registry.find(StudyKey("ml", "old"))
    assert again.counts.complete == 1
    assert await ask(again, 1) == [1]


async def test_a_study_in_which_something_runs_stays(registry: Registry, servers: Servers) -> None:
    await ask(await finished(registry, "trial", 1), 1)
    refitted = await finished(registry, "refit", 1)
    await refitted.refit.begin(RefitRequest(trial=0, digest="d"))
    busy = await finished(registry, "busy", 1)
    servers.now = 100 * IDLE_SECONDS
    async with busy._lock:
        await declared(registry, key=StudyKey("ml", "new"))
    assert in_memory(registry) == ["busy", "new", "refit", "trial"]


async def test_of_many_idle_trials_the_least_recently_used_are_dropped(
    registry: Registry, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "IDLE_TRIALS", 5)
    for name in ("a", "b", "c"):
        await finished(registry, name, 2)
        servers.now += 1
    registry.loaded(StudyKey("ml", "a"))
    await declared(registry, key=StudyKey("ml", "soon"))
    assert in_memory(registry) == ["a", "b", "c", "soon"], "all were used just now"
    servers.now += RECENT_SECONDS
    registry.loaded(StudyKey("ml", "c"))
    servers.now += 1
    await declared(registry, key=StudyKey("ml", "later"))
    assert in_memory(registry) == ["a", "c", "later", "soon"]


async def test_a_study_that_is_loaded_again_while_others_are_dropped_stays(
    registry: Registry, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("second", "first"):  # the one used last is looked at first
        await finished(registry, name, 1)
        servers.now += 1
    servers.now += IDLE_SECONDS
    dropping, go_on, drop = asyncio.Event(), asyncio.Event(), registry._drop

    async def slow_drop(engine: StudyEngine) -> None:
        if engine.key.name == "first":
            dropping.set()
            await go_on.wait()
        await drop(engine)

    monkeypatch.setattr(registry, "_drop", slow_drop)
    earlier = asyncio.create_task(registry._drop_idle())
    await dropping.wait()
    await registry._drop_idle()
    assert in_memory(registry) == ["first"]
    again = await registry.find(StudyKey("ml", "second"))
    go_on.set()
    await earlier
    assert registry.loaded(again.key) is again


async def test_a_dropped_study_is_freed_without_garbage_collection(
    on_postgres: Servers, store: PostgresStore
) -> None:
    """What was frozen at a load is in no cycle, or it would stay for good."""
    registry = on_postgres.start()
    engine = await finished(registry, "old", 2)
    parts = [weakref.ref(part) for part in (engine, engine.study, engine.study.frozen(0))]
    del engine
    on_postgres.now = 2 * IDLE_SECONDS
    gc.disable()
    try:
        await declared(registry, key=StudyKey("ml", "new"))
        assert in_memory(registry) == ["new"]
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()
    assert trials_in_memory(store) == 0
    assert (await registry.find(StudyKey("ml", "old"))).counts.complete == 2


async def test_garbage_does_not_become_permanent_when_a_study_is_loaded(registry: Registry) -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        garbage = weakref.ref(Node())
        assert garbage() is not None
        await declared(registry)
        assert garbage() is None
    finally:
        gc.enable()


async def test_a_forgotten_study_leaves_memory_and_stays_on_record(
    on_postgres: Servers, store: PostgresStore
) -> None:
    registry = on_postgres.start()
    engine = await declared(registry)
    await ask(engine, 2)
    await engine.tell(0, complete(0.5))
    assert trials_in_memory(store) == 2
    await registry.forget(KEY)
    assert (trials_in_memory(store), in_memory(registry)) == (0, [])
    states = [trial.state for trial in on_postgres.optuna().trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED]
    again = await declared(registry)
    assert (again.counts.complete, again.counts.pruned) == (1, 1)
    assert await ask(again, 1) == [2]


async def test_a_study_to_continue_from_is_read_and_dropped(
    on_postgres: Servers, store: PostgresStore
) -> None:
    await finished(on_postgres.start(), "old", 3)
    store.release(store.storage.get_study_id_from_name("ml/old"))
    registry = on_postgres.start()
    engine = await declared(registry, definition(warmStart="old"))
    assert engine.counts.copied == 3
    assert trials_in_memory(store) == 3, "the copies"
    await registry.find(StudyKey("ml", "old"))
    await declared(registry, definition(warmStart="old"), StudyKey("ml", "third"))
    assert trials_in_memory(store) == 9, "a study in use stays"


def test_a_released_study_is_read_again(storage: PostgresStorage) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "study")
    trial_id = storage.create_new_trial(study_id)
    storage.set_trial_user_attr(trial_id, "a", 1)
    storage.set_study_user_attr(study_id, "b", 2)
    before = storage.get_all_trials(study_id)
    being_read = storage._library.loaded(study_id)
    storage.release(study_id)
    assert being_read.select(None) == before, "a thread that is reading the study reads all of it"
    assert not storage._library._memory._of_trial
    assert storage.get_all_trials(study_id) == before
    assert storage.get_study_user_attrs(study_id) == {"b": 2}
    storage.release(study_id)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    assert storage.get_trial(trial_id).state == TrialState.FAIL
    storage.release(study_id)
    assert storage.create_new_trial(study_id) > trial_id
    assert [trial.number for trial in storage.get_all_trials(study_id)] == [0, 1]
    storage.release(-1)


def test_a_study_with_a_write_that_is_not_durable_stays(
    storage: PostgresStorage, paused_commits: Callable[[], Callable[[], None]]
) -> None:
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "study")
    trial_id = storage.create_new_trial(study_id)
    paused_commits()
    with storage.deferred(wait=False):
        storage.set_trial_user_attr(trial_id, "a", 1)
    storage.release(study_id)
    assert storage._library._memory.study(study_id)
    assert storage.get_trial(trial_id).user_attrs == {"a": 1}
