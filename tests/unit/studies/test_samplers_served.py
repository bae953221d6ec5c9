"""Samplers as the server uses them: through restarts and changes of the definition."""

from typing import Any

import optuna
import pytest
from tuning_operator.protocol import AskRequest, StudyDefinition, StudyKey, TellRequest
from tuning_operator.studies.errors import Conflict, Refused
from tuning_operator.studies.storage.base import MemoryStore
from tuning_operator.studies.study.context import Context, Threads
from tuning_operator.studies.study.engine import StudyEngine
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry

from tests.support.studies import threads as threads

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


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_grid_that_has_been_tried_goes_on_with_more_values(threads: Threads, restarted: bool) -> None:
    server = Server(store := MemoryStore(), threads)
    assert (await server.run(definition("GridSampler", N), 100)).counts.complete == 3
    larger = definition("GridSampler", N | {"high": 5})
    engine = await (Server(store, threads) if restarted else server).run(larger, 100)
    tried = [(await engine.record(number)).parameters["n"] for number in range(3, engine.trials)]
    assert sorted(tried) == [1, 2, 3, 4, 5]
    assert (await engine.summary()).exhausted


@pytest.mark.parametrize("listed", [{}, {"search_space": {"n": [1, 3]}}])
async def test_a_grid_is_tried_for_each_value_of_a_fixed_parameter(
    threads: Threads, listed: dict[str, Any]
) -> None:
    server = Server(MemoryStore(), threads)
    for x in (0.25, 0.75):
        arguments = {"fixed_params": {"x": x}, "base_sampler": {"name": "GridSampler", "args": listed}}
        wanted = definition("", N, X, sampler={"name": "PartialFixedSampler", "args": arguments})
        engine = await server.run(wanted, 100)
    found = [(await engine.record(number)).parameters for number in range(engine.trials)]
    points = [{"n": n, "x": x} for x in (0.25, 0.75) for n in ([1, 3] if listed else [1, 2, 3])]
    assert sorted(found, key=str) == sorted(points, key=str)


async def test_a_grid_that_has_been_tried_has_ended_for_another_seed_too(threads: Threads) -> None:
    server = Server(MemoryStore(), threads)
    await server.run(definition("GridSampler", N), 100)
    another = definition("GridSampler", N, sampler={"name": "GridSampler", "args": {"seed": 8}})
    summary = await (await server.run(another, 100)).summary()
    assert (summary.counts.complete, summary.exhausted) == (3, True)


async def test_brute_force_that_has_ended_goes_on_with_other_arguments(threads: Threads) -> None:
    """It has tried everything by what it knows; at most one trial is repeated."""
    server = Server(MemoryStore(), threads)
    await server.run(definition("BruteForceSampler", N), 100)
    strict = {"name": "BruteForceSampler", "args": {"avoid_premature_stop": True}}
    summary = await (await server.run(definition("", N, sampler=strict), 100)).summary()
    assert (summary.counts.complete, summary.exhausted) == (4, True)


async def test_brute_force_needs_the_ranges_of_the_record(threads: Threads) -> None:
    """Optuna's BruteForceSampler fails at a trial with another range."""
    server = Server(MemoryStore(), threads)
    await server.run(definition("BruteForceSampler", N), 2)
    fixed = {"fixed_params": {"x": 0.5}, "base_sampler": {"name": "BruteForceSampler", "args": {}}}
    for larger in (
        definition("BruteForceSampler", N | {"high": 5}),
        definition("", N | {"high": 5}, X, sampler={"name": "PartialFixedSampler", "args": fixed}),
    ):
        with pytest.raises(Conflict) as refused:
            await server.registry.declare(KEY, larger)
        (problem,) = refused.value.problems
        assert problem.field == "searchSpace[0]"
        assert "use another sampler" in problem.message
    await server.run(definition("TPESampler", N | {"high": 5}), 3)


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
