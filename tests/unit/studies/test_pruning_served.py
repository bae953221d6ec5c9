"""Pruning in the study server: a report that is sent again gets the same reply, after a restart too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.protocol import AskRequest, StudyDefinition, StudyKey, TellRequest
from tuning_operator.resource.study import Pruner
from tuning_operator.studies.storage.base import MemoryStore
from tuning_operator.studies.study.context import Context, Threads
from tuning_operator.studies.study.feed import ChangeFeed
from tuning_operator.studies.study.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tuning_operator.studies.study.engine import StudyEngine

KEY = StudyKey("ml", "mnist")
PRUNERS: dict[str, dict[str, Any]] = {
    "MedianPruner": {"n_startup_trials": 1},
    "PercentilePruner": {"percentile": 50.0, "n_startup_trials": 1},
    "SuccessiveHalvingPruner": {"min_resource": 1, "reduction_factor": 2},
    "HyperbandPruner": {"min_resource": 1, "max_resource": 3},
    "ThresholdPruner": {"upper": 1.5},
}
TRIALS = 12
STEPS = (1, 2, 3, 4)


def definition(pruner: str) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "objectives": [{"metric": "loss", "direction": "minimize"}],
            "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
            "sampler": {"name": "RandomSampler", "args": {"seed": 1}},
            "pruner": {"name": pruner, "args": PRUNERS[pruner]},
        }
    )


@pytest.fixture
def start() -> Iterator[Callable[[], Registry]]:
    """Starts a server on the one record there is."""
    store = MemoryStore()

    async def unsettled() -> list[StudyKey]:
        return []

    threads = Threads()
    yield lambda: Registry(Context(store, threads, ChangeFeed(unsettled)))
    threads.close()


def loss(number: int, step: int) -> float:
    return 1 + (number * 7 % 5) / 5 + 1 / step


async def next_trial(engine: StudyEngine, number: int) -> None:
    await engine.ask(AskRequest(parallelism=1, max_trials=number + 1))
    assert (await engine.record(number)).state == "RUNNING"


async def end(engine: StudyEngine, number: int, *, pruned: bool) -> None:
    result: dict[str, Any] = (
        {"state": "PRUNED"} if pruned else {"state": "COMPLETE", "values": [loss(number, 5)]}
    )
    await engine.tell(number, TellRequest.model_validate(result))


@pytest.mark.parametrize("restarting", [False, True], ids=["same server", "new server"])
@pytest.mark.parametrize("pruner", PRUNERS)
async def test_a_report_sent_again_gets_the_same_answer(
    start: Callable[[], Registry], pruner: str, restarting: bool
) -> None:
    registry = start()
    await registry.declare(KEY, definition(pruner))
    engine = await registry.find(KEY)
    stopped = 0
    for number in range(TRIALS):
        await next_trial(engine, number)
        prune = False
        for step in STEPS:
            prune = await engine.report(number, [(step, loss(number, step))])
            if restarting:
                engine = await start().find(KEY)
            assert await engine.report(number, [(step, loss(number, step))]) == prune
            if prune:
                break
        stopped += prune
        await end(engine, number, pruned=prune)
    assert stopped > 0


async def test_a_pruner_can_change_in_the_middle_of_a_trial(start: Callable[[], Registry]) -> None:
    """The new one takes earlier reports into account, and the rungs of running trials."""
    registry = start()
    await registry.declare(KEY, definition("SuccessiveHalvingPruner"))
    engine = await registry.find(KEY)
    await next_trial(engine, 0)
    await engine.report(0, [(1, 2.0)])
    await registry.declare(KEY, definition("MedianPruner"))
    assert isinstance(engine.study.pruner, optuna.pruners.MedianPruner)
    await end(engine, 0, pruned=False)
    await next_trial(engine, 1)
    assert await engine.report(1, [(1, 3.0)]), "worse than the median of trial 0"
    await registry.declare(KEY, definition("SuccessiveHalvingPruner"))
    await end(engine, 1, pruned=False)
    await next_trial(engine, 2)
    assert await engine.report(2, [(1, 2.5)]), "worse than trial 0 at the first rung"


REASONS = {
    "MedianPruner": r"At step (\d), its best value so far \([\d.]+\) is worse than [\d.]+, "
    r"the median of \d+ completed trials? at this step\.",
    "PercentilePruner": r"At step (\d), its best value .* is worse than [\d.]+, the median of .*",
    "SuccessiveHalvingPruner": r"At step (\d) with the value [\d.]+, "
    r"it is not among the best 1/2 of the \d+ trials? that reached rung \d \([\d.]+ or less\)\.",
    "HyperbandPruner": r"At step (\d) with the value [\d.]+, it is not among the best 1/3 of .*",
    "ThresholdPruner": r"ThresholdPruner pruned it at step (\d) with the value [\d.]+, "
    r"which is above upper, [\d.]+\.",
}


@pytest.mark.parametrize("pruner", PRUNERS)
async def test_why_a_trial_is_pruned_is_recorded(start: Callable[[], Registry], pruner: str) -> None:
    registry = start()
    await registry.declare(KEY, definition(pruner))
    engine = await registry.find(KEY)
    reasons = []
    for number in range(TRIALS):
        await next_trial(engine, number)
        for step in STEPS:
            if prune := await engine.report(number, [(step, loss(number, step))]):
                reason = (await engine.record(number)).prune_reason
                found = re.fullmatch(REASONS[pruner], reason or "")
                assert found, reason
                assert int(found[1]) == step
                reasons.append(reason)
                break
        await end(engine, number, pruned=prune)
        record = await engine.record(number)
        assert (record.prune_reason is not None) == prune
    assert reasons


@pytest.mark.parametrize(
    ("pruner", "args", "values", "reason"),
    [
        (
            "ThresholdPruner",
            {"lower": 0.5},
            [0.25],
            "at step 0 with the value 0.25, which is below lower, 0.5.",
        ),
        ("ThresholdPruner", {"lower": 0.5}, [float("nan")], "with the value nan, which is not a number."),
        (
            "SuccessiveHalvingPruner",
            {"bootstrap_count": 2, "min_early_stopping_rate": 0, "min_resource": 1},
            [0, 0.25],
            "At step 1 with the value 0.25, it is one of the first 2 trials that reach rung 0, which are "
            "pruned (bootstrap_count).",
        ),
    ],
)
async def test_reasons_name_the_argument_that_decided(
    start: Callable[[], Registry], pruner: str, args: dict[str, Any], values: list[float], reason: str
) -> None:
    registry = start()
    await registry.declare(
        KEY,
        definition("MedianPruner").model_copy(update={"pruner": Pruner(name=pruner, args=args)}),
    )
    engine = await registry.find(KEY)
    await next_trial(engine, 0)
    assert await engine.report(0, list(enumerate(values)))
    assert ((await engine.record(0)).prune_reason or "").endswith(reason)


async def test_the_wilcoxon_pruner_names_its_threshold(start: Callable[[], Registry]) -> None:
    registry = start()
    pruner = Pruner(name="WilcoxonPruner", args={"p_threshold": 0.25, "n_startup_steps": 0})
    await registry.declare(KEY, definition("MedianPruner").model_copy(update={"pruner": pruner}))
    engine = await registry.find(KEY)
    for number, value in enumerate((0.0, 1.0)):
        await next_trial(engine, number)
        prune = await engine.report(number, [(step, value + step / 100) for step in range(8)])
        await end(engine, number, pruned=prune)
    assert (await engine.record(1)).prune_reason == (
        "WilcoxonPruner pruned it at step 7 with the value 1.07: the trial's values are worse than those of "
        "the best trial, with p below 0.25 (p_threshold)."
    )


async def test_the_threshold_is_the_one_that_decided(start: Callable[[], Registry]) -> None:
    registry = start()
    await registry.declare(KEY, definition("MedianPruner"))
    engine = await registry.find(KEY)
    await next_trial(engine, 0)
    await engine.report(0, [(3, 0.25)])
    await end(engine, 0, pruned=False)
    await next_trial(engine, 1)
    assert await engine.report(1, [(3, 0.5)])
    assert (await engine.record(1)).prune_reason == (
        "At step 3, its best value so far (0.5) is worse than 0.25, "
        "the median of 1 completed trial at this step."
    )
    assert (await (await start().find(KEY)).record(1)).prune_reason, "it is in the record"
