"""Every reply and every mark in the change feed follows the durable record."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from tuning_operator.protocol import (
    AskRequest,
    AttributesRequest,
    Failure,
    RefitRequest,
    SuggestRequest,
    TellRequest,
)
from tuning_operator.studies.definition import tpe
from tuning_operator.studies.study import context

from tests.support.studies import KEY, HeldStore, Servers, ask, complete, declared, definition
from tests.support.studies import threads as threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tuning_operator.studies.study.context import Threads
    from tuning_operator.studies.study.engine import StudyEngine

FLOAT = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}


@pytest.fixture
async def store() -> HeldStore:
    return HeldStore()


@pytest.fixture
def servers(threads: Threads, store: HeldStore) -> Servers:
    return Servers(threads, store)


@pytest.fixture
async def engine(servers: Servers) -> StudyEngine:
    """A study with a complete trial 0, and trials 1 and 2 running."""
    median = {"name": "MedianPruner", "args": {"n_startup_trials": 1}}
    engine = await declared(servers.start(), definition(pruner=median, searchSpace=None))
    await ask(engine, 2)
    await engine.report(0, [(0, 0.9)])
    await engine.tell(0, complete(0.9))
    await ask(engine, 2)
    return engine


async def is_pending(task: asyncio.Future[Any]) -> bool:
    """Return whether a request still waits once everything else has been done that can be."""
    done, _ = await asyncio.wait([task], timeout=0.05)
    return not done


async def when(condition: Callable[[], bool]) -> None:
    """Return when a thread has made the condition true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  a thread makes it true, without an event
            await asyncio.sleep(0)


REQUESTS: dict[str, Callable[[StudyEngine], Awaitable[Any]]] = {
    "summary": lambda engine: engine.summary(),
    "ask": lambda engine: engine.ask(AskRequest(parallelism=2, max_trials=9)),
    "tell": lambda engine: engine.tell(1, complete(0.5)),
    "tell again": lambda engine: engine.tell(0, complete(0.5)),
    "record": lambda engine: engine.record(1),
    "view": lambda engine: engine.view(1),
    "whole": lambda engine: engine.whole(),
    "report": lambda engine: engine.report(1, [(0, 0.95)]),
    "report to a finished trial": lambda engine: engine.report(0, [(5, 0.95)]),
    "suggest": lambda engine: engine.suggest(1, SuggestRequest(name="x", distribution=FLOAT)),
    "attributes": lambda engine: engine.set_attributes(1, AttributesRequest(user_attrs={"a": 1})),
    "attributes of a finished trial": lambda engine: engine.set_attributes(0, AttributesRequest()),
    "begin": lambda engine: engine.refit.begin(RefitRequest(trial=0, digest="d")),
    "begin again": lambda engine: engine.refit.begin(RefitRequest(trial=0, digest="before")),
    "refit's attributes": lambda engine: engine.refit.set_attributes(AttributesRequest()),
    "refit's result again": lambda engine: engine.refit.tell(complete(1), engine.definition, by_pod=True),
    "refit's view": lambda engine: engine.refit.view(engine.definition),
}


@pytest.mark.parametrize("request_", REQUESTS)
async def test_no_reply_before_the_record_is_durable(
    engine: StudyEngine, store: HeldStore, request_: str
) -> None:
    await engine.refit.begin(RefitRequest(trial=0, digest="before"))
    await engine.refit.tell(complete(0.5), engine.definition, by_pod=True)
    store.hold()
    reply = asyncio.ensure_future(REQUESTS[request_](engine))
    assert await is_pending(reply)
    store.let_go()
    await asyncio.wait_for(reply, 240)


async def test_a_summary_waits_for_a_result_that_another_request_sent(
    engine: StudyEngine, store: HeldStore
) -> None:
    store.hold()
    result = asyncio.create_task(engine.tell(1, complete(0.5)))
    await when(lambda: engine.counts.complete == 2)
    summary = asyncio.create_task(engine.summary())
    assert await is_pending(summary)
    assert not result.done()
    store.let_go()
    assert (await summary).counts.complete == 2


@pytest.mark.parametrize(
    ("change", "done"),
    [
        (lambda engine: engine.tell(1, complete(0.5)), lambda engine: engine.counts.complete == 2),
        (lambda engine: engine.tell(1, TellRequest(state="FAIL")), lambda engine: engine.counts.fail),
        (
            lambda engine: engine.report(1, [(0, 0.1)]),
            lambda engine: "tuning:prune_requested" in engine.study.frozen(1).system_attrs,
        ),
        (
            lambda engine: engine.refit.begin(RefitRequest(trial=0, digest="d")),
            lambda engine: engine.refit.record,
        ),
    ],
    ids=["complete", "fail", "prune", "refit"],
)
@pytest.mark.parametrize("waits", [True, False], ids=["the caller waits", "the caller has left"])
async def test_the_feed_names_a_change_once_it_is_durable(
    servers: Servers, engine: StudyEngine, store: HeldStore, change: Any, done: Any, waits: bool
) -> None:
    cursor = (await servers.feed.after(None, 0)).cursor
    store.hold()
    request = asyncio.create_task(change(engine))
    await when(lambda: done(engine))
    assert await is_pending(request)
    if not waits:
        request.cancel()
    assert (await servers.feed.after(cursor, 0)).studies == []
    store.let_go()
    assert (await servers.feed.after(cursor, 30)).studies == [KEY]
    await asyncio.sleep(0)
    assert not engine._context._announcing, "nothing stays in memory"


async def test_a_change_is_announced_though_the_database_took_too_long_for_the_reply(
    servers: Servers, engine: StudyEngine, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "COMMIT_SECONDS", 0.01)
    cursor = (await servers.feed.after(None, 0)).cursor
    store.hold()
    with pytest.raises(TimeoutError):
        await engine.tell(1, complete(0.5))
    assert (await servers.feed.after(cursor, 0)).studies == []
    store.let_go()
    assert (await servers.feed.after(cursor, 30)).studies == [KEY]


async def test_a_refused_write_is_not_in_the_summary(engine: StudyEngine, store: HeldStore) -> None:
    """Another process has failed the trial: memory, which had a result, is corrected during the commit."""
    store.hold()
    result = asyncio.create_task(engine.tell(1, complete(0.5)))
    await when(lambda: engine.counts.complete == 2)
    summary = asyncio.create_task(engine.summary())
    assert await is_pending(summary)
    trials = store.storage._studies[engine.study.study_id].trials  # type: ignore[attr-defined]
    trials[1].state, trials[1].values = TrialState.FAIL, None
    store.conflict_count += 1
    store.let_go()
    assert (await summary).counts.complete == 1
    assert (await result).state == "FAIL"


REFUSED: dict[str, dict[int, tuple[TrialState, list[float] | None]]] = {
    "failed": {5: (TrialState.FAIL, None)},
    "two failed": {4: (TrialState.FAIL, None), 5: (TrialState.FAIL, None)},
    "another value": {5: (TrialState.COMPLETE, [9.0])},
}
TPE: dict[str, Any] = {"name": "TPESampler", "args": {"seed": 5, "n_startup_trials": 3}}
FIXED: dict[str, Any] = {
    "name": "PartialFixedSampler",
    "args": {"fixed_params": {"x": 0.5}, "base_sampler": TPE},
}


@pytest.mark.parametrize("sampler", [TPE, FIXED], ids=["TPE", "TPE in another"])
@pytest.mark.parametrize("ends", REFUSED)
@pytest.mark.filterwarnings("ignore")
async def test_parameters_are_proposed_from_the_corrected_record(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, ends: str, sampler: dict[str, Any]
) -> None:
    """Another process has ended trials first, and Optuna, which keeps no history, proposes the same then."""

    async def parameters() -> list[Any]:
        store = HeldStore()
        space = [{"name": name, "type": "float", "low": 0, "high": 1} for name in "xy"]
        engine = await declared(
            Servers(threads, store).start(), definition(sampler=sampler, searchSpace=space)
        )
        for number in range(10):
            await ask(engine, 1)
            if number == 6:
                trials = store.storage._studies[engine.study.study_id].trials  # type: ignore[attr-defined]
                for refused, (state, values) in REFUSED[ends].items():
                    trials[refused] = copy.copy(trials[refused])
                    trials[refused].state, trials[refused].values = state, values
                store.conflict_count += 1
            await engine.tell(number, complete(number / 10))
        return [trial.params for trial in engine.study.trials]

    ours = await parameters()
    monkeypatch.setattr(tpe.TPESampler, "_sample", optuna.samplers.TPESampler._sample)
    monkeypatch.setattr(tpe.TPESampler, "_sample_relative", optuna.samplers.TPESampler._sample_relative)
    assert ours == await parameters()


async def test_a_result_that_another_process_sent_first_is_announced(
    servers: Servers, engine: StudyEngine, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        async def durable(self) -> None:
            raise UpdateFinishedTrialError

    cursor = (await servers.feed.after(None, 0)).cursor
    with pytest.raises(UpdateFinishedTrialError):
        await engine._context.announce(KEY, Refused())
    assert (await servers.feed.after(cursor, 0)).studies == [KEY]


async def test_a_deleted_study_is_announced_once_its_end_is_durable(
    servers: Servers, engine: StudyEngine, store: HeldStore
) -> None:
    cursor = (await servers.feed.after(None, 0)).cursor
    store.hold()
    stopping = asyncio.create_task(engine.stop(Failure(category="StudyDeleted", message="deleted")))
    await when(lambda: engine.counts.pruned == 2)
    assert (await servers.feed.after(cursor, 0)).studies == []
    store.let_go()
    await stopping
    assert (await servers.feed.after(cursor, 0)).studies == [KEY]


async def test_the_records_of_a_namespace_are_read_once_the_writes_before_are_durable(
    servers: Servers, store: HeldStore
) -> None:
    registry = servers.start()
    await declared(registry)
    store.hold()
    records = asyncio.create_task(registry.records(KEY.namespace))
    assert await is_pending(records)
    store.let_go()
    assert [record.name for record in (await records).records] == [KEY.name]
