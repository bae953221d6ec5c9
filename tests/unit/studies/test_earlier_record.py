"""What happens to the record that an earlier TuningStudy of the same name left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState
from tuning_operator.protocol import RefitRequest, StudyDefinition, StudyKey
from tuning_operator.studies.errors import Conflict, NotFound
from tuning_operator.studies.storage import PostgresStore
from tuning_operator.studies.storage.base import MemoryStore, Store
from tuning_operator.studies.study.context import Threads

from tests.support.studies import KEY, Servers, X, ask, complete, declared, definition
from tests.support.studies import registry as registry
from tests.support.studies import servers as servers
from tests.support.studies import threads as threads

if TYPE_CHECKING:
    from tuning_operator.studies.study.registry import Registry

KIND = {"name": "kind", "type": "categorical", "choices": ["a", "b"]}
UNITS = {"name": "units", "type": "int", "low": 1, "high": 9, "when": {"parameter": "kind", "equals": "a"}}


def first(**changes: Any) -> StudyDefinition:
    return definition(uid="first", **changes)


def second(**changes: Any) -> StudyDefinition:
    return definition(uid="second", **changes)


async def leave_record(registry: Registry, trials: int = 2, **changes: Any) -> None:
    """Run trials of the first resource, which is then deleted."""
    engine = await declared(registry, first(**changes))
    await ask(engine, trials)
    for number in range(trials):
        await engine.tell(number, complete(*[0.5] * len(engine.definition.objectives)))
    await registry.forget(KEY)


async def refusals(registry: Registry, declaration: StudyDefinition) -> dict[str, str]:
    with pytest.raises(Conflict) as refused:
        await registry.declare(KEY, declaration)
    return {problem.field: problem.message for problem in refused.value.problems}


async def test_it_is_continued_by_default_and_reported(registry: Registry) -> None:
    await leave_record(registry)
    summary = await registry.declare(KEY, second())
    assert (summary.uid, summary.continued, summary.counts.complete) == ("second", 2, 2)
    again = await registry.declare(KEY, second(searchSpace=[X | {"high": 2}]))
    assert again.continued == 2, "an edit of the living resource is no continuation"
    assert await ask(await registry.find(KEY), 1) == [2]


async def test_a_living_study_continues_nothing(registry: Registry, servers: Servers) -> None:
    await declared(registry, first())
    await ask(await registry.find(KEY), 1)
    changed = first(existingRecord="Replace", searchSpace=[X | {"high": 2}])
    for server in (registry, servers.start()):
        summary = await server.declare(KEY, changed)
        assert (summary.continued, summary.counts.running) == (None, 1)


async def test_a_record_without_a_uid_is_the_studys_own(registry: Registry) -> None:
    await leave_record(registry)
    assert (await registry.declare(KEY, definition())).continued is None
    assert (await registry.declare(KEY, second(existingRecord="Replace"))).counts.complete == 2


async def test_it_is_replaced_on_request(registry: Registry, servers: Servers) -> None:
    await leave_record(registry)
    replacing = second(existingRecord="Replace", objectives=[{"metric": "loss", "direction": "minimize"}])
    summary = await registry.declare(KEY, replacing)
    assert (summary.continued, summary.counts.complete) == (None, 0)
    assert await ask(await registry.find(KEY), 1) == [0]
    assert (await servers.start().declare(KEY, replacing)).counts.running == 1, "once"


async def test_it_is_refused_on_request(registry: Registry) -> None:
    await leave_record(registry, trials=1)
    [(field, message)] = (await refusals(registry, second(existingRecord="Refuse"))).items()
    assert field == "existingRecord"
    assert message == (
        "there is a record of ml/mnist with 1 trial, which an earlier TuningStudy of this name left: set "
        "existingRecord to Continue to continue it, or to Replace to delete it and start from scratch, or "
        "give the study another name"
    )
    assert (await (await registry.find(KEY)).summary()).uid == "first"
    assert (await registry.declare(KEY, second(existingRecord="Continue"))).continued == 1


@pytest.mark.parametrize("value", ["Continue", "Refuse"])
async def test_a_record_without_trials_is_replaced(registry: Registry, value: str) -> None:
    await declared(registry, first(initialTrials=[{"x": 0.5}]))
    await registry.forget(KEY)
    minimized = [{"metric": "loss", "direction": "minimize"}]
    summary = await registry.declare(KEY, second(existingRecord=value, objectives=minimized))
    assert (summary.continued, summary.counts.waiting) == (None, 0)


async def test_another_metric_is_refused(registry: Registry) -> None:
    await leave_record(registry)
    renamed = second(objectives=[{"metric": "loss", "direction": "maximize"}])
    assert await refusals(registry, renamed) == {
        "objectives": "the record of ml/mnist has values of the metric acc: keep the metric, set "
        "existingRecord to Replace, which deletes the record and starts from scratch, or give the study "
        "another name"
    }


async def test_another_direction_is_refused(registry: Registry) -> None:
    await leave_record(registry)
    found = await refusals(registry, second(objectives=[{"metric": "acc", "direction": "minimize"}]))
    assert "directions maximize, which can't change: keep them, set existingRecord to" in found["objectives"]


@pytest.mark.parametrize(
    ("left", "now", "field", "message"),
    [
        ([X], [X | {"low": 2, "high": 3}], "searchSpace[0]", "trial 0 in the record of ml/mnist has x = 0."),
        ([X], [X | {"log": True, "low": 1e-9}], "searchSpace[0]", "the scale of x can't change from linear"),
        ([X, KIND], [X], "searchSpace", "has the parameter kind, which is not declared: declare it, set "),
        ([X], [X, KIND], "searchSpace[1]", "has no parameter kind: remove it, set existingRecord to Replace"),
        (
            [KIND],
            [KIND | {"choices": ["c"]}],
            "searchSpace[0]",
            "which the search space excludes: include it",
        ),
        ([KIND], [KIND | {"choices": ["a", "b", "c"]}], "searchSpace[0]", "the choices of kind can't change"),
    ],
)
async def test_trials_outside_the_search_space_are_refused(
    registry: Registry, left: list[Any], now: list[Any], field: str, message: str
) -> None:
    await leave_record(registry, searchSpace=left)
    found = await refusals(registry, second(searchSpace=now))
    assert list(found) == [field]
    assert message in found[field]
    assert "set existingRecord to Replace, which deletes the record and starts from scratch" in found[field]
    fresh = await registry.declare(KEY, second(searchSpace=now, existingRecord="Replace"))
    assert fresh.counts.complete == 0


async def test_an_enqueued_trial_outside_the_search_space_is_refused(registry: Registry) -> None:
    engine = await declared(registry, first(initialTrials=[{"x": 0.75}, {"x": 0.25}]))
    await ask(engine, 1)
    await registry.forget(KEY)
    found = await refusals(registry, second(searchSpace=[X | {"low": 0.5}]))
    assert "trial 1 in the record of ml/mnist has x = 0.25" in found["searchSpace[0]"]


async def test_trials_that_fit_a_conditional_space_are_continued(registry: Registry) -> None:
    await leave_record(registry, trials=6, searchSpace=[KIND, UNITS])
    assert (await registry.declare(KEY, second(searchSpace=[KIND, UNITS]))).continued == 6


async def test_without_a_search_space_any_trial_fits(registry: Registry) -> None:
    await leave_record(registry)
    assert (await registry.declare(KEY, second(searchSpace=None))).continued == 2


async def test_failed_trials_fit_anything(registry: Registry) -> None:
    engine = await declared(registry, first(searchSpace=[KIND]))
    engine.study.enqueue_trial({"kind": "c"})
    await ask(engine, 1)
    assert engine.counts.fail == 1
    assert (await registry.declare(KEY, second(searchSpace=[X]))).continued == 1


@pytest.mark.parametrize("forgotten", [True, False])
async def test_trials_that_were_running_are_no_failures(
    registry: Registry, servers: Servers, forgotten: bool
) -> None:
    """With `kubectl replace --force`, the operator may see only the new resource."""
    engine = await declared(registry, first())
    await ask(engine, 2)
    await engine.tell(0, complete(0.5))
    await engine.refit.begin(RefitRequest(trial=0, digest="d"))
    if forgotten:
        await registry.forget(KEY)
    summary = await registry.declare(KEY, second())
    assert (summary.counts.complete, summary.counts.pruned, summary.counts.fail) == (1, 1, 0)
    assert (summary.running, summary.refit, summary.continued) == ([], None, 2)
    assert servers.optuna().trials[1].state == TrialState.PRUNED
    stopped = (await (await registry.find(KEY)).record(1)).failure
    assert stopped
    assert stopped.category == "StudyDeleted"


async def test_a_record_that_was_to_be_deleted_is_not_continued(registry: Registry) -> None:
    """The resource was deleted while the operator was away."""
    engine = await declared(registry, first(deletionPolicy="Delete"))
    await ask(engine, 1)
    summary = await registry.declare(KEY, second(existingRecord="Refuse"))
    assert (summary.continued, summary.counts.running, summary.counts.pruned) == (None, 0, 0)


async def test_initial_trials_are_tried_once_over_both(registry: Registry) -> None:
    engine = await declared(registry, first(initialTrials=[{"x": 0.25}]))
    await ask(engine, 2)
    summary = await registry.declare(KEY, second(initialTrials=[{"x": 0.25}, {"x": 0.75}]))
    assert (summary.counts.pruned, summary.counts.waiting) == (2, 1)


async def test_a_namespace_that_was_deleted_after_its_studies(registry: Registry) -> None:
    await leave_record(registry, namespaceUid="former")
    await declared(registry, first(namespaceUid="former"), StudyKey("ml", "living"))
    assert await registry.namespaces() == [("ml", "former")]
    await registry.forget_namespace("ml", "another")
    assert len((await registry.records("ml")).records) == 2
    await registry.forget_namespace("ml", "former")
    assert await registry.namespaces() == []
    assert [record.name for record in (await registry.records("ml")).records] == ["living"]
    assert [record.name for record in (await registry.records("ml@former")).records] == ["mnist"]


async def test_each_of_several_namespaces_of_one_name_is_reported(registry: Registry) -> None:
    for uid in ("former", "present"):
        key = StudyKey("ml", uid)
        await declared(registry, first(namespaceUid=uid), key)
        await registry.forget(key)
    assert await registry.namespaces() == [("ml", "former"), ("ml", "present")]


@pytest.mark.parametrize("deletion_was_seen", [True, False])
@pytest.mark.parametrize("storage", ["memory", "postgres"])
async def test_a_namespace_that_was_created_again_does_not_see_the_record(
    request: pytest.FixtureRequest, threads: Threads, storage: str, deletion_was_seen: bool
) -> None:
    """The record is kept, under a name that no namespace can have."""
    store: Store = MemoryStore()
    if storage == "postgres":
        store = PostgresStore(request.getfixturevalue("database_url"))
        await store.open()
    servers = Servers(threads, store)
    registry = servers.start()
    await leave_record(registry, namespaceUid="former")
    if deletion_was_seen:
        await registry.forget(KEY, namespace_deleted=True)
        assert (await registry.records("ml")).records == []
        with pytest.raises(NotFound):
            await registry.find(KEY)
        await registry.forget(KEY, namespace_deleted=True)
    summary = await registry.declare(KEY, second(namespaceUid="new"))
    assert (summary.continued, summary.counts.complete) == (None, 0)
    assert [record.trials for record in (await registry.records("ml")).records] == [0]
    for server in (registry, servers.start()):
        [kept] = (await server.records("ml@former")).records
        assert (kept.name, kept.trials) == ("mnist", 2)
        assert (await server.find(StudyKey("ml@former", "mnist"))).counts.complete == 2
    await store.close()


async def test_a_record_is_deleted_with_its_namespace_if_its_definition_says_so(registry: Registry) -> None:
    await declared(registry, first(namespaceUid="former", deletionPolicy="Delete"))
    await registry.forget(KEY, namespace_deleted=True)
    assert (await registry.records("ml@former")).records == []


async def test_records_of_deleted_studies_expire(registry: Registry) -> None:
    other = StudyKey("ml", "living")
    await leave_record(registry)
    await declared(registry, key=other)
    await registry.expire(datetime.now(UTC) - timedelta(days=1))
    assert len((await registry.records("ml")).records) == 2
    await registry.declare(KEY, second())
    await registry.expire(datetime.now(UTC))
    assert len((await registry.records("ml")).records) == 2, "another TuningStudy continues the record"
    await registry.forget(KEY)
    await registry.expire(datetime.now(UTC))
    assert [record.name for record in (await registry.records("ml")).records] == ["living"]
