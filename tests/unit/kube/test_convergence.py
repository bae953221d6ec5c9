"""From any events, in any order, with any call failing: the operator converges and keeps its promises.

A random history happens to a study with a refit: pods start, report, are pruned, crash, are deleted, hang on
their image; the user edits the spec; a quota or an admission policy refuses Jobs for a while; calls to
Kubernetes and to the study server fail before or after their effect; the operator is killed and restarted.
Then nothing fails any more, and the study must come to a clean end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_operator.kube.plan.actions import Ask, Start, Tell
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.refit import due, is_new
from tuning_operator.kube.plan.verdict import judge
from tuning_operator.kube.plan.work import Refit, Trial
from tuning_operator.resource import names
from tuning_operator.resource.study import RefitSpec

from tests.unit.kube.builders import NOW, decision, diagnosis, study, summary, trial
from tests.unit.kube.faults import Faults, can_fail
from tests.unit.kube.history import ERRORS, FAULTS, History, steps
from tests.unit.kube.world import COMPLETE, FAILED, KEY, REFIT, World

if TYPE_CHECKING:
    from tuning_operator.kube.loop.reconciler import Reconciler
    from tuning_operator.protocol import RefitRequest

MAX_TRIALS = 6


class RefitHistory(History):
    """A study with a refit."""

    def __init__(self, world: World, *, parallelism: int = 2, max_trials: int = MAX_TRIALS) -> None:
        super().__init__(world, parallelism=parallelism, max_trials=max_trials)
        world.kube.slow.add(REFIT)
        world.server.on_begin = self.check_begin

    def due(self) -> Refit | None:
        record = self.world.server.summarize(KEY)
        return due(self.study, record, judge(self.study, record, 0, self.world.now))

    # --- what must hold

    def check(self) -> None:
        super().check()
        trials = self.world.server.trials.get(KEY, [])
        for number in self.world.jobs:
            assert number < len(trials), "a Job without a trial in the record"
        phase = self.world.status.get("phase")
        assert (self.world.status.get("completionTime") is not None) == (phase in ("Completed", "Failed"))
        self._check_refit()

    def _check_refit(self) -> None:
        job = self.world.refit
        if job is None or not self.world.refit_lives():
            return
        record = self.world.server.refits.get(KEY)
        assert record, "a Job of no refit"
        labels = job["metadata"]["labels"]
        retries, number = job["spec"]["backoffLimit"], int(labels[names.LABEL_TRIAL])
        digest = Refit.of(RefitSpec(retries=retries), number).digest
        assert labels[names.LABEL_DIGEST] == digest, "it runs something else than its labels say"
        assert digest == record.digest or "deletionTimestamp" in job["metadata"], "two refits at once"

    def check_begin(self, request: RefitRequest) -> None:
        """What no refit may begin without."""
        record = self.world.server.summarize(KEY)
        verdict = judge(self.study, record, 0, self.world.now)
        assert verdict, "a refit of a study that continues"
        assert verdict.phase == "Completed"
        assert not record.running, "trials still run"
        assert not self.study.spec.suspend
        wanted = self.due()
        assert wanted
        assert request == wanted.request
        assert not self.world.refit_lives(), "pods of the previous refit would report for the wrong one"

    def check_grace(self) -> None:
        running = {trial.number for trial in self.world.server.running(KEY)}
        assert set(self.world.alive()) <= running, "a run whose trial has ended"
        job, record = self.world.refit, self.world.server.refits.get(KEY)
        if job and self.world.refit_lives() and "deletionTimestamp" not in job["metadata"]:
            assert record, "a run of no refit"
            assert record.state == "RUNNING", "a run whose refit has ended"
            assert job["metadata"]["labels"][names.LABEL_DIGEST] == record.digest, "a run of an earlier refit"

    # --- what happens

    def happens(self, event: str, pick: int) -> None:
        world = self.world
        if event == "edit refit":
            world.edit(refit=None if pick == 0 else {"retries": pick})
        if alive := world.alive():
            self.trial(event, alive[pick % len(alive)])
            self._node(event, alive[pick % len(alive)])
        if world.refit_lives():
            self.refit(event)

    def trial(self, event: str, number: int) -> None:
        world = self.world
        match event:
            case "begins":
                world.begin(number)
            case "completes":
                world.succeed(number, value=number * 7 % 5 / 10)
            case "reports only":
                world.server.end(KEY, number, "COMPLETE", 0.7)
            case "is to be pruned":
                world.server.request_prune(KEY, number, world.now)
            case "obeys":
                world.succeed(number, "PRUNED")
            case "crashes":
                world.crash(number)
            case "exits without a report":
                world.end_job(number, succeeded=1, conditions=COMPLETE)
            case "is deleted":
                world.delete_job(number)
            case "hangs on its image":
                world.fail_pull(number)

    def _node(self, event: str, number: int) -> None:
        match event:
            case "is lost":
                self.world.lose(number)
            case "is rejected":
                self.world.reject(number, "gpu-1" if number % 2 else "gpu-2")

    def refit(self, event: str) -> None:
        world = self.world
        match event:
            case "refit begins":
                world.begin_refit()
            case "refit completes":
                world.complete_refit(model="/models/1")
            case "an attempt fails":
                world.fail_attempt()
            case "refit fails":
                world.end_refit(failed=3, conditions=FAILED)
            case "refit ends without a report":
                world.end_refit(succeeded=1, conditions=COMPLETE)
            case "refit reports only":
                world.server.complete_refit(KEY)
            case "refit is gone":
                world.remove_refit()

    # --- the end

    async def complete(self) -> None:
        world = self.world
        for _ in range(3 * self.most_trials + 6):
            await world.settle()
            self.check()
            for number in world.alive():
                world.begin(number)
                world.succeed(number)
            if world.refit_lives():
                world.begin_refit()
                world.complete_refit()
            if world.refit and "deletionTimestamp" in world.refit["metadata"]:
                world.remove_refit()
            world.advance(1)
        await world.settle()
        await self.check_rest()
        self._check_trials()
        self._check_the_refit()

    def _check_trials(self) -> None:
        world = self.world
        trials = world.server.trials[KEY]
        assert world.alive() == []
        counts = world.status["trials"]
        assert counts["complete"] + counts["pruned"] + counts["failed"] == len(trials)
        assert world.status["progress"] == f"{len(trials)}/{self.max_trials}"

    def _check_the_refit(self) -> None:
        wanted, record = self.due(), self.world.server.refits.get(KEY)
        refit = self.world.status.get("refit")
        assert not (wanted and is_new(wanted, record)), "the refit that is due was begun"
        assert record is None or record.state in ("COMPLETE", "FAIL"), "and has come to its end"
        if record:
            assert refit
            assert refit["phase"] == {"COMPLETE": "Completed", "FAIL": "Failed"}[record.state]
            assert refit["trial"] == record.trial
        elif self.study.spec.refit and self.world.status["phase"] == "Completed":
            assert refit
            assert (refit["phase"], "No trial completed" in refit["message"]) == ("Failed", True)


STEPS = steps(
    "begins", "completes", "completes", "reports only", "is to be pruned", "obeys", "crashes",
    "exits without a report", "is deleted", "is lost", "is rejected", "hangs on its image", "edit refit",
    "refit begins", "refit completes", "an attempt fails", "refit fails", "refit ends without a report",
    "refit reports only", "refit is gone",
)  # fmt: skip
SIZES = st.sampled_from([1, MAX_TRIALS])
"""A study of one trial comes to its refit soon, and to several of them."""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(max_trials=SIZES, steps=STEPS, planned=FAULTS)
def test_any_history_ends_well(
    max_trials: int, steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]
) -> None:
    world = World(maxTrials=max_trials, parallelism=2, maxFailedTrials=100, refit={})
    asyncio.run(RefitHistory(world, max_trials=max_trials).play(steps, planned))


LINGERING = {
    "trial": [("tick", 0), ("begins", 0), ("begins", 1), ("reports only", 0)],
    "refit": [
        ("tick", 0), ("begins", 0), ("completes", 0), ("begins", 0), ("completes", 0), ("tick", 5),
        ("refit begins", 0), ("refit reports only", 0), ("tick", 0),
    ],
    "refit of a study that continues": [
        ("tick", 0), ("begins", 0), ("completes", 0), ("begins", 0), ("completes", 0), ("tick", 5),
        ("refit begins", 0), ("refit reports only", 0), ("more trials", 0), ("tick", 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("refusal", [("quota", 2), ("quota", 0), ("admission denies", 0)])
@pytest.mark.parametrize("what", LINGERING)
async def test_a_run_that_hangs_is_ended_while_jobs_are_refused(what: str, refusal: tuple[str, int]) -> None:
    """A quota that the hanging run uses up would otherwise never be free again."""
    max_trials = 3 if what == "trial" else 2
    world = World(maxTrials=max_trials, parallelism=2, refit={})
    history = RefitHistory(world, max_trials=max_trials)
    *before, last = LINGERING[what]
    await history.play([*before, refusal, last], {})


async def _life_of_trials(faults: Faults) -> None:
    """Run a study whose trials complete, ignore the pruner, crash, are deleted."""
    history = RefitHistory(World(maxTrials=4, parallelism=2), max_trials=4)
    world = history.world
    world.start_operator(faults)
    fates = {0: ["completes"], 1: ["is to be pruned"], 2: ["crashes"], 3: ["is deleted", "completes"]}
    for _ in range(30):
        await world.tick()
        history.check()
        if world.status.get("phase") == "Completed":
            break
        for number in world.alive():
            world.begin(number)
            if fates[number]:
                history.trial(fates[number].pop(0), number)
        world.advance(12)
    assert world.status["phase"] == "Completed"
    assert world.server.running(KEY) == []
    assert [t.state for t in world.server.trials[KEY]] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]


async def _life_of_a_refit(faults: Faults) -> None:
    """Run a study whose refit fails, is changed, and completes."""
    history = RefitHistory(World(maxTrials=1, parallelism=1, refit={}), parallelism=1, max_trials=1)
    world = history.world
    world.start_operator(faults)

    async def rest() -> None:
        for _ in range(12):
            after = await world.tick()
            history.check()
            world.advance(12)
            if after == float("inf"):
                return

    life = ["completes", "refit begins", "an attempt fails", "refit fails", "edit refit", "refit begins"]
    life += ["edit refit", "refit is gone", "refit begins", "refit completes", "edit refit", "refit begins"]
    retries = iter((1, 3, 2))
    for event in [*life, "refit completes"]:
        await rest()
        await history.step(event, next(retries) if event == "edit refit" else 0)
        if event == "refit fails":
            await rest()
            assert world.status["refit"]["phase"] == "Failed"
            assert world.server.refits[KEY].failure is not None, "and the reason is recorded"
    await rest()
    assert world.server.refits[KEY].state == "COMPLETE"
    assert world.status["refit"]["phase"] == "Completed"
    assert len(world.server.begun) == 4, "the first, and one for each edit"


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ["conflict", "invalid", "server error", "unavailable", "killed"])
@pytest.mark.parametrize("life", [_life_of_trials, _life_of_a_refit], ids=["trials", "refit"])
async def test_each_call_may_fail(life: Any, error: str, late: bool) -> None:
    """One fault, at each call of a whole life in turn, before or after its effect."""
    undisturbed = Faults()
    await life(undisturbed)
    places = [n for n, call in enumerate(undisturbed.calls) if can_fail(call, error, late=late)]
    assert places
    for n in places:
        await life(Faults({n: (ERRORS[error](), late)}))


async def test_two_operators_do_no_harm() -> None:
    """Their passes run interleaved, call by call."""
    world = World(maxTrials=8, parallelism=3, refit={})
    history = RefitHistory(world, parallelism=3, max_trials=8)
    first = world.reconciler
    world.start_operator()
    second = world.reconciler

    async def both() -> None:
        async def one(reconciler: Reconciler) -> None:
            world.reconciler = reconciler
            await world.tick()

        await asyncio.gather(one(first), one(second))
        history.check()

    for _ in range(40):
        await both()
        for number in world.alive():
            world.begin(number)
            if number in (r.number for r in world.server.running(KEY)):
                world.succeed(number)
                break
    assert world.status["progress"] == "8/8"
    assert world.status["trials"]["complete"] == 8
    assert world.refit_lives()
    world.complete_refit()
    for _ in range(6):
        await both()
    assert len(world.kube.named("Job")) == 9
    assert len(world.server.begun) == 1
    assert world.status["refit"]["phase"] == "Completed"


RUN_STATES = st.sampled_from(["starting", "running", "ended", "stopping"])
CATEGORIES = st.sampled_from(["ImagePull", "Unschedulable", "Capacity", "OutOfMemory", "Quota"])


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Anything that could be seen, sensible or not."""
    numbers = draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
    running = [
        trial(n, prune_requested=NOW if draw(st.booleans()) else None) for n in numbers if draw(st.booleans())
    ]
    runs = {
        Trial(n): Run(draw(RUN_STATES), diagnosis(draw(CATEGORIES), NOW) if draw(st.booleans()) else None)
        for n in numbers
        if draw(st.booleans())
    }
    counts = {kind: draw(st.integers(0, 6)) for kind in ("complete", "pruned", "fail")}
    return Observation(summary(*running, **counts), runs)


@settings(deadline=None)
@given(
    seen=observations(), suspend=st.booleans(), parallelism=st.integers(1, 4), max_trials=st.integers(1, 12)
)
def test_whatever_is_seen(seen: Observation, suspend: bool, parallelism: int, max_trials: int) -> None:
    """decide holds its promises on any observation, not only those that the simulated world comes to."""
    given_study = study(suspend=suspend, parallelism=parallelism, maxTrials=max_trials)
    plan = decision(given_study, seen, NOW)
    assert seen.summary is not None
    running = {Trial(t.number) for t in seen.summary.running}
    asks = [action for action in plan.actions if isinstance(action, Ask)]
    assert len(asks) <= 1
    counts = seen.summary.counts
    started = len(running) + counts.complete + counts.pruned + counts.fail
    assert not asks or (len(running) < parallelism and started < max_trials and not suspend)
    starts = [action.work for action in plan.actions if isinstance(action, Start)]
    assert len(starts) == len(set(starts))
    assert set(starts) <= running - set(seen.runs), "a Job only for a running trial that has none"
    results = [action.work for action in plan.actions if isinstance(action, Tell)]
    assert len(results) == len(set(results))
    assert set(results) <= running
    if plan.status.phase in ("Completed", "Failed"):
        assert set(results) == running, "nothing is left RUNNING"
    assert plan == decision(given_study, seen, NOW), "pure"
