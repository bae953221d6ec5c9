"""Each kind of blocking work has its own threads: the sampling of one study delays no other study."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial
from tuning_operator.protocol import StudyKey
from tuning_operator.studies.study.context import RESULT_THREADS, SAMPLING_THREADS

from tests.support.studies import KEY, Servers, ask, complete, declared, definition
from tests.support.studies import registry as registry
from tests.support.studies import servers as servers
from tests.support.studies import threads as threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuning_operator.studies.study.engine import StudyEngine
    from tuning_operator.studies.study.registry import Registry


class Gate:
    """Samplers stop at it until it is opened."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.opened = threading.Event()

    def wait(self) -> None:
        self.arrived.release()
        assert self.opened.wait(60)

    async def until_arrived(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.arrived.acquire, timeout=60)


class SlowSampling(RandomSampler):
    """Proposes nothing before the gate is opened, from some trial on."""

    def __init__(self, gate: Gate, first: int = 0) -> None:
        super().__init__()
        self._gate, self._first = gate, first

    def sample_independent(self, study: Any, trial: FrozenTrial, *args: Any) -> Any:
        if trial.number >= self._first:
            self._gate.wait()
        return super().sample_independent(study, trial, *args)


class SlowEnd(RandomSampler):
    """Lets no trial end before the gate is opened, as BruteForceSampler does when it has many trials."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def after_trial(self, *args: Any) -> None:
        self._gate.wait()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


async def with_two_trials(registry: Registry, name: str) -> StudyEngine:
    engine = await declared(registry, key=StudyKey("ml", name))
    assert await ask(engine, 2) == [0, 1]
    return engine


async def test_sampling_delays_no_result_declaration_or_load(
    registry: Registry, servers: Servers, gate: Gate
) -> None:
    other = await with_two_trials(registry, "other")
    sampling = []
    for number in range(SAMPLING_THREADS + 1):
        engine = await declared(registry, key=StudyKey("ml", f"sampling-{number}"))
        engine.study.sampler = SlowSampling(gate)
        sampling.append(asyncio.create_task(ask(engine, 1)))
    await gate.until_arrived(SAMPLING_THREADS)
    async with asyncio.timeout(60):
        assert (await other.tell(0, complete(0.5))).state == "COMPLETE"
        assert await other.report(1, [(0, 0.5)]) is False
        declared_now = await declared(registry, definition(warmStart="other"), StudyKey("ml", "declared"))
        assert declared_now.counts.copied == 1
        loaded = await servers.start().find(StudyKey("ml", "other"))
        assert (await loaded.summary()).counts.running == 1
        assert await registry.unsettled()
        await registry.forget(StudyKey("ml", "other"))
    assert not any(task.done() for task in sampling)
    gate.opened.set()
    assert await asyncio.gather(*sampling) == [[0]] * len(sampling)


async def test_a_samplers_work_at_a_trials_end_delays_no_other_study(registry: Registry, gate: Gate) -> None:
    other = await with_two_trials(registry, "other")
    ending = []
    for number in range(SAMPLING_THREADS + 4):
        engine = await with_two_trials(registry, f"ending-{number}")
        engine.study.sampler = SlowEnd(gate)
        ending += [asyncio.create_task(engine.tell(number, complete(0.5))) for number in range(2)]
    await gate.until_arrived(SAMPLING_THREADS + 4)
    async with asyncio.timeout(60):
        await other.tell(0, complete(0.5))
        assert await ask(other, 2) == [1, 2]
        await declared(registry, key=StudyKey("ml", "declared"))
    assert not any(task.done() for task in ending)
    gate.opened.set()
    await asyncio.gather(*ending)
    assert RESULT_THREADS > SAMPLING_THREADS + 4


async def test_a_study_has_one_sampling_thread_at_most(registry: Registry, gate: Gate) -> None:
    engines = [await declared(registry, key=StudyKey("ml", name)) for name in ("greedy", "other")]
    engines[0].study.sampler = SlowSampling(gate)
    greedy = [asyncio.create_task(ask(engines[0], SAMPLING_THREADS * 2)) for _ in range(SAMPLING_THREADS)]
    await gate.until_arrived(1)
    async with asyncio.timeout(60):
        assert await ask(engines[1], 3) == [0, 1, 2]
    assert not gate.arrived.acquire(blocking=False)
    gate.opened.set()
    await asyncio.gather(*greedy)
    assert engines[0].counts.running == SAMPLING_THREADS * 2


async def test_trials_without_parameters_are_not_shown(registry: Registry, gate: Gate) -> None:
    """They were created with the one that gets its parameters now."""
    engine = await declared(registry)
    assert await ask(engine, 1) == [0]
    engine.study.sampler = SlowSampling(gate, first=2)
    asking = asyncio.create_task(ask(engine, 5))
    await gate.until_arrived(1)
    assert len(engine.study.trials) == 5
    assert [trial.number for trial in (await engine.summary()).running] == [0, 1]
    again = asyncio.create_task(ask(engine, 5))
    redefined = asyncio.create_task(registry.declare(KEY, definition(pruner={"name": "NopPruner"})))
    assert not engine.idle
    gate.opened.set()
    assert await asking == await again == [0, 1, 2, 3, 4]
    assert (await redefined).counts.running in range(2, 6)


async def test_a_study_that_is_deleted_ends_trials_without_parameters(registry: Registry, gate: Gate) -> None:
    engine = await declared(registry)
    engine.study.sampler = SlowSampling(gate, first=1)
    asking = asyncio.create_task(ask(engine, 5))
    await gate.until_arrived(1)
    forgetting = asyncio.create_task(registry.forget(KEY))
    while not engine.gone:  # noqa: ASYNC110  set without an event
        await asyncio.sleep(0)
    gate.opened.set()
    await forgetting
    await asyncio.wait([asking])
    assert [trial.state.name for trial in engine.study.trials] == ["PRUNED"] * 5
