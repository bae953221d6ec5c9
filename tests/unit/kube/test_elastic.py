"""Elastic studies (minParallelism): how many trials may run, and who counts as waiting for GPUs."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_operator.kube.jobs.contention import WaitingPod, first_of_others, gpu_resources
from tuning_operator.kube.jobs.manifests import job
from tuning_operator.kube.plan.actions import Ask, Start, Stop
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation, Run, with_trials
from tuning_operator.kube.plan.parallelism import allowed_trials
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.plan.wake import ELASTIC_CHECK
from tuning_operator.kube.plan.work import Trial, Worker
from tuning_operator.kube.ports.jobs.capacity import PATIENCE, PENDING_TTL
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import (
    NOW,
    ago,
    ask,
    decision,
    diagnosis,
    running_status,
    seen,
    study,
    summary,
    trial,
)
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.world import RUNTIME

PLACED, PULLS, FRESH = Run("running"), Run("starting", has_node=True), Run("starting")
WAITS, QUEUED = (Run("starting", diagnosis("Capacity")), Run("starting", diagnosis("Queued")))
GPU = "nvidia.com/gpu"


def elastic(least: int = 2, most: int = 8, now: int | None = None, **spec: Any) -> TuningStudy:
    """A study that may run `now` trials at present."""
    status = running_status(parallelism=now)
    return study(status=status, maxTrials=1000, parallelism=most, minParallelism=least, **spec)


def observed(*runs: Run | None, **fields: Any) -> Observation:
    numbers = range(len(runs))
    return seen(summary(*numbers), {n: run for n, run in enumerate(runs) if run}, **fields)


@pytest.mark.parametrize(
    ("now", "runs", "allowed"),
    [
        (None, [], 2),  # at first
        (2, [PLACED, PLACED], 3),  # GPUs may be idle: try one more
        (2, [PLACED, PULLS], 3),  # its node pulls the image: it has its GPU
        (3, [PLACED, PLACED, FRESH], 3),  # not known yet
        (3, [PLACED, PLACED, None], 3),
        (3, [PLACED, PLACED, WAITS], 3),  # no idle GPU: one pod waits for the next
        (3, [PLACED, PLACED, QUEUED], 3),
        (3, [PLACED, WAITS], 2),  # a trial has ended, and its GPU is not given to the next one yet
        (3, [PLACED, PLACED], 3),  # it is
        (5, [PLACED, PLACED, WAITS, WAITS, WAITS], 3),  # a node was lost
        (5, [WAITS, WAITS, WAITS], 2),  # never below the minimum
        (8, [PLACED] * 8, 8),  # never above parallelism
        (6, [PLACED] * 4, 6),  # trials have ended
        (2, [PLACED] * 5, 6),  # others have got what they waited for, before these have ended
    ],
)  # fmt: skip
def test_how_many_may_run(now: int | None, runs: list[Run | None], allowed: int) -> None:
    assert allowed_trials(elastic(now=now), observed(*runs)) == allowed
    assert allowed_trials(elastic(now=now), observed(*runs, others_wait="ml/other")) == 2


def test_without_a_minimum_nothing_changes() -> None:
    assert allowed_trials(study(parallelism=7), observed(PLACED, WAITS, WAITS)) == 7
    plan = decide(study(parallelism=2), observed(PLACED), NOW)
    assert (plan.actions, plan.parallelism, plan.wake) == ((ask(2, 10),), None, None)


def test_a_minimum_of_zero_leaves_all_gpus_to_others() -> None:
    assert allowed_trials(elastic(least=0, now=0), observed()) == 1
    assert allowed_trials(elastic(least=0, now=1), observed(others_wait="ml/other")) == 0
    assert decide(elastic(least=0, now=1), observed(others_wait="ml/other"), NOW).actions == ()


def test_what_is_decided_and_shown() -> None:
    found = decision(elastic(now=2), observed(PLACED, PLACED), NOW)
    assert found.actions == (ask(3, 1000),)
    assert found.status.parallelism == 3
    waits = decision(elastic(now=3), observed(PLACED, PLACED, WAITS), NOW)
    assert waits.actions == ()
    assert waits.requeue_after == ELASTIC_CHECK.total_seconds()
    yields = decision(elastic(now=3), observed(PLACED, PLACED, PLACED, others_wait="vision/train-x"), NOW)
    assert (yields.actions, yields.status.parallelism) == ((), 2)
    stalled = find(yields.status.conditions, "Stalled")
    assert stalled
    assert (stalled.status, stalled.reason) == ("False", "YieldingGpus")
    rule = "waits for GPUs, so trials start only while fewer than 2 run (minParallelism)."
    assert stalled.message == f"No trial is blocked. A pod of another namespace {rule}"
    own = decision(elastic(now=3), observed(PLACED, PLACED, PLACED, others_wait="ml/train-x"), NOW)
    stalled = find(own.status.conditions, "Stalled")
    assert stalled
    assert stalled.message == f"No trial is blocked. The pod train-x {rule}"
    assert [(event.reason, event.warning) for event in yields.events] == [("YieldingGpus", False)]


def test_a_suspended_study_does_not_look_for_others() -> None:
    assert decide(elastic(now=3, suspend=True), observed(PLACED), NOW).wake is None


def test_workers_leave_between_trials() -> None:
    """A busy one finishes its trial, and leaves if others still wait then."""
    given = elastic(least=1, most=4, now=3, trial={"reusePods": True})
    busy = summary(trial(0, worker=0, pods=1), trial(1, worker=1, pods=1))
    runs = {Worker(slot): PLACED for slot in range(3)}
    found = decide(given, with_trials(Observation(busy, runs, per_worker=1, others_wait="ml/x")), NOW)
    assert found.actions == (Stop(Worker(2)),)
    one = summary(trial(1, worker=1, pods=1), complete=1)
    runs.pop(Worker(2))
    found = decide(given, with_trials(Observation(one, runs, per_worker=1, others_wait="ml/x")), NOW)
    assert found.actions == (Stop(Worker(0)),)
    alone = {Worker(1): PLACED}
    found = decide(given, with_trials(Observation(one, alone, per_worker=1)), NOW)
    assert found.actions == (ask(3, 1000), Start(Worker(0)), Start(Worker(2)))


def test_trials_without_gpus_have_nothing_to_give_back() -> None:
    [problem] = check(study(minParallelism=1, trial={"gpus": 0}))
    assert (problem.field, "remove minParallelism" in problem.message) == ("minParallelism", True)
    assert check(study(minParallelism=1, trial={"gpus": 1})) == ()


# --- histories: a cluster with some GPUs, an elastic study, and others who come and go


class Cluster:
    """GPUs, of which the scheduler gives each to the pod that has waited longest."""

    def __init__(self, gpus: int, least: int, most: int) -> None:
        self.gpus, self.now = gpus, NOW
        self.study = elastic(least, most)
        self.held: set[str] = set()
        self.queue: deque[str] = deque()
        self.trials: list[int] = []
        self.finished = self.asked = self.others = 0
        self.waiting_since: dict[str, datetime] = {}

    def submit(self, pod: str) -> None:
        self.queue.append(pod)
        self.waiting_since[pod] = self.now

    def schedule(self) -> None:
        while self.queue and len(self.held) < self.gpus:
            self.held.add(self.queue.popleft())

    def other_comes(self) -> None:
        self.others += 1
        self.submit(f"other-{self.others}")

    def other_ends(self) -> None:
        if found := sorted(pod for pod in self.held if pod.startswith("other")):
            self.held.discard(found[0])

    def trial_ends(self) -> None:
        if running := [n for n in self.trials if f"trial-{n}" in self.held]:
            self.held.discard(f"trial-{running[0]}")
            self.trials.remove(running[0])
            self.finished += 1

    def pass_(self) -> None:
        """Do as the operator does."""
        self.schedule()
        runs = {n: PLACED if f"trial-{n}" in self.held else WAITS for n in self.trials}
        waiting = [
            p for p in self.queue if p.startswith("other") and self.now - self.waiting_since[p] >= PATIENCE
        ]
        observation = seen(
            summary(*self.trials, complete=self.finished), runs, others_wait=min(waiting, default=None)
        )
        for _ in range(3):
            plan = decide(self.study, observation, self.now)
            asked = [action for action in plan.actions if isinstance(action, Ask)]
            assert all(isinstance(action, Ask | Start) for action in plan.actions), "no trial is stopped"
            for action in asked:
                while len(self.trials) < action.request.parallelism:
                    self.trials.append(self.asked)
                    self.submit(f"trial-{self.asked}")
                    self.asked += 1
            observation = observation.after(
                summary(*self.trials, complete=self.finished),
                [Start(Trial(n)) for n in self.trials if Trial(n) not in observation.runs],
            )
        self.study = self.study.model_copy(
            update={"status": self.study.status.model_copy(update={"parallelism": plan.parallelism})}
        )
        self.schedule()
        self.now += timedelta(seconds=5)

    @property
    def ours(self) -> int:
        return sum(pod.startswith("trial") for pod in self.held)

    def others_there(self) -> int:
        return self.others_placed() + sum(pod.startswith("other") for pod in self.queue)

    def others_placed(self) -> int:
        return sum(pod.startswith("other") for pod in self.held)


@given(
    gpus=st.integers(1, 8),
    least=st.integers(0, 3),
    more=st.integers(0, 6),
    events=st.lists(
        st.sampled_from(["other_comes", "other_ends", "trial_ends", "pass_", "pass_"]), max_size=60
    ),
)
@settings(max_examples=30, deadline=None)
def test_histories(gpus: int, least: int, more: int, events: list[str]) -> None:
    """Others get what they wait for as trials end, and all that nobody else needs is used."""
    most = max(1, least + more)
    cluster = Cluster(gpus, least, most)
    for event in events:
        getattr(cluster, event)()
        assert len(cluster.trials) <= most
    for _ in range(60):
        cluster.pass_()
        cluster.trial_ends()
    assert cluster.others_placed() >= min(cluster.gpus - least, cluster.others_there())
    for _ in range(100):
        cluster.other_ends()
        cluster.trial_ends()
        cluster.pass_()
    assert not cluster.others_there()
    for _ in range(30):
        cluster.pass_()
    assert cluster.ours == min(gpus, most)
    assert len(cluster.trials) <= max(least, cluster.ours + 1)


# --- who waits


def pending(
    name: str = "train", namespace: str = "vision", seconds: float = 60, **fields: Any
) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": fields.pop("reason", "Unschedulable"),
        "message": fields.pop("message", f"0/3 nodes are available: 3 Insufficient {GPU}. preemption: none."),
        "lastTransitionTime": rfc3339(ago(seconds)),
    }
    container = {"name": "main", "image": "any", "resources": {"limits": {GPU: fields.pop("gpus", 1)}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, **fields},
        "spec": {"containers": [container]},
        "status": {"phase": "Pending", "conditions": [condition]},
    }


@pytest.mark.parametrize(
    ("pod", "lacking"),
    [
        (pending(), {GPU}),
        (
            pending(message=f"0/9 nodes are available: 2 Insufficient cpu, 7 Insufficient {GPU}."),
            {"cpu", GPU},
        ),
        (pending(message="0/3 nodes are available: 3 node(s) had untolerated taint(s)."), set()),
        (pending(reason="SchedulingGated"), None),
        (pending(gpus=16), None),  # no node is as large
        (pending(deletionTimestamp="2026-11-26T12:00:00Z"), None),
    ],
)
def test_what_a_pod_waits_for(pod: dict[str, Any], lacking: set[str] | None) -> None:
    found = WaitingPod.of(pod, {GPU: "8", "cpu": "64"})
    assert (found and found.lacking) == lacking
    anywhere = WaitingPod.of(pending(gpus=16), None)
    assert anywhere, "where nodes may not be read, it may fit"


def test_the_gpus_of_a_study() -> None:
    def of(**trial: Any) -> frozenset[str]:
        return gpu_resources(job(study(trial=trial), Trial(0), RUNTIME), RUNTIME.gpu_resource)

    assert of(gpus=1, template=None) == {GPU}
    limits = {"limits": {"nvidia.com/mig-1g.5gb": 1, "cpu": 4}}
    template = {"spec": {"containers": [{"name": "trainer", "image": "any", "resources": limits}]}}
    assert of(template=template) == {"nvidia.com/mig-1g.5gb"}


def test_the_pod_that_has_waited_longest_comes_first() -> None:
    def waits(name: str, seconds: float, study: StudyKey | None = None, lacking: str = GPU) -> WaitingPod:
        return WaitingPod(name, study, frozenset({lacking}), ago(seconds))

    key = StudyKey("ml", "mnist")
    pods = [waits("a", 20), waits("b", 30), waits("c", 90, key), waits("d", 90, lacking="cpu"), waits("e", 5)]
    found = first_of_others(pods, {key}, {GPU}, ago(10))
    assert found
    assert found.name == "b"
    assert first_of_others(pods[2:], {key}, {GPU}, ago(10)) is None


async def test_elastic_studies_give_back_gpus_for_each_others_minimum_only() -> None:
    """Otherwise two of them would give back GPUs in turn, for the pods with which they look for idle ones."""
    kube, now = FakeKube(), [NOW]
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: now[0])
    labels = {"tuning.dev/study": "mnist"}
    kube.put(pending("mnist-1", "ml", labels=labels))
    ours, other = elastic(), elastic()
    other = other.model_copy(update={"metadata": {**other.metadata, "name": "other"}})
    assert await runs.others_waiting(ours, has_minimum=False) is None, "its own pod"
    assert await runs.others_waiting(other, has_minimum=False) == "ml/mnist-1"
    assert await runs.others_waiting(ours, has_minimum=True) is None
    assert await runs.others_waiting(other, has_minimum=True) is None
    kube.put(pending("train", "vision", seconds=PATIENCE.total_seconds() - 1))
    assert await runs.others_waiting(other, has_minimum=True) is None, "remembered for a moment"
    now[0] += PENDING_TTL + timedelta(seconds=1)
    assert await runs.others_waiting(other, has_minimum=True) == "vision/train"
