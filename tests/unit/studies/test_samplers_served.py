"""Samplers as the server uses them: through restarts and changes of the definition."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from tuning_operator.protocol import AskRequest, StudyDefinition, StudyKey, TellRequest
from tuning_operator.studies.errors import Refused
from tuning_operator.studies.storage.base import MemoryStore
from tuning_operator.studies.study.context import Context, Threads
from tuning_operator.studies.study.engine import StudyEngine
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry

KEY = StudyKey("ml", "mnist")
X = {"name": "x", "type": "float", "low": 0, "high": 1}
N = {"name": "n", "type": "int", "low": 1, "high": 3}
DEEP = {
    "name": "deep",
    "type": "categorical",
    "choices": ["a", "b"],
    "when": {"parameter": "n", "atLeast": 3},
}


def definition(name: str, *space: dict[str, Any], **more: Any) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "objectives": [{"metric": "loss", "direction": "minimize"}],
            "searchSpace": list(space) or None,
            "sampler": {"name": name, "args": {"seed": 7}},
        }
        | more
    )


class Server:
    """A study server's studies; another one with the same store is the server after a restart."""

    def __init__(self, store: MemoryStore, threads: Threads) -> None:
        async def unsettled() -> list[StudyKey]:
            return await self.registry.unsettled()

        self.registry = Registry(Context(store, threads, ChangeFeed(unsettled)))

    async def run(self, wanted: StudyDefinition, total: int) -> StudyEngine:
        """Declare the study and complete trials one at a time, up to `total` or until there are no more."""
        await self.registry.declare(KEY, wanted)
        engine = await self.registry.find(KEY)
        while running := (await engine.ask(AskRequest(parallelism=1, max_trials=total))).running:
            values = [float(running[0].parameters.get("x", 0.0))]
            await engine.tell(running[0].number, TellRequest(state="COMPLETE", values=values))
        return engine


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.close()


@pytest.mark.parametrize("name", ["RandomSampler", "TPESampler"])
async def test_a_restart_repeats_no_suggestion(name: str, threads: Threads) -> None:
    store, wanted = MemoryStore(), definition(name, X)
    for total in (3, 6, 9):
        engine = await Server(store, threads).run(wanted, total)
    found = [(await engine.record(number)).parameters["x"] for number in range(9)]
    assert len(set(found)) == 9


async def test_another_sampler_with_the_same_seed_repeats_no_suggestion(threads: Threads) -> None:
    server = Server(MemoryStore(), threads)
    await server.run(definition("RandomSampler", X), 3)
    engine = await server.run(definition("TPESampler", X), 6)
    assert isinstance(engine.study.sampler, optuna.samplers.TPESampler)
    assert len({(await engine.record(number)).parameters["x"] for number in range(6)}) == 6


async def test_conditions_and_restarts_leave_out_no_combination(threads: Threads) -> None:
    store, wanted = MemoryStore(), definition("BruteForceSampler", N, DEEP)
    for total in (2, 3, 100):
        engine = await Server(store, threads).run(wanted, total)
    summary = await engine.summary()
    tried = [(await engine.record(number)).parameters for number in range(summary.counts.complete)]
    expected = [{"n": 1}, {"n": 2}, {"n": 3, "deep": "a"}, {"n": 3, "deep": "b"}]
    assert sorted(tried, key=str) == sorted(expected, key=str)
    assert summary.exhausted


async def test_initial_trials_are_of_the_parameters_types(threads: Threads) -> None:
    wanted = definition("TPESampler", N, DEEP, X, initialTrials=[{"n": 3.0, "deep": "b", "x": 1}])
    engine = await Server(MemoryStore(), threads).run(wanted, 1)
    found = (await engine.record(0)).parameters
    assert found == {"n": 3, "deep": "b", "x": 1.0}
    assert [type(value) for value in found.values()] == [int, str, float]


async def test_all_mistakes_of_a_definition_are_reported(threads: Threads) -> None:
    wanted = definition("GridSampler", X, DEEP, pruner={"name": "MedianPruner", "args": {"warmup": 1}})
    server = Server(MemoryStore(), threads)
    with pytest.raises(Refused) as refused:
        await server.registry.declare(KEY, wanted)
    fields = [problem.field for problem in refused.value.problems]
    assert fields == ["searchSpace[1].when.parameter", "pruner.args.warmup"]
    assert await server.registry.unsettled() == []
