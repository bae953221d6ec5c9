"""Whatever happens to a refit, wherever the operator is killed: one at a time, and each comes to its end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_operator.kube.plan.refit import due, is_new
from tuning_operator.kube.plan.verdict import judge
from tuning_operator.kube.plan.work import refit_request
from tuning_operator.protocol import RefitRequest
from tuning_operator.resource import names
from tuning_operator.resource.study import RefitSpec, TuningStudy

from tests.unit.kube.faults import KUBE_ERRORS, SERVER_ERRORS, Faults
from tests.unit.kube.world import FAILED, KEY, REFIT, World

ERRORS = KUBE_ERRORS | SERVER_ERRORS


class RefitWorld(World):
    """A study of few trials with a refit, whose pods take their time to end."""

    def __init__(self, **spec: object) -> None:
        super().__init__(**{"maxTrials": 1, "parallelism": 1, "maxFailedTrials": 100, "refit": {}, **spec})
        self.max_trials = 1
        self.kube.slow.add(REFIT)
        self.server.on_begin = self.check_begin

    @property
    def study(self) -> TuningStudy:
        return TuningStudy.model_validate(self.kube.study())

    def due(self) -> RefitRequest | None:
        summary = self.server.summarize(KEY)
        return due(self.study, summary, judge(self.study, summary, self.now))

    def check_begin(self, request: RefitRequest) -> None:
        """What no refit may begin without."""
        summary = self.server.summarize(KEY)
        verdict = judge(self.study, summary, self.now)
        assert verdict, "a refit of a study that goes on"
        assert verdict.phase == "Completed"
        assert not summary.running, "trials still run"
        assert not self.study.spec.suspend
        assert request == self.due()
        assert not self.refit_lives(), "pods of the refit before it would tell for the wrong one"

    def check(self) -> None:
        """What must hold after every step."""
        job = self.refit
        if job is None or not self.refit_lives():
            return
        record = self.server.refits.get(KEY)
        assert record, "a Job of no refit"
        labels = job["metadata"]["labels"]
        retries, trial = job["spec"]["backoffLimit"], int(labels[names.LABEL_TRIAL])
        digest = refit_request(RefitSpec(retries=retries), trial).digest
        assert labels[names.LABEL_DIGEST] == digest, "it runs something else than it says"
        assert digest == record.digest or "deletionTimestamp" in job["metadata"], "two refits at once"

    def step(self, event: str, pick: int) -> None:
        for number in self.alive()[:1]:
            self._trial_step(event, number, pick)
        if self.refit_lives():
            self._refit_step(event)
        match event:
            case "time passes":
                self.advance(20 * (pick + 1))
            case "more trials":
                self.max_trials += 1
                self.edit(maxTrials=self.max_trials)
            case "fewer trials":
                self.max_trials = 1
                self.edit(maxTrials=1)
            case "suspend":
                self.edit(suspend=pick % 2 == 0)
            case "edit":
                self.edit(refit=None if pick == 0 else {"retries": pick})
            case "restart":
                self.start_operator()

    def _trial_step(self, event: str, number: int, pick: int) -> None:
        if event == "trial completes":
            self.begin(number)
            self.succeed(number, value=(number * 7 + pick) % 5 / 10)
        elif event == "trial crashes":
            self.crash(number)

    def _refit_step(self, event: str) -> None:
        match event:
            case "refit begins":
                self.begin_refit()
            case "refit completes":
                self.complete_refit(model="/models/1")
            case "a try fails":
                self.fail_try()
            case "refit fails":
                self.end_refit(failed=3, conditions=FAILED)
            case "refit ends without a word":
                self.end_refit(succeeded=1, conditions=[{"type": "Complete", "status": "True"}])
            case "refit reports only":
                self.server.complete_refit(KEY)
            case "refit is gone":
                self.remove_refit()


EVENTS = [
    "tick", "tick", "tick", "trial completes", "trial completes", "trial crashes", "time passes",
    "more trials", "fewer trials", "suspend", "edit", "restart", "refit begins", "refit completes",
    "a try fails", "refit fails", "refit ends without a word", "refit reports only", "refit is gone",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), min_size=6, max_size=40)
FAULTS = st.dictionaries(
    st.integers(0, 80), st.tuples(st.sampled_from(sorted(ERRORS)), st.booleans()), max_size=8
)


async def _play(steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]) -> None:
    """Begin where the first refit is about to begin."""
    world = RefitWorld()
    await world.settle()
    world.step("trial completes", 0)
    world.start_operator(Faults({n: (ERRORS[error](), late) for n, (error, late) in planned.items()}))
    for event, pick in steps:
        world.step(event, pick)
        for _ in range(pick + 1 if event == "tick" else 0):
            await world.tick()
            world.check()
    await _end_well(world)


async def _end_well(world: RefitWorld) -> None:
    """From here on nothing fails, pods run and complete, and nobody interferes."""
    world.start_operator()
    world.edit(suspend=False)
    for _ in range(3 * world.max_trials + 6):
        await world.settle()
        world.check()
        for event in ("trial completes", "refit begins", "refit completes"):
            world.step(event, 0)
        if world.refit and "deletionTimestamp" in world.refit["metadata"]:
            world.remove_refit()
        world.advance(1)
    await world.settle()
    wanted, record, refit = world.due(), world.server.refits.get(KEY), world.status.get("refit")
    assert not is_new(wanted, record), "the refit that is due was begun"
    assert record is None or record.state in ("COMPLETE", "FAIL"), "and has come to its end"
    if record:
        assert refit
        assert refit["phase"] == {"COMPLETE": "Completed", "FAIL": "Failed"}[record.state]
        assert refit["trial"] == record.trial
    elif world.study.spec.refit and world.status["phase"] == "Completed":
        assert refit
        assert (refit["phase"], "No trial is complete" in refit["message"]) == ("Failed", True)
    before = dict(world.kube.objects)
    assert await world.tick() == float("inf")
    assert world.kube.objects == before, "a pass over a study at rest changes nothing"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, planned=FAULTS)
def test_any_history_ends_well(steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]) -> None:
    asyncio.run(_play(steps, planned))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ["conflict", "unavailable", "killed"])
async def test_each_call_may_fail(error: str, late: bool) -> None:
    """One fault, at each call in turn of a study whose refit fails, is changed, and completes."""
    calls = await _a_life(Faults())
    for n in range(calls):
        await _a_life(Faults({n: (ERRORS[error](), late)}))


async def _a_life(faults: Faults) -> int:
    world = RefitWorld()
    world.start_operator(faults)
    story = ["trial completes", "refit begins", "a try fails", "refit fails", "edit", "refit begins", "edit"]
    story += ["refit is gone", "refit begins", "refit completes", "edit", "refit begins", "refit completes"]
    picks = iter((1, 3, 2))
    for event in story:
        await _rest(world)
        world.step(event, next(picks) if event == "edit" else 0)
        if event == "refit fails":
            await _rest(world)
            assert world.status["refit"]["phase"] == "Failed"
            assert world.server.refits[KEY].failure is not None, "and why is told"
    await _rest(world)
    assert world.server.refits[KEY].state == "COMPLETE"
    assert world.status["refit"]["phase"] == "Completed"
    assert len(world.server.begun) == 4, "the first, and one for each edit"
    return len(faults.calls)


async def _rest(world: RefitWorld) -> None:
    for _ in range(12):
        after = await world.tick()
        world.check()
        world.advance(12)
        if after == float("inf"):
            return


async def test_two_operators_make_one_refit() -> None:
    """Their passes run interleaved, call by call."""
    world = RefitWorld()
    first = world.reconciler
    world.start_operator()
    second = world.reconciler

    async def passes(count: int) -> None:
        async def one(reconciler: object) -> None:
            world.reconciler = reconciler  # type: ignore[assignment]
            await world.tick()

        for _ in range(count):
            await asyncio.gather(one(first), one(second))
            world.check()

    await passes(6)
    world.step("trial completes", 0)
    await passes(6)
    assert world.refit_lives()
    world.complete_refit()
    await passes(6)
    assert len(world.server.begun) == 1
    assert world.status["refit"]["phase"] == "Completed"
