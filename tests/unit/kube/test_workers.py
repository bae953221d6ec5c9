"""Workers, pods that take one trial after another: what is decided and made, and that histories end well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_operator.kube.jobs.manifests import job
from tuning_operator.kube.plan.actions import Action, Start, Stop
from tuning_operator.kube.plan.observation import Observation, Run, with_trials
from tuning_operator.kube.plan.waiting import START_GRACE
from tuning_operator.kube.plan.work import Trial, Work, Worker, work_of
from tuning_operator.protocol import Failure, StudySummary, TrialRecord
from tuning_operator.resource import names

from tests.unit.kube.builders import NOW, ago, ask, body, decision, diagnosis, study, summary, tell, trial
from tests.unit.kube.faults import Faults
from tests.unit.kube.history import FAULTS, History, steps
from tests.unit.kube.world import FAILED, KEY, RUNTIME, World

LATE = ago(START_GRACE.total_seconds() + 1)
RUNS, STARTS, OUTDATED = Run("running"), Run("starting"), Run("running", outdated=True)
OOM = diagnosis("OutOfMemory")
GONE = diagnosis("PodDeleted")
ASK = ask(2, 10)
STOPPED = Failure(category="StoppedByUser", message="A user stopped the trial.")


def held(number: int, worker: int, pods: int = 1, **fields: Any) -> TrialRecord:
    return trial(number, worker=worker, pods=pods, **fields)


def seen(summary: StudySummary, workers: dict[int, Run], per_worker: int = 1, **fields: Any) -> Observation:
    runs: dict[Work, Run] = {Worker(slot): run for slot, run in workers.items()}
    return with_trials(Observation(summary, runs, per_worker=per_worker, **fields))


@dataclass
class Row:
    seen: Observation
    actions: list[Action]
    spec: dict[str, Any] = field(default_factory=dict)


TABLE: dict[str, Row] = {
    "workers start while the first trials are asked for": Row(
        seen(summary(), {}), [ASK, Start(Worker(0)), Start(Worker(1))]),
    "as many workers as trials may run": Row(
        seen(summary(complete=9), {}), [ASK, Start(Worker(0))]),
    "a trial that a worker will take needs nothing": Row(
        seen(summary(0, 1), {0: STARTS, 1: RUNS}), []),
    "a free worker stays while there are trials to ask for": Row(
        seen(summary(held(1, 1), complete=1), {0: RUNS, 1: RUNS}), [ASK]),
    "at the end, idle workers leave": Row(
        seen(summary(held(9, 1), complete=9), {0: RUNS, 1: RUNS}), [Stop(Worker(0))]),
    "a study that is over has no workers": Row(
        seen(summary(complete=10), {0: RUNS, 1: STARTS, 2: Run("stopping")}),
        [Stop(Worker(0)), Stop(Worker(1))]),
    "with parallelism lowered, busy workers finish and idle ones leave": Row(
        seen(summary(held(4, 3), held(5, 1)), {0: RUNS, 1: RUNS, 3: RUNS}), [Stop(Worker(0))],
        {"parallelism": 1}),
    "suspended: idle workers leave": Row(
        seen(summary(held(0, 0)), {0: RUNS, 1: RUNS}), [Stop(Worker(1))], {"suspend": True}),
    "a worker that crashed fails its trial and is replaced": Row(
        seen(summary(held(0, 0), held(1, 1)), {0: Run("ended", OOM), 1: RUNS}),
        [tell(0, "FAIL", OOM.failure), Stop(Worker(0))]),
    "its successor starts once it is gone": Row(
        seen(summary(held(1, 1), fail=1), {1: RUNS}), [ASK, Start(Worker(0))]),
    "a worker that was taken away keeps its trial": Row(
        seen(summary(held(0, 0), held(1, 1)), {0: Run("ended", GONE), 1: RUNS}), [Stop(Worker(0))]),
    "but not forever": Row(
        seen(summary(held(0, 0, pods=4), held(1, 1)), {0: Run("ended", GONE), 1: RUNS}),
        [tell(0, "FAIL", GONE.failure), Stop(Worker(0))]),
    "nor does a node's loss end its trial": Row(
        seen(summary(held(0, 0), held(1, 1)), {0: Run("ended", OOM, lost=True), 1: RUNS}), [Stop(Worker(0))]),
    "a worker whose node rejects its pods moves": Row(
        seen(summary(0, 1), {0: Run("starting", OOM, lost=True), 1: RUNS}),
        [ask(0, 10, 0), Stop(Worker(0)), Start(Worker(2))]),
    "a slot with a trial gets its worker back": Row(
        seen(summary(held(0, 3), held(1, 1)), {1: RUNS}), [Start(Worker(3))]),
    "a slot with a trial is waited for while its worker goes": Row(
        seen(summary(held(0, 3), held(1, 1)), {1: RUNS, 3: Run("stopping")}), []),
    "a worker that ends before it takes a trial fails the one that it would have taken": Row(
        seen(summary(0, held(1, 1)), {0: Run("ended", OOM), 1: RUNS}),
        [tell(0, "FAIL", OOM.failure), Stop(Worker(0)), Start(Worker(2))]),
    "but one that was taken away does not": Row(
        seen(summary(0, held(1, 1)), {0: Run("ended", GONE), 1: RUNS}), [Stop(Worker(0)), Start(Worker(2))]),
    "a worker whose image can't be pulled fails a trial after some time": Row(
        seen(summary(0, held(1, 1)), {0: Run("starting", diagnosis("ImagePull", LATE)), 1: RUNS}),
        [tell(0, "FAIL", diagnosis("ImagePull").failure), ask(0, 10, 0), Stop(Worker(0)), Start(Worker(2))]),
    "an outdated worker that has not started is replaced": Row(
        seen(summary(0, held(1, 1)), {0: Run("starting", outdated=True), 1: RUNS}),
        [ask(0, 10, 0), Stop(Worker(0)), Start(Worker(2))]),
    "an outdated worker leaves when it is idle, and gets no trial while it does": Row(
        seen(summary(held(1, 1), complete=1), {0: OUTDATED, 1: RUNS}),
        [ask(2, 10, 0), Stop(Worker(0)), Start(Worker(2))]),
    "and finishes its trial": Row(
        seen(summary(held(0, 0), held(1, 1)), {0: OUTDATED, 1: RUNS}), []),
    "an outdated worker finishes its trials, and another one takes the next": Row(
        seen(summary(held(1, 0), held(2, 0), complete=1), {0: OUTDATED}, per_worker=3),
        [ask(3, 10, 0), Start(Worker(1))], {"parallelism": 3}),
    "which is waited for": Row(
        seen(summary(held(1, 0), held(2, 0), 3, complete=1, leaving=[0]), {0: OUTDATED, 1: STARTS},
             per_worker=3), [], {"parallelism": 3}),
    "older study servers have no workers that leave": Row(
        seen(summary(held(1, 0), held(2, 0), complete=1, leaving=None), {0: OUTDATED}, per_worker=3),
        [ask(3, 10)], {"parallelism": 3}),
    "with fewer trials, the fullest workers take the next one": Row(
        seen(summary(held(2, 0), held(3, 1), held(4, 1), complete=2), {0: RUNS, 1: RUNS}, per_worker=4),
        [ask(4, 10, 0)], {"parallelism": 4}),
    "a worker that leaves does so until it is idle": Row(
        seen(summary(held(2, 0), held(3, 1), held(4, 1), complete=2, leaving=[1]), {0: RUNS, 1: RUNS},
             per_worker=4), [ask(4, 10, 1)], {"parallelism": 4}),
    "unless more trials may run again": Row(
        seen(summary(held(2, 0), held(3, 1), held(4, 1), complete=2, leaving=[1]), {0: RUNS, 1: RUNS},
             per_worker=4), [ask(5, 10)], {"parallelism": 5}),
    "or the others are gone, and a trial waits": Row(
        seen(summary(5, held(3, 1), held(4, 1), complete=3, leaving=[1]), {1: RUNS}, per_worker=3),
        [ask(0, 10)], {"parallelism": 3}),
    "a worker of a slot that is used again takes trials": Row(
        seen(summary(5, complete=5, leaving=[0]), {0: STARTS}), [ask(0, 10)], {"parallelism": 1}),
    "of several idle workers, only the one that stays gets trials": Row(
        seen(summary(complete=6), {0: RUNS, 1: RUNS}, per_worker=4), [ask(8, 10, 1), Stop(Worker(1))],
        {"parallelism": 8}),
    "a worker that is being deleted gets no trial": Row(
        seen(summary(held(5, 1), complete=4), {0: Run("stopping"), 1: RUNS, 2: RUNS}), [ask(2, 10, 0)]),
    "a pruned trial has its grace, and its worker stays": Row(
        seen(summary(held(0, 0, prune_requested=ago(31)), held(1, 1)), {0: RUNS, 1: RUNS}),
        [tell(0, "PRUNED")]),
    "a trial that a user has stopped ends, and its worker stays": Row(
        seen(summary(held(3, 0), held(4, 1)), {0: RUNS, 1: Run("running", trials_to_stop=frozenset({3}))}),
        [tell(3, "PRUNED", STOPPED)]),
    "several trials at a time need fewer workers": Row(
        seen(summary(0, 1, 2), {}, per_worker=2), [ask(5, 10), *(Start(Worker(slot)) for slot in range(3))],
        {"parallelism": 5}),
    "one worker has several": Row(
        seen(summary(held(0, 0), held(1, 0)), {0: RUNS}, per_worker=2), []),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_decide(name: str) -> None:
    row = TABLE[name]
    per_pod = row.seen.per_worker
    given = study(trial={"reusePods": True, "trialsPerPod": per_pod}, **row.spec)
    found = decision(given, row.seen, NOW).actions
    assert sorted(map(str, found)) == sorted(map(str, row.actions))


def test_trials_without_a_started_worker_are_pending() -> None:
    given = study(trial={"reusePods": True})
    counts = decision(given, seen(summary(held(0, 0), 1), {0: RUNS, 1: STARTS}), NOW).status.trials
    assert counts
    assert (counts.running, counts.pending) == (1, 1)


def test_a_worker_that_leaves_is_not_expected_to_take_a_trial() -> None:
    given = study(trial={"reusePods": True, "trialsPerPod": 2})
    waits = summary(held(0, 0), 1, leaving=[0])
    counts = decision(given, seen(waits, {0: OUTDATED, 1: STARTS}, per_worker=2), NOW).status.trials
    assert counts
    assert (counts.running, counts.pending) == (1, 1)


def test_a_trial_whose_worker_can_not_start_is_reported() -> None:
    stuck = seen(summary(0), {0: Run("starting", diagnosis("ImagePull", ago(1)))})
    status = decision(study(trial={"reusePods": True}, parallelism=1), stuck, NOW).status
    stalled = next(c for c in status.conditions if c.type == "Stalled")
    assert stalled.message == "Trial 0 cannot start: it is so. Fix it."


def test_the_job_of_a_worker() -> None:
    given = study(trial={"reusePods": True, "trialsPerPod": 3, "timeout": "20m"})
    made = job(given, Worker(4), RUNTIME)
    assert made["metadata"]["name"] == "mnist-w4"
    assert (
        work_of(made["metadata"]["labels"])
        == Worker(4)
        == work_of(made["spec"]["template"]["metadata"]["labels"])
    )
    pod = made["spec"]["template"]["spec"]
    assert "activeDeadlineSeconds" not in pod, "it outlives many trials"
    environ = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert environ["TUNING_TRIAL_URL"].endswith("/v1/studies/ml/mnist/workers/4")
    assert environ["TUNING_ROLE"] == "worker"
    assert "TUNING_TRIAL_NUMBER" not in environ
    assert names.worker_of_pod("mnist-w4-x7k2p") == ("mnist", 4)
    assert (
        made["spec"]["podFailurePolicy"]["rules"]
        == job(given, Trial(0), RUNTIME)["spec"]["podFailurePolicy"]["rules"]
    )


async def test_a_pass_asks_for_no_jobs_of_trials() -> None:
    world, faults = World(maxTrials=4, parallelism=2, trial={"reusePods": True}), Faults()
    await world.settle()
    for slot in (0, 1):
        world.kube.set_status("Job", "ml", f"mnist-w{slot}", active=1, ready=1)
        world.server.take(KEY, slot, 1)
    world.start_operator(faults)
    await world.tick()
    assert len([call for call in faults.calls if "select" in str(call)]) == 1, faults.calls


# --- workers that leave


def begin(world: World, slot: int, capacity: int) -> list[int]:
    """Let a worker's pod run, and take what it may; return its trials."""
    world.kube.set_status("Job", "ml", f"mnist-w{slot}", active=1, ready=1)
    return world.server.take(KEY, slot, capacity)


def jobs(world: World) -> set[str]:
    return {name for kind, _, name in world.kube.objects if kind == "Job"}


async def test_each_worker_is_replaced_after_an_edit_once_its_trials_have_ended() -> None:
    world = World(maxTrials=40, parallelism=4, trial={"reusePods": True, "trialsPerPod": 4})
    await world.settle()
    before = begin(world, 0, 4)
    assert len(before) == 4
    edited = {"reusePods": True, "trialsPerPod": 4, "objective": "train:other"}
    world.edit(trial=body(trial=edited)["spec"]["trial"])
    await world.settle()
    for number in before:
        assert "mnist-w0" in jobs(world), "it finishes its trials"
        world.server.end(KEY, number, "COMPLETE", 0.5)
        await world.settle()
        if "mnist-w0" in jobs(world):
            world.server.take(KEY, 0, 4)
        assert begin(world, 1, 4), "the next trials run with the new program"
        await world.settle()
    assert jobs(world) == {"mnist-w1"}
    assert {trial.worker for trial in world.server.running(KEY)} == {1}


async def test_a_pod_that_is_not_needed_is_given_back_once_its_trials_have_ended() -> None:
    world = World(maxTrials=100, parallelism=8, trial={"reusePods": True, "trialsPerPod": 4})
    await world.settle()
    before = [begin(world, slot, 4) for slot in (0, 1)]
    world.edit(parallelism=4)
    await world.settle()
    for ended in zip(*before, strict=True):
        for slot, number in enumerate(ended):
            world.server.end(KEY, number, "COMPLETE", 0.5)
            await world.settle()
            for asks in (slot, 1 - slot):  # the pod whose trial has ended is the first to send a request
                if f"mnist-w{asks}" in jobs(world):
                    world.server.take(KEY, asks, 4)
            await world.settle()
    assert len(jobs(world)) == 1
    assert len(world.server.running(KEY)) == 4


async def test_a_pod_that_is_being_deleted_gets_no_trial() -> None:
    world = World(maxTrials=50, parallelism=2, trial={"reusePods": True})
    await world.settle()
    for slot in (0, 1):
        begin(world, slot, 1)
    world.edit(trial=body(trial={"reusePods": True, "objective": "train:other"})["spec"]["trial"])
    await world.settle()
    world.kube.slow |= {"mnist-w0"}
    world.server.end(KEY, 0, "COMPLETE", 0.5)
    await world.tick()
    assert "deletionTimestamp" in world.kube.objects["Job", "ml", "mnist-w0"]["metadata"]
    assert world.server.take(KEY, 0, 1) == []
    await world.settle()
    assert begin(world, 2, 1) == [2]
    world.kube.remove("Job", "ml", "mnist-w0")
    await world.settle()
    assert jobs(world) == {"mnist-w1", "mnist-w2"}


# --- any history


class WorkersHistory(History):
    """A study with workers."""

    def __init__(self, per_pod: int) -> None:
        self.per_pod = per_pod
        trial = {"reusePods": True, "trialsPerPod": per_pod}
        super().__init__(World(maxTrials=6, parallelism=2, maxFailedTrials=100, trial=trial))

    @property
    def workers(self) -> dict[int, dict[str, Any]]:
        """The Jobs of workers that have not ended, by slot."""
        found = {}
        for (kind, _, _), made in self.world.kube.objects.items():
            work = work_of(made["metadata"].get("labels", {})) if kind == "Job" else None
            if isinstance(work, Worker) and not made.get("status", {}).get("conditions"):
                found[work.slot] = made
        return found

    def check(self) -> None:
        super().check()
        assert self.world.jobs == {}, "no trial has a Job of its own"

    def begin(self, slot: int) -> list[int]:
        """The worker's pod runs, and takes what it may; return its trials."""
        return begin(self.world, slot, self.per_pod)

    def end(self, slot: int, **status: Any) -> None:
        self.world.kube.set_status("Job", "ml", f"mnist-w{slot}", active=0, ready=0, **status)

    def happens(self, event: str, pick: int) -> None:
        match event:
            case "code changes":
                trial = self.world.kube.study()["spec"]["trial"]
                self.world.edit(trial={**trial, "objective": f"train:version_{pick}"})
            case "study server restarts":
                self.world.server.leaving.clear()
        if alive := sorted(self.workers):
            self.worker(event, alive[pick % len(alive)], pick)

    def worker(self, event: str, slot: int, pick: int) -> None:
        world = self.world
        if event == "begins":
            self.begin(slot)
        running = [t.number for t in world.server.running(KEY) if t.worker == slot]
        if running:
            number = running[pick % len(running)]
            match event:
                case "completes":
                    world.server.end(KEY, number, "COMPLETE", number * 7 % 5 / 10)
                case "fails":
                    world.server.end(KEY, number, "FAIL")
                case "is to be pruned":
                    world.server.request_prune(KEY, number, world.now)
        match event:
            case "crashes":
                self.end(slot, failed=1, conditions=FAILED)
            case "is deleted":
                world.kube.remove("Job", "ml", f"mnist-w{slot}")

    def check_grace(self) -> None:
        """No worker stays that has no trial, is not needed for one, or would run it with an earlier program.

        A trial that is to be pruned has ended, so that its worker is free.
        """
        running = self.world.server.running(KEY)
        assert not any(trial.prune_requested for trial in running)
        held = {trial.worker for trial in running}
        idle = {
            slot: made
            for slot, made in self.workers.items()
            if slot not in held and "deletionTimestamp" not in made["metadata"]
        }
        assert len(idle) <= sum(trial.worker is None for trial in running), "a worker that no trial needs"
        for slot, made in idle.items():
            current = job(self.study, Worker(slot), RUNTIME)["spec"]["template"]
            assert made["spec"]["template"] == current, "a worker with an earlier program"

    async def complete(self) -> None:
        world = self.world
        for _ in range(4 * self.most_trials + 8):
            await world.settle()
            self.check()
            for slot in sorted(self.workers):
                for number in self.begin(slot):
                    world.server.end(KEY, number, "COMPLETE", 0.5)
            world.advance(1)
        await world.settle()
        await self.check_rest()
        assert self.workers == {}, "workers leave when the study ends"


STEPS = steps(
    "begins",
    "begins",
    "completes",
    "completes",
    "completes",
    "fails",
    "is to be pruned",
    "crashes",
    "is deleted",
    "code changes",
    "study server restarts",
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(per_pod=st.sampled_from([1, 3]), steps=STEPS, planned=FAULTS)
def test_any_history_with_workers_ends_well(
    per_pod: int, steps: list[tuple[str, int]], planned: dict[int, tuple[str, bool]]
) -> None:
    asyncio.run(WorkersHistory(per_pod).play(steps, planned))
