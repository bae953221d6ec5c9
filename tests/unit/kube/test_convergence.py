"""From any events, in any order, with any call failing: the operator converges and keeps its promises.

A random history happens to a study: pods start, report, are pruned, crash, are deleted, hang on their image;
the user edits the spec; calls to Kubernetes and to the study server fail before or after their effect; the
operator is killed and started anew. Then the world becomes kind, and the study must come to a clean end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.ports.act import RunRefused
from tuning_operator.kube.ports.kubernetes import KubeError
from tuning_operator.kube.ports.study_server import StudyServerUnavailable

from tests.unit.kube.builders import NOW, pod, study, summary, trial, trouble, waiting
from tests.unit.kube.faults import KUBE_ERRORS, SERVER_ERRORS, Faults
from tests.unit.kube.world import KEY, World

MAX_TRIALS = 6


@dataclass
class History:
    """A world and what has been true of it at its worst."""

    world: World
    parallelism: int = 2
    most_parallelism: int = 2
    max_trials: int = MAX_TRIALS

    def check(self) -> None:
        """What must hold after every step, whatever happened."""
        trials = self.world.server.trials.get(KEY, [])
        assert len(trials) <= self.max_trials
        assert len(self.world.server.running(KEY)) <= self.most_parallelism
        for number in self.world.jobs:
            assert number < len(trials), "a Job without a trial in the record"
        phase = self.world.status.get("phase")
        assert (self.world.status.get("completionTime") is not None) == (phase in ("Completed", "Failed"))

    async def step(self, event: str, pick: int) -> None:
        """Let one event happen to the trial or setting that `pick` chooses."""
        world, alive = self.world, self.world.alive()
        number = alive[pick % len(alive)] if alive else None
        match event:
            case "tick":
                await world.tick()
            case "time passes":
                world.advance(10 * (pick + 1))
            case "suspend":
                world.edit(suspend=pick % 2 == 0)
            case "parallelism":
                self.parallelism = pick % 3 + 1
                self.most_parallelism = max(self.most_parallelism, self.parallelism)
                world.edit(parallelism=self.parallelism)
            case "more trials":
                self.max_trials += 1
                world.edit(maxTrials=self.max_trials)
            case "restart":
                world.start_operator()
        if number is not None:
            self._pod(event, number)

    def _pod(self, event: str, number: int) -> None:
        world = self.world
        match event:
            case "begins":
                world.begin(number)
            case "completes":
                world.succeed(number)
            case "reports only":
                world.server.end(KEY, number, "COMPLETE", 0.7)
            case "told to stop":
                world.server.request_prune(KEY, number, world.now)
            case "obeys":
                world.succeed(number, "PRUNED")
            case "crashes":
                world.crash(number)
            case "exits without a word":
                world.end_job(number, succeeded=1, conditions=[{"type": "Complete", "status": "True"}])
            case "is deleted":
                world.delete_job(number)
            case "hangs on its image":
                stuck = pod(number, age=0, phase="Pending", **waiting("ImagePullBackOff"))
                world.kube.put({**stuck, "kind": "Pod"})


EVENTS = [
    "tick", "tick", "tick", "time passes", "suspend", "parallelism", "more trials", "restart", "begins",
    "completes", "reports only", "told to stop", "obeys", "crashes", "exits without a word", "is deleted",
    "hangs on its image",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=40)
ERRORS = KUBE_ERRORS | SERVER_ERRORS
FAULTS = st.dictionaries(
    st.integers(0, 80), st.tuples(st.sampled_from(sorted(ERRORS)), st.booleans()), max_size=8
)


async def _play(steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]) -> None:
    history = History(World(maxTrials=MAX_TRIALS, parallelism=2, maxFailedTrials=100))
    world = history.world
    world.start_operator(Faults({n: (ERRORS[error](), late) for n, (error, late) in planned.items()}))
    for event, pick in steps:
        await history.step(event, pick)
        history.check()
    await _end_well(history)


async def _end_well(history: History) -> None:
    """From here on nothing fails, pods start and complete, and nobody interferes."""
    world = history.world
    world.start_operator()
    world.edit(suspend=False)
    for _ in range(3 * history.max_trials):
        await world.settle()
        history.check()
        for number in world.alive():
            world.begin(number)
            world.succeed(number)
        world.advance(1)
    await world.settle()
    assert world.status["phase"] in ("Completed", "Failed")
    assert len(world.server.trials[KEY]) == history.max_trials
    assert world.server.running(KEY) == [], "nothing is left RUNNING"
    assert world.alive() == []
    counts = world.status["trials"]
    assert counts["complete"] + counts["pruned"] + counts["failed"] == history.max_trials
    assert world.status["progress"] == f"{history.max_trials}/{history.max_trials}"
    before = dict(world.kube.objects)
    assert await world.tick() == float("inf")
    assert world.kube.objects == before, "a pass over a study at rest changes nothing"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, planned=FAULTS)
def test_any_history_ends_well(steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]) -> None:
    asyncio.run(_play(steps, planned))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ["conflict", "invalid", "server error", "unavailable", "killed"])
async def test_each_call_may_fail(error: str, late: bool) -> None:
    """One fault, at each call of a whole study in turn, before and after its effect."""
    calls = await _a_whole_study(Faults())
    for n in range(calls):
        await _a_whole_study(Faults({n: (ERRORS[error](), late)}))


async def _a_whole_study(faults: Faults) -> int:
    """Run a study whose trials complete, ignore the pruner, crash, are deleted; return the calls it took."""
    history = History(World(maxTrials=4, parallelism=2), max_trials=4)
    world = history.world
    world.start_operator(faults)
    fates = {0: ["completes"], 1: ["told to stop"], 2: ["crashes"], 3: ["is deleted", "completes"]}
    for _ in range(30):
        await world.tick()
        history.check()
        if world.status.get("phase") == "Completed":
            break
        for number in world.alive():
            world.begin(number)
            if fates[number]:
                history._pod(fates[number].pop(0), number)
        world.advance(12)
    assert world.status["phase"] == "Completed"
    assert world.server.running(KEY) == []
    assert [t.state for t in world.server.trials[KEY]] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    return len(faults.calls)


async def test_two_operators_do_no_harm() -> None:
    """Their passes run interleaved, call by call."""
    history = History(World(maxTrials=8, parallelism=3), max_trials=8, most_parallelism=3)
    world = history.world
    first = world.reconciler
    world.start_operator()
    for _ in range(40):
        await asyncio.gather(*(_pass(reconciler) for reconciler in (first, world.reconciler)))
        history.check()
        for number in world.alive():
            world.begin(number)
            if number in (r.number for r in world.server.running(KEY)):
                world.succeed(number)
                break
    assert world.status["progress"] == "8/8"
    assert world.status["trials"]["complete"] == 8
    assert len(world.kube.named("Job")) == 8


async def _pass(reconciler: object) -> None:
    try:
        await reconciler.reconcile(KEY)  # type: ignore[attr-defined]
    except (KubeError, StudyServerUnavailable, RunRefused):
        await asyncio.sleep(0)


RUN_STATES = st.sampled_from(["starting", "running", "ended", "stopping", "foreign"])
CATEGORIES = st.sampled_from(["ImagePull", "Unschedulable", "Capacity", "OutOfMemory", "Quota"])


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Anything that could be seen, sensible or not."""
    numbers = draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
    running = [
        trial(n, prune_requested=NOW if draw(st.booleans()) else None) for n in numbers if draw(st.booleans())
    ]
    runs = {
        n: Run(n, draw(RUN_STATES), trouble(draw(CATEGORIES), NOW) if draw(st.booleans()) else None)
        for n in numbers
        if draw(st.booleans())
    }
    counts = {kind: draw(st.integers(0, 6)) for kind in ("complete", "pruned", "fail")}
    return Observation(summary(*running, **counts), runs)


@given(
    seen=observations(), suspend=st.booleans(), parallelism=st.integers(1, 4), max_trials=st.integers(1, 12)
)
def test_whatever_is_seen(seen: Observation, suspend: bool, parallelism: int, max_trials: int) -> None:
    """decide holds its promises on any observation, not only those that the simulated world comes to."""
    given_study = study(suspend=suspend, parallelism=parallelism, maxTrials=max_trials)
    plan = decide(given_study, seen, NOW)
    assert seen.summary is not None
    running = {t.number for t in seen.summary.running}
    kinds = [type(action).__name__ for action in plan.actions]
    assert kinds.count("Ask") <= 1
    asked = "Ask" in kinds
    started = len(running) + sum(
        (seen.summary.counts.complete, seen.summary.counts.pruned, seen.summary.counts.fail)
    )
    assert not asked or (len(running) < parallelism and started < max_trials and not suspend)
    starts = [a.trial for a in plan.actions if type(a).__name__ == "Start"]  # type: ignore[union-attr]
    assert len(starts) == len(set(starts))
    assert set(starts) <= running - set(seen.runs), "a Job only for a running trial that has none"
    tells = [a.trial for a in plan.actions if type(a).__name__ == "Tell"]  # type: ignore[union-attr]
    assert len(tells) == len(set(tells))
    assert set(tells) <= running
    if plan.status.phase in ("Completed", "Failed"):
        assert set(tells) == running, "nothing is left RUNNING"
    assert plan == decide(given_study, seen, NOW), "pure"
