"""One study: how asking, reporting and results change the record, before and after a restart."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import TrialState
from tuning_operator.protocol import (
    AttributesRequest,
    Failure,
    StudyDefinition,
    StudyKey,
    SuggestRequest,
    TellRequest,
)
from tuning_operator.studies.errors import Conflict, NotFound, Refused
from tuning_operator.studies.storage.base import StorageUnavailable
from tuning_operator.studies.study import engine as engines
from tuning_operator.studies.study import scoreboard

from tests.support.studies import KEY, Servers, X, ask, complete, declared, definition
from tests.support.studies import registry as registry
from tests.support.studies import servers as servers
from tests.support.studies import threads as threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_operator.studies.study import scoreboard
from tuning_operator.studies.study.registry import Registry

FLOAT = FloatDistribution(0, 1)


def several(**changes: Any) -> StudyDefinition:
    objectives = [{"metric": "acc", "direction": "maximize"}, {"metric": "size", "direction": "minimize"}]
    return definition(objectives=objectives, **changes)


def suggestion(name: str, distribution: optuna.distributions.BaseDistribution = FLOAT) -> SuggestRequest:
    return SuggestRequest(name=name, distribution=json.loads(distribution_to_json(distribution)))


# Asking


async def test_running_trials_are_topped_up_to_parallelism(registry: Registry) -> None:
    engine = await declared(registry)
    assert await ask(engine, 3) == [0, 1, 2]
    assert await ask(engine, 3) == [0, 1, 2]
    await engine.tell(1, complete(0.5))
    assert await ask(engine, 3) == [0, 2, 3]
    assert await ask(engine, 1) == [0, 2, 3], "no trial is stopped when parallelism shrinks"


async def test_all_trials_stay_within_max_trials(registry: Registry) -> None:
    engine = await declared(registry)
    assert await ask(engine, 9, max_trials=2) == [0, 1]
    await engine.tell(0, TellRequest(state="FAIL"))
    assert await ask(engine, 9, max_trials=2) == [1]
    assert await ask(engine, 9, max_trials=3) == [1, 2]


async def test_a_request_that_takes_long_starts_sixteen(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await declared(registry)
    monkeypatch.setattr(engines, "ASK_SECONDS", 0)
    assert len(await ask(engine, 100)) == 16
    assert len(await ask(engine, 100)) == 32
    monkeypatch.setattr(engines, "ASK_SECONDS", 60)
    assert len(await ask(engine, 100)) == 100


async def test_simultaneous_requests_start_as_many_as_one_would(registry: Registry) -> None:
    engine = await declared(registry)
    await asyncio.gather(*(ask(engine, 5, max_trials=7) for _ in range(10)))
    assert engine.counts.running == 5


async def test_initial_trials_come_first_and_count(registry: Registry, servers: Servers) -> None:
    points = [{"x": 0.25}, {"x": 0.5}, {"x": 0.75}]
    engine = await declared(registry, definition(initialTrials=points))
    assert engine.counts.waiting == 3
    assert await ask(engine, 2, max_trials=2) == [0, 1]
    assert await ask(engine, 4, max_trials=2) == [0, 1], "the third would be one too many"
    assert await ask(engine, 4, max_trials=4) == [0, 1, 2, 3]
    assert [trial.params["x"] for trial in servers.optuna().trials[:3]] == [0.25, 0.5, 0.75]


async def test_each_initial_trial_is_enqueued_once(registry: Registry, servers: Servers) -> None:
    points = [{"x": 0.25}, {"x": 0.75}]
    await declared(registry, definition(initialTrials=points))
    engine = await declared(registry, definition(initialTrials=points, deletionPolicy="Delete"))
    assert engine.counts.waiting == 2
    assert await ask(engine, 1) == [0]
    engine = await declared(servers.start(), definition(initialTrials=[{"x": 0.5}, *points]))
    assert engine.counts.waiting == 2, "the new one is added"
    assert await ask(engine, 3) == [0, 1, 2]
    assert (await engine.record(2)).parameters == {"x": 0.5}


class BrokenSampler(optuna.samplers.RandomSampler):
    """Raises what CMA-ES raises for an x0 that lacks a parameter, in the way that `broken` says."""

    broken = ""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if self.broken == "before_trial":
            raise KeyError("y")

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        if self.broken == "relative":
            raise KeyError("y")
        return {}

    def sample_independent(self, *args: Any, **kwargs: Any) -> Any:
        if self.broken == "independent":
            raise AssertionError
        return super().sample_independent(*args, **kwargs)


@pytest.mark.parametrize("broken", ["before_trial", "relative", "independent"])
@pytest.mark.parametrize("space", [[X], None])
async def test_whatever_optuna_raises_ends_that_trial(
    registry: Registry, servers: Servers, broken: str, space: list[Any] | None
) -> None:
    engine = await declared(registry, definition(searchSpace=space))
    engine.study.sampler = sampler = BrokenSampler()
    sampler.broken = broken
    running = await ask(engine, 1)
    cursor = (await servers.feed.after(None, 0)).cursor
    if running:
        assert (space, running) == (None, [0])
        with pytest.raises(Refused, match="x: TPESampler could not propose parameters: ") as refused:
            await engine.suggest(0, suggestion("x"))
        assert "Correct spec.sampler" in str(refused.value)
        assert (await servers.feed.after(cursor, 0)).studies == [("ml", "mnist")], "the operator learns of it"
        with pytest.raises(Conflict, match=r"trial 0 has already ended \(FAIL\)"):
            await engine.suggest(0, suggestion("x"))
    assert engine.counts.fail == 1
    failure = (await engine.record(0)).failure
    assert failure
    words = "AssertionError" if broken == "independent" else "KeyError: 'y'"
    assert (failure.category, failure.message) == (
        "NotProposed",
        f"TPESampler could not propose parameters: {words}",
    )
    sampler.broken = ""
    assert await ask(engine, 1) == [1], "later trials are not affected"


class FailingOnce(optuna.samplers.RandomSampler):
    """Proposes nothing for one trial; `before` is called before each proposal."""

    def __init__(self, number: int, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self._number, self._before = number, before

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._before(trial.number)
        if trial.number == self._number:
            raise KeyError("y")


async def test_a_sampler_that_proposes_nothing_fails_one_trial_for_each_request(registry: Registry) -> None:
    engine = await declared(registry)
    engine.study.sampler = FailingOnce(0)
    assert await ask(engine, 8) == []
    assert engine.counts.fail == engine.trials == 1
    assert await ask(engine, 3) == [1, 2, 3]


async def test_a_trial_that_fails_leaves_those_that_were_created_with_it(registry: Registry) -> None:
    engine = await declared(registry)
    engine.study.sampler = FailingOnce(2)
    assert await ask(engine, 5) == [0, 1, 3, 4, 5]
    assert engine.counts.fail == 1


@pytest.mark.parametrize("at", ["created", "proposed"])
async def test_a_database_that_is_away_while_trials_start(
    registry: Registry, servers: Servers, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The next request starts those that were created, also if that was known too late."""
    engine, add_trials, asked = await declared(registry), servers.store.add_trials, []

    def add(study_id: int, trials: Any) -> list[int]:
        asked.append(len(trials))
        ids = add_trials(study_id, trials)
        if at == "created" and len(asked) == 2:
            raise StorageUnavailable("away")
        return ids

    def before(number: int) -> None:
        if at == "proposed" and number == 2 and asked.count(0) == 0:
            asked.append(0)
            raise StorageUnavailable("away")

    monkeypatch.setattr(servers.store, "add_trials", add)
    engine.study.sampler = FailingOnce(-1, before)
    with pytest.raises(TimeoutError):
        await ask(engine, 4)
    assert await ask(engine, 4) == [0, 1, 2, 3]
    assert sum(asked) == engine.trials == 4
    assert all(trial.params for trial in engine.study.trials)


async def test_others_are_noticed_that_start_trials_at_the_same_time(
    registry: Registry, servers: Servers
) -> None:
    engine, theirs = await declared(registry), servers.optuna()
    engine.study.sampler = FailingOnce(-1, before=lambda number: theirs.ask() if number == 0 else None)
    assert await ask(engine, 2) == [0, 2]
    assert await ask(engine, 3) == [0, 1, 2]


async def test_a_trial_enqueued_by_others_is_started_next(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    servers.optuna().enqueue_trial({"x": 0.125})
    assert await ask(engine, 2) == [0, 1]
    assert (await engine.record(1)).parameters == {"x": 0.125}


async def test_a_conditional_parameter_exists_where_its_condition_holds(
    registry: Registry, servers: Servers
) -> None:
    layers = {"name": "layers", "type": "int", "low": 1, "high": 2}
    units = {
        "name": "units",
        "type": "int",
        "low": 8,
        "high": 64,
        "when": {"parameter": "layers", "atLeast": 2},
    }
    engine = await declared(registry, definition(searchSpace=[layers, units]))
    await ask(engine, 16)
    params = [trial.params for trial in servers.optuna().trials]
    assert {frozenset(trial) for trial in params} == {frozenset({"layers"}), frozenset({"layers", "units"})}
    assert all(("units" in trial) == (trial["layers"] == 2) for trial in params)


async def test_a_trial_that_cannot_be_proposed_fails_and_says_why(registry: Registry) -> None:
    kinds = {"name": "kind", "type": "categorical", "choices": ["a", "b"]}
    engine = await declared(registry, definition(searchSpace=[kinds]))
    engine.study.enqueue_trial({"kind": "c"})
    assert await ask(engine, 1) == []
    failure = (await engine.record(0)).failure
    assert failure
    assert failure.category == "NotProposed"
    assert "'c' not in" in failure.message
    assert await ask(engine, 1) == [1], "the next one is not kept from running"


async def test_a_grid_ends_when_all_is_tried(registry: Registry, servers: Servers) -> None:
    kinds = {"name": "kind", "type": "categorical", "choices": ["a", "b", "c"]}
    grid = definition(searchSpace=[kinds], sampler={"name": "GridSampler", "args": {"seed": 1}})
    engine = await declared(registry, grid)
    for number in range(3):
        assert await ask(engine, 1) == [number]
        assert not (await engine.summary()).exhausted
        await engine.tell(number, complete(1))
    assert (await engine.summary()).exhausted
    assert await ask(engine, 1) == []
    engine = await servers.start().find(KEY)
    assert (await engine.summary()).exhausted
    engine.study.enqueue_trial({"kind": "a"})
    assert await ask(engine, 1) == [3], "an enqueued trial is started all the same"


async def test_a_grid_is_tried_once_at_any_parallelism(registry: Registry) -> None:
    kinds = {"name": "kind", "type": "categorical", "choices": ["a", "b", "c", "d"]}
    engine = await declared(registry, definition(searchSpace=[kinds], sampler={"name": "GridSampler"}))
    assert await ask(engine, 3) == [0, 1, 2]
    await engine.tell(1, complete(1))
    await engine.tell(0, TellRequest(state="FAIL"))
    assert await ask(engine, 3) == [2, 3]
    assert not (await engine.summary()).exhausted
    await engine.tell(3, complete(1))
    await engine.tell(2, complete(1))
    assert (await engine.summary()).exhausted
    assert {(await engine.record(number)).parameters["kind"] for number in range(4)} == {"a", "b", "c", "d"}


async def test_a_grid_does_not_read_all_trials_at_each_start(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{"name": "n", "type": "int", "low": 1, "high": 40}]
    engine = await declared(registry, definition(searchSpace=points, sampler={"name": "GridSampler"}))
    loop_thread, read = threading.current_thread(), engine.study.storage.get_all_trials

    def get_all_trials(*args: Any, **kwargs: Any) -> Any:
        assert kwargs or threading.current_thread() is not loop_thread, "the event loop reads all trials"
        return read(*args, **kwargs)

    monkeypatch.setattr(type(engine.study), "get_trials", None)
    monkeypatch.setattr(engine.study.storage, "get_all_trials", get_all_trials)
    monkeypatch.setattr(engine.study.storage, "get_n_trials", lambda _: len(read(engine.study.study_id)))
    while running := await ask(engine, 9):
        await engine.tell(running[0], complete(1))
    assert engine.counts.complete == 40


async def test_points_of_another_grid_do_not_count(registry: Registry) -> None:
    def grid(*values: int) -> StudyDefinition:
        points = [{"name": "n", "type": "int", "low": 1, "high": 9}]
        sampler = {"name": "GridSampler", "args": {"search_space": {"n": list(values)}}}
        return definition(searchSpace=points, sampler=sampler)

    engine = await declared(registry, grid(1, 2))
    assert await ask(engine, 9) == [0, 1]
    await engine.tell(0, complete(1))
    assert await ask(await declared(registry, grid(3, 4, 5)), 9) == [1, 2, 3, 4]
    tried = {(await engine.record(number)).parameters["n"] for number in range(2, 5)}
    assert tried == {3, 4, 5}


# Suggesting


async def test_the_same_question_gets_the_same_answer(registry: Registry) -> None:
    engine = await declared(registry, definition(searchSpace=None))
    await ask(engine, 1)
    value = await engine.suggest(0, suggestion("x"))
    assert await engine.suggest(0, suggestion("x")) == value
    assert (await engine.record(0)).parameters == {"x": value}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_name_means_one_thing(registry: Registry, servers: Servers, restarted: bool) -> None:
    engine = await declared(registry, definition(searchSpace=None))
    await ask(engine, 2)
    value = await engine.suggest(0, suggestion("x"))
    if restarted:
        engine = await servers.start().find(KEY)
    for number in (0, 1):
        with pytest.raises(Refused, match="x: Cannot set different distribution kind"):
            await engine.suggest(number, suggestion("x", CategoricalDistribution(["a", "b"])))
    assert await engine.suggest(0, suggestion("x", FloatDistribution(0, 2))) == value, "as in Optuna"


async def test_suggesting_goes_on_after_a_restart(registry: Registry, servers: Servers) -> None:
    """In plain Optuna, a new process gets a KeyError here."""
    engine = await declared(
        registry, definition(searchSpace=None, sampler={"name": "RandomSampler", "args": {"seed": 1}})
    )
    await ask(engine, 1)
    x = await engine.suggest(0, suggestion("x"))
    engine = await servers.start().find(KEY)
    assert await engine.suggest(0, suggestion("x")) == x
    y = await engine.suggest(0, suggestion("y"))
    assert servers.optuna().trials[0].params == {"x": x, "y": y}


async def test_a_declared_space_is_all_there_is(registry: Registry) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    assert await engine.suggest(0, suggestion("x")) == (await engine.record(0)).parameters["x"]
    with pytest.raises(Refused, match=r"trial 0 has no parameter y in spec\.searchSpace"):
        await engine.suggest(0, suggestion("y"))


async def test_a_finished_trial_suggests_nothing_new(registry: Registry) -> None:
    engine = await declared(registry, definition(searchSpace=None))
    await ask(engine, 1)
    value = await engine.suggest(0, suggestion("x"))
    await engine.tell(0, complete(1))
    assert await engine.suggest(0, suggestion("x")) == value
    with pytest.raises(Conflict, match=r"trial 0 has already ended \(COMPLETE\)"):
        await engine.suggest(0, suggestion("y"))


@pytest.mark.parametrize("form", [{}, {"name": "Unknown", "attributes": {}}, {"name": "FloatDistribution"}])
async def test_an_invalid_distribution(registry: Registry, form: dict[str, Any]) -> None:
    engine = await declared(registry, definition(searchSpace=None))
    await ask(engine, 1)
    with pytest.raises(Refused, match="distribution"):
        await engine.suggest(0, SuggestRequest(name="x", distribution=form))


# Reporting


async def test_the_first_value_of_a_step_stays(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    assert await engine.report(0, [(0, 0.5), (1, math.inf)]) is False
    assert await engine.report(0, [(1, 0.75), (3, 0.875)]) is False
    assert servers.optuna().trials[0].intermediate_values == {0: 0.5, 1: math.inf, 3: 0.875}


async def test_unpromising_trials_are_asked_to_stop(registry: Registry, servers: Servers) -> None:
    engine = await declared(
        registry, definition(pruner={"name": "MedianPruner", "args": {"n_startup_trials": 1}})
    )
    await ask(engine, 2)
    await engine.report(0, [(0, 0.9)])
    await engine.tell(0, complete(0.9))
    cursor = (await servers.feed.after(None, 0)).cursor
    assert await engine.report(1, [(0, 0.1)]) is True
    requested = (await engine.record(1)).prune_requested
    assert requested is not None
    assert (await servers.feed.after(cursor, 0)).studies == [KEY]
    assert await engine.report(1, [(0, 0.1)]) is True
    assert (await engine.record(1)).prune_requested == requested, "the first request counts"
    record = await (await servers.start().find(KEY)).record(1)
    assert (record.state, record.prune_requested) == ("RUNNING", requested)


async def test_a_finished_trial_that_reports_should_stop(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    await engine.tell(0, TellRequest(state="FAIL"))
    assert await engine.report(0, [(0, 0.5)]) is True
    assert servers.optuna().trials[0].intermediate_values == {}


async def test_reports_that_are_refused(registry: Registry) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    with pytest.raises(Refused, match="step must not be negative"):
        await engine.report(0, [(-1, 0.5)])
    with pytest.raises(NotFound, match="has no trial 1"):
        await engine.report(1, [(0, 0.5)])
    engine.study.enqueue_trial({"x": 0.5})
    with pytest.raises(Conflict, match="trial 1 is waiting"):
        await engine.report(1, [(0, 0.5)])


async def test_several_objectives_take_no_reports(registry: Registry) -> None:
    engine = await declared(registry, several())
    await ask(engine, 1)
    with pytest.raises(Refused, match="several objectives"):
        await engine.report(0, [(0, 0.5)])


# Attributes and constraints


async def test_attributes_and_constraints_are_optunas(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    await engine.set_attributes(
        0, AttributesRequest(user_attrs={"a": [1], "b": 1}, constraints={"memory": 1.5})
    )
    await engine.set_attributes(
        0, AttributesRequest(user_attrs={"b": 2}, constraints={"memory": -1, "time": 0})
    )
    trial = servers.optuna().trials[0]
    assert trial.user_attrs == {"a": [1], "b": 2}
    assert trial.constraints == {"memory": 1.5, "time": 0}, "the first value of a constraint stays"
    view = await engine.view(0)
    assert (view.user_attrs, view.constraints) == (trial.user_attrs, trial.constraints)
    with pytest.raises(Refused, match=r"constraints\.time: NaN"):
        await engine.set_attributes(0, AttributesRequest(constraints={"time": math.nan}))
    await engine.tell(0, complete(1))
    await engine.set_attributes(0, AttributesRequest(user_attrs={"b": 3}, study_attrs={"data": "v2"}))
    assert servers.optuna().trials[0].user_attrs == {"a": [1], "b": 2}
    assert servers.optuna().user_attrs == {}


async def test_trials_set_attributes_of_their_study(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 2)
    await engine.set_attributes(0, AttributesRequest(study_attrs={"data": "v1", "scale": math.inf}))
    await engine.set_attributes(1, AttributesRequest(study_attrs={"data": "v2"}))
    assert servers.optuna().user_attrs == {"data": "v2", "scale": math.inf}


# Results


async def test_the_first_result_stays(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    first = await engine.tell(0, complete(0.5))
    assert await engine.tell(0, complete(0.75)) == first
    assert await engine.tell(0, TellRequest(state="FAIL")) == first
    assert (first.state, first.values) == ("COMPLETE", [0.5])
    assert servers.optuna().best_value == 0.5


async def test_a_late_result_brings_what_the_pod_could_not_send(registry: Registry, servers: Servers) -> None:
    """What is invalid of that, or was sent before, does not matter."""
    engine = await declared(registry)
    await ask(engine, 1)
    await engine.report(0, [(1, 0.25)])
    late = AttributesRequest(user_attrs={"model": "/m"}, constraints={"memory": -1.0})
    request = TellRequest(state="COMPLETE", values=[0.5], attributes=late, reported=[(1, 0.75), (2, 0.5)])
    for _ in range(2):
        record = await engine.tell(0, request)
        assert (record.state, record.values) == ("COMPLETE", [0.5])
    trial = servers.optuna().trials[0]
    assert trial.intermediate_values == {1: 0.25, 2: 0.5}
    assert trial.user_attrs["model"] == "/m"
    assert trial.constraints == {"memory": -1.0}
    await ask(engine, 1)
    invalid = AttributesRequest(constraints={"memory": math.nan})
    assert (await engine.tell(1, TellRequest(state="PRUNED", attributes=invalid))).state == "PRUNED"


async def test_simultaneous_results(registry: Registry) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    records = await asyncio.gather(*(engine.tell(0, complete(value / 10)) for value in range(5)))
    assert all(record == records[0] for record in records)
    assert engine.counts.complete == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "The value None could not be cast to float."),
        ([], "The number of the values 0 did not match the number of the objectives 1"),
        ([0.5, 0.5], "The number of the values 2 did not match the number of the objectives 1"),
        ([math.nan], "The value nan is not acceptable"),
        (["NaN"], "The value nan is not acceptable"),
        ([None], "The value None could not be cast to float"),
        (["high"], "The value 'high' could not be cast to float"),
        (["0.5"], "The value '0.5' could not be cast to float"),
        ([[0.5]], "The value [0.5] could not be cast to float"),
    ],
)
async def test_an_invalid_value_fails_the_trial(registry: Registry, values: Any, message: str) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    record = await engine.tell(0, TellRequest(state="COMPLETE", values=values))
    assert (record.state, record.values) == ("FAIL", None)
    assert record.failure
    assert (record.failure.category, record.failure.message) == ("BadValue", message)
    assert "Return acc as a number" in (record.failure.remedy or "")


@pytest.mark.parametrize("value", [1, math.inf, "-Infinity", True])
async def test_values_that_optuna_takes(registry: Registry, value: Any) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    record = await engine.tell(0, complete(value))
    assert (record.state, record.values) == ("COMPLETE", [float(value)])


@pytest.mark.parametrize(
    ("reported", "value"), [([], None), ([(3, 0.25), (1, 0.5)], [0.25]), ([(0, math.nan)], None)]
)
async def test_a_pruned_trial_has_its_last_report_as_value(
    registry: Registry, reported: list[tuple[int, float]], value: list[float] | None
) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    if reported:
        await engine.report(0, reported)
    record = await engine.tell(0, TellRequest(state="PRUNED"))
    assert (record.state, record.values) == ("PRUNED", value)


@pytest.mark.parametrize("state", ["PRUNED", "FAIL"])
async def test_only_complete_trials_have_values(registry: Registry, state: Any) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    with pytest.raises(Refused, match=f"leave them out of a {state} one"):
        await engine.tell(0, TellRequest(state=state, values=[0.5]))
    assert (await engine.record(0)).state == "RUNNING"


async def test_a_failure_is_kept_where_optunas_tools_show_it(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 2)
    failure = Failure(category="OutOfMemory", message="killed", remedy="ask for more", traceback="at line 1")
    await engine.tell(0, TellRequest(state="FAIL", failure=failure))
    await engine.tell(1, TellRequest(state="FAIL"))
    trials = servers.optuna().trials
    assert trials[0].user_attrs["failure_message"] == trials[0].system_attrs["fail_reason"] == "killed"
    assert trials[0].user_attrs["failure_traceback"] == "at line 1"
    again = await servers.start().find(KEY)
    assert (await again.record(0)).failure == failure
    without_reason = (await again.record(1)).failure
    assert without_reason
    assert without_reason.category == "Unknown"
    first, second = (await again.summary()).recent_failures
    assert (first.number, first.failure) == (0, failure.model_copy(update={"traceback": None}))
    assert second == await again.record(1)


async def test_a_result_is_in_the_feed(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    cursor = (await servers.feed.after(None, 0)).cursor
    await engine.tell(0, complete(0.5))
    assert (await servers.feed.after(cursor, 0)).studies == [KEY]


# Declaring and forgetting


async def test_directions_cannot_change(registry: Registry, servers: Servers) -> None:
    await declared(registry)
    minimized = definition(objectives=[{"metric": "acc", "direction": "minimize"}])
    for server in (registry, servers.start()):
        with pytest.raises(Conflict, match="objectives: the record of ml/mnist has the directions maximize"):
            await server.declare(KEY, minimized)


async def test_a_study_declared_again_must_be_compatible_with_its_record(registry: Registry) -> None:
    kinds = {"name": "kind", "type": "categorical", "choices": ["a", "b"]}
    engine = await declared(registry, definition(searchSpace=[X, kinds]))
    await ask(engine, 1)
    await registry.forget(KEY)
    wider = definition(searchSpace=[X | {"high": 2}, kinds])
    assert await ask(await declared(registry, wider), 1) == [1]
    other = definition(searchSpace=[X | {"low": 1, "log": True}, kinds | {"choices": ["a"]}])
    with pytest.raises(Conflict) as refused:
        await registry.declare(KEY, other)
    assert [problem.field for problem in refused.value.problems] == ["searchSpace[0]", "searchSpace[1]"]
    scale, choices = [problem.message for problem in refused.value.problems]
    assert scale.startswith("the scale of x can't change from linear in the record of ml/mnist: keep it, ")
    assert choices.startswith("the choices of kind can't change from ['a', 'b'] in the record of ml/mnist")
    assert "give the study another name" in str(refused.value)
    assert "optuna delete-study --study-name ml/mnist" in str(refused.value)
    numbers = kinds | {"type": "int", "low": 1, "high": 2}
    del numbers["choices"]
    with pytest.raises(Conflict, match="the type of kind can't change from categorical"):
        await registry.declare(KEY, definition(searchSpace=[X, numbers]))
    assert (await registry.find(KEY)).definition == wider


@pytest.mark.parametrize(
    ("namespace", "way_out"),
    [
        (
            "ml",
            "delete the TuningStudy and apply it again with existingRecord: Replace, which deletes the "
            "record",
        ),
        ("local", "delete it with its trials (tuning rm mnist)"),
    ],
)
async def test_how_to_start_over_from_a_record_of_its_own(
    registry: Registry, namespace: str, way_out: str
) -> None:
    key = StudyKey(namespace, "mnist")
    await registry.declare(key, definition(uid="1"))
    minimized = definition(uid="1", objectives=[{"metric": "acc", "direction": "minimize"}])
    with pytest.raises(Conflict) as refused:
        await registry.declare(key, minimized)
    assert str(refused.value).endswith(f": keep them, give the study another name, or {way_out}")
    if namespace == "ml":
        await registry.forget(key)
        again = minimized.model_copy(update={"uid": "2", "existing_record": "Replace"})
        assert (await registry.declare(key, again)).counts.complete == 0


async def test_a_study_needs_to_be_declared(registry: Registry, servers: Servers) -> None:
    with pytest.raises(NotFound, match="ml/mnist not found"):
        await registry.find(KEY)
    optuna.create_study(study_name="ml/mnist", storage=servers.store.storage, direction="maximize")
    with pytest.raises(NotFound, match="ml/mnist not found"):
        await registry.find(KEY)


async def test_a_study_of_plain_optuna_is_taken_on(registry: Registry, servers: Servers) -> None:
    study = optuna.create_study(study_name="ml/mnist", storage=servers.store.storage, direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    engine = await declared(registry)
    assert engine.counts.complete == 3
    assert (await engine.summary()).best == await engine.record(study.best_trial.number)
    assert await ask(engine, 1) == [3]


async def test_a_server_that_starts_needs_no_operator(registry: Registry, servers: Servers) -> None:
    engine = await declared(registry, definition(initialTrials=[{"x": 0.5}]))
    await ask(engine, 2)
    await engine.tell(0, complete(0.5))
    again = await servers.start().find(KEY)
    assert again.definition == engine.definition
    assert (await again.summary()) == await engine.summary()


async def test_metric_names_are_shown_in_the_dashboard(registry: Registry, servers: Servers) -> None:
    await declared(registry, several())
    assert servers.optuna().metric_names == ["acc", "size"]


async def test_the_sampler_keeps_its_state_when_something_else_changes(
    registry: Registry, servers: Servers
) -> None:
    engine = await declared(registry)
    sampler = engine.study.sampler
    await registry.declare(KEY, definition(pruner={"name": "NopPruner"}))
    assert engine.study.sampler is sampler
    assert isinstance(engine.study.pruner, optuna.pruners.NopPruner)
    await registry.declare(KEY, definition(sampler={"name": "RandomSampler"}))
    assert isinstance(engine.study.sampler, optuna.samplers.RandomSampler)
    again = await servers.start().find(KEY)
    assert isinstance(again.study.sampler, optuna.samplers.RandomSampler)


async def test_trials_that_a_crash_left_without_parameters_get_them(
    registry: Registry, servers: Servers
) -> None:
    engine = await declared(registry)
    trials = [engine.study.ask() for _ in range(3)]  # and the server dies before a suggestion
    again = await servers.start().find(KEY)
    for trial in trials:
        assert (await again.record(trial.number)).parameters.keys() == {"x"}
    assert await ask(again, 3) == [0, 1, 2]


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_a_deleted_study_leaves_no_trial_running(
    registry: Registry, servers: Servers, policy: str
) -> None:
    engine = await declared(registry, definition(deletionPolicy=policy))
    await ask(engine, 2)
    await engine.tell(0, complete(0.5))
    await registry.forget(KEY)
    with pytest.raises(NotFound):  # a request that was on its way starts nothing
        await ask(engine, 2)
    if policy == "Delete":
        with pytest.raises(KeyError):
            servers.optuna()
    else:
        study = servers.optuna()
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
        assert study.trials[1].user_attrs["failure_category"] == "StudyDeleted"
    await registry.forget(KEY)
    engine = await declared(registry)
    assert await ask(engine, 1) == [2 if policy == "Retain" else 0]


async def test_the_front_in_the_summary_has_a_trial_that_reaches_the_targets(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoreboard, "FRONT_SIZE", 3)
    goals = [{"metric": metric, "direction": "minimize", "target": 2} for metric in ("loss", "size")]
    engine = await declared(registry, definition(objectives=goals))
    for number in await ask(engine, 5):
        await engine.tell(number, complete(4 - number, number))
    summary = await engine.summary()
    assert [trial.number for trial in summary.pareto_front] == [0, 2, 4]
    assert summary.front_size == 5


async def test_unsettled_studies(registry: Registry, servers: Servers) -> None:
    async def declare(name: str, running: bool, policy: str) -> None:
        key = StudyKey("ml", name)
        await registry.declare(key, definition(deletionPolicy=policy))
        await ask(await registry.find(key), int(running))

    await declare("idle", False, "Retain")
    await declare("running", True, "Retain")
    await declare("a-to-delete", False, "Delete")
    optuna.create_study(study_name="not-ours", storage=servers.store.storage).ask()
    assert await servers.start().unsettled() == [StudyKey("ml", "running"), StudyKey("ml", "a-to-delete")]


@pytest.mark.parametrize("with_namespace", [True, False])
async def test_an_operator_that_starts_looks_whether_a_study_was_deleted(
    registry: Registry, servers: Servers, with_namespace: bool
) -> None:
    await declared(registry, definition(uid="u", namespaceUid="n"))
    assert await servers.start().unsettled() == [KEY]
    await registry.forget(KEY, namespace_deleted=with_namespace)
    assert await servers.start().unsettled() == []
    assert await registry.namespaces() == ([] if with_namespace else [("ml", "n")])
