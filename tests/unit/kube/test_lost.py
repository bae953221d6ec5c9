"""Runs that are lost through no fault of the study are started again, on another node if one rejects pods."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tuning_operator.kube.jobs.ended import why_ended
from tuning_operator.kube.jobs.evidence import Evidence
from tuning_operator.kube.jobs.lost import (
    AVOIDED_FOR,
    MOST_RESTARTS,
    REJECTIONS,
    Rejections,
    Restarts,
    avoiding,
    must_move,
    never_starts,
    restarts_of,
    why_lost,
)
from tuning_operator.kube.jobs.starting import why_not_started
from tuning_operator.protocol import TrialRecord
from tuning_operator.resource import names
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import NOW, failed_job, job, pod, terminated
from tests.unit.kube.world import COMPLETE, KEY, World

BY_POLICY = failed_job(reason="PodFailurePolicy")
LEAVING = {"deletionTimestamp": rfc3339(NOW)}


def on(node: str, *, leaving: bool = False, **status: Any) -> dict[str, Any]:
    there = pod(spec={"nodeName": node}, **status)
    there["metadata"] |= LEAVING if leaving else {}
    return there


LOST: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a pod that was deleted and killed": ([], "its pod was deleted while it ran"),
    "one that is still shown": (
        [on("a", leaving=True, **terminated(137))],
        "its pod was deleted while it ran",
    ),
    "a reboot": (
        [on("a", **terminated(255, "Unknown"))],
        "Unknown on node a: the node was probably restarted",
    ),
    "a kubelet without the container": (
        [on("a", **terminated(137, "ContainerStatusUnknown", "The container could not be located"))],
        "ContainerStatusUnknown on node a: The container could not be located",
    ),
    "a shutdown": (
        [on("a", **{**terminated(137), "reason": "Terminated", "message": "imminent node shutdown"})],
        "its node ended its pod: Terminated on node a: imminent node shutdown",
    ),
    "a pod that its node rejects after a restart": (
        [on("a", **{**terminated(255), "reason": "UnexpectedAdmissionError", "message": "no devices"})],
        "UnexpectedAdmissionError on node a: no devices",
    ),
}
OWN_FAULT: dict[str, dict[str, Any]] = {
    "an exit code": on("a", **terminated(1)),
    "out of memory": on("a", **terminated(137, "OOMKilled")),
    "out of memory, then deleted": on("a", leaving=True, **terminated(137, "OOMKilled")),
    "killed": on("a", **terminated(137)),
    "its deadline": on("a", **{**terminated(137), "reason": "DeadlineExceeded", "message": "m"}),
    "evicted": on("a", **{**terminated(137), "reason": "Evicted", "message": "m"}),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_not_the_studys_fault(name: str) -> None:
    pods, text = LOST[name]
    assert text in (why_lost(Evidence(BY_POLICY, pods)) or "")
    assert why_lost(Evidence(failed_job(), pods)) is None, "the Job has replaced its pods as often as it may"


@pytest.mark.parametrize("name", OWN_FAULT)
def test_what_is_the_studys_fault(name: str) -> None:
    assert why_lost(Evidence(BY_POLICY, [OWN_FAULT[name]])) is None


@pytest.mark.parametrize(
    "reason", ["UnexpectedAdmissionError", "NodeShutdown", "OutOfnvidia.com/gpu", "NodeAffinity"]
)
def test_a_run_moves_away_from_a_node_that_rejects_its_pods(reason: str) -> None:
    rejected = on("a", phase="Failed", reason=reason, message="no")
    assert reason in (must_move(Evidence(job(), [rejected]), {"a"}) or "")
    assert must_move(Evidence(job(), [rejected]), {"b"}) is None
    moved = job()
    moved["metadata"]["annotations"] = Restarts(1, ("a",), "no").annotations()
    assert must_move(Evidence(moved, [rejected]), {"a"}) is None, "it has moved"
    started = on("a", **terminated(255, "Unknown"))
    assert must_move(Evidence(job(), [started]), {"a"}) is None


CREATED: dict[str, Any] = {"containerID": "containerd://064fbe63", "state": {"waiting": {}}}


def pending(set_up: str, **trainer: Any) -> dict[str, Any]:
    """Return a pod as a rebooted node showed it, with a container and without a sandbox."""
    condition = {"type": "PodReadyToStartContainers", "status": set_up}
    status = {"name": "trainer", "ready": False, "restartCount": 0, "started": False, **trainer}
    return on("a", phase="Pending", conditions=[condition], containerStatuses=[status])


def test_a_pod_whose_node_went_down_between_creating_and_starting_its_container() -> None:
    assert never_starts(Evidence(job(), [pending("False", **CREATED)])) == (
        "its node a went down while starting its pod"
    )
    assert never_starts(Evidence(job(), [pending("True", **CREATED)])) is None, "it is about to start"
    creating = pending("False", state={"waiting": {"reason": "ContainerCreating"}})
    assert never_starts(Evidence(job(), [creating])) is None
    assert never_starts(Evidence(job())) is None


async def test_a_trial_whose_pod_never_starts_gets_another_one() -> None:
    world = World(parallelism=1)
    await world.settle()
    before = world.jobs[0]["metadata"]["uid"]
    stuck = pending("False", **CREATED)
    stuck["metadata"]["ownerReferences"] = [world.owner(0)]
    world.kube.put({**stuck, "kind": "Pod"})
    await world.settle()
    assert world.jobs[0]["metadata"]["uid"] != before
    assert restarts_of(world.jobs[0]).count == 1
    assert world.server.trials[KEY][0].state == "RUNNING"


def test_the_annotation_is_read_whatever_it_holds() -> None:
    there = job()
    assert restarts_of(there) == Restarts()
    for text in ("", "[]", '{"count": "x"}', "{}"):
        there["metadata"]["annotations"] = {names.ANNOTATION_RESTARTS: text}
        assert restarts_of(there) == Restarts()
    there["metadata"]["annotations"] = Restarts(2, ("a", "b"), "x" * 1000).annotations()
    found = restarts_of(there)
    assert (found.count, found.avoided, len(found.reason) <= 300) == (2, ("a", "b"), True)


def test_avoided_nodes_are_added_to_what_the_template_requires() -> None:
    def not_on(*nodes: str) -> list[dict[str, Any]]:
        return [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]

    required = "requiredDuringSchedulingIgnoredDuringExecution"
    assert avoiding({}, ["a", "b"]) == {
        "nodeAffinity": {required: {"nodeSelectorTerms": [{"matchFields": not_on("a", "b")}]}}
    }
    zone = {"key": "zone", "operator": "Exists"}
    theirs = {
        "podAffinity": {},
        "nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [zone]}, {}]}},
    }
    terms = [{"matchExpressions": [zone], "matchFields": not_on("a")}, {}]
    assert avoiding(theirs, ["a"]) == {
        "podAffinity": {},
        "nodeAffinity": {required: {"nodeSelectorTerms": terms}},
    }
    assert theirs["nodeAffinity"][required]["nodeSelectorTerms"][0] == {"matchExpressions": [zone]}, (
        "unchanged"
    )


def avoided(world: World, trial: int) -> list[str]:
    terms = world.jobs[trial]["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    selector = terms.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [{}])
    return [value for field in selector[0].get("matchFields", []) for value in field["values"]]


async def test_a_node_that_rejects_pods_fails_no_trial() -> None:
    """Each trial but the first ones starts elsewhere at once."""
    world = World(parallelism=2, maxTrials=6, maxFailedTrials=0)
    await world.settle()
    world.reject(0, "black-hole")
    await world.settle()
    assert avoided(world, 0) == [], "a single rejection may have come at a bad moment"
    assert world.condition("Stalled")["reason"] == "PodFailed"
    assert (
        "UnexpectedAdmissionError on node black-hole: no healthy devices"
        in world.condition("Stalled")["message"]
    )
    world.reject(1, "black-hole")
    await world.settle()
    assert avoided(world, 0) == avoided(world, 1) == ["black-hole"]
    assert ("PodFailed", 1) in world.kube.events()
    for number in range(6):
        world.begin(number)
        world.succeed(number)
        await world.settle()
        if number < 4:
            assert avoided(world, number + 2) == ["black-hole"]
    assert world.status["phase"] == "Completed"
    assert [t.state for t in world.server.trials[KEY]] == ["COMPLETE"] * 6


async def test_a_node_that_was_avoided_is_tried_again() -> None:
    """The only node recovers; until then, the study says what it waits for."""
    world = World(parallelism=1)
    await world.settle()
    world.reject(0, "only")
    world.reject(0, "only")
    await world.settle()
    assert avoided(world, 0) == ["only"]
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    pending = pod(0, phase="Pending", conditions=[condition])
    pending["metadata"]["ownerReferences"] = [world.owner(0)]
    world.kube.put({**pending, "kind": "Pod"})
    await world.settle()
    stalled = world.condition("Stalled")
    assert stalled["reason"] == "PodFailed"
    assert (
        "a node other than only, which rejected pods (UnexpectedAdmissionError on node only"
        in stalled["message"]
    )
    world.advance(AVOIDED_FOR.total_seconds() + 1)
    await world.settle()
    assert avoided(world, 0) == []
    assert world.server.trials[KEY][0].state == "RUNNING"


@pytest.mark.parametrize(
    "now",
    [
        {"startTime": rfc3339(NOW)},
        {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(NOW)}]},
    ],
    ids=["startTime", "a condition"],
)
def test_pods_that_waited_for_a_node_before_it_rejected_them_count(now: dict[str, Any]) -> None:
    rejections = Rejections()
    for number in range(REJECTIONS):
        waited = on("a", phase="Failed", reason="UnexpectedAdmissionError", message="no", **now)
        hour_ago = {"creationTimestamp": rfc3339(NOW - timedelta(hours=1)), "uid": f"pod-{number}"}
        waited["metadata"] |= hour_ago
        rejections.see(waited)
    assert list(rejections.nodes(NOW)) == ["a"]
    assert not rejections.nodes(NOW + AVOIDED_FOR + timedelta(seconds=1))


async def test_a_node_that_a_template_names_is_not_taken_from_others() -> None:
    """It is full, and the scheduler, which knows that, isn't asked for pods with nodeName."""
    container = {"name": "trainer", "image": "i"}
    world = World(trial={"template": {"spec": {"nodeName": "gpu-1", "containers": [container]}}})
    await world.settle()
    for trial in (0, 1):
        world.reject(trial, "gpu-1", "OutOfnvidia.com/gpu")
        world.reject(trial, "gpu-1", "OutOfnvidia.com/gpu")
    await world.settle()
    assert [restarts_of(job) for job in world.jobs.values()] == [Restarts()] * 2, "they can't move"
    world.edit(trial={"template": {"spec": {"containers": [container]}}, "objective": "train:objective"})
    await world.settle()
    assert avoided(world, 0) == avoided(world, 1) == []


async def test_a_template_that_names_its_node_avoids_none() -> None:
    world = World()
    await world.settle()
    for trial in (0, 1):
        world.reject(trial, "black-hole")
    await world.settle()
    assert avoided(world, 0) == ["black-hole"]
    container = {"name": "trainer", "image": "i"}
    template = {"spec": {"nodeName": "gpu-1", "containers": [container]}}
    world.edit(trial={"template": template, "objective": "train:objective"})
    await world.settle()
    assert world.jobs[0]["spec"]["template"]["spec"]["nodeName"] == "gpu-1"
    assert avoided(world, 0) == []
    assert restarts_of(world.jobs[0]).avoided == ()


async def test_a_trial_that_is_lost_each_time_fails_at_last() -> None:
    world = World(parallelism=1, maxTrials=1)
    for _ in range(MOST_RESTARTS):
        await world.settle()
        world.lose(0)
    await world.settle()
    assert world.server.trials[KEY][0].state == "RUNNING"
    assert (
        json.loads(world.jobs[0]["metadata"]["annotations"][names.ANNOTATION_RESTARTS])["count"]
        == MOST_RESTARTS
    )
    world.lose(0)
    await world.settle()
    trial = world.server.trials[KEY][0]
    assert trial.state == "FAIL"
    assert trial.failure is not None
    assert trial.failure.category == "PodDeleted"
    assert f"started again {MOST_RESTARTS} times; the last time, its pod was deleted" in trial.failure.message


async def test_a_lost_trial_of_a_study_that_ends_is_not_started_again() -> None:
    world = World(parallelism=1, timeout="1h")
    await world.settle()
    world.lose(0)
    world.advance(3601)
    await world.settle()
    assert world.server.trials[KEY][0].state == "PRUNED"
    assert world.status["phase"] == "Completed"


async def test_a_lost_refit_is_started_again() -> None:
    world = World(parallelism=1, maxTrials=1, refit={"retries": 0})
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.end_refit(failed=1, conditions=[{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}])
    await world.settle()
    assert world.refit_lives()
    assert world.status["refit"]["phase"] == "Pending"


def test_why_a_moved_run_waits() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    there = job()
    there["metadata"]["annotations"] = Restarts(1, ("a", "b"), "OutOfcpu on node b: no").annotations()
    found = why_not_started(Evidence(there, [pod(phase="Pending", conditions=[condition])]))
    assert found is not None
    assert found.failure.message == (
        "it waits for a node other than a and b, which rejected pods (OutOfcpu on node b: no): 0/3 nodes"
    )


def test_a_node_that_loses_a_trial_each_time_is_named() -> None:
    there = {**BY_POLICY, "metadata": {**BY_POLICY["metadata"], "annotations": Restarts(5).annotations()}}
    failure = why_ended(Evidence(there, [on("a", **terminated(255, "Unknown"))])).failure
    assert failure.category == "PodFailed"
    assert failure.message.startswith(
        "The trial was started again 5 times; the last time, its node ended its pod"
    )


def begun(number: int, seconds: int) -> TrialRecord:
    started = NOW + timedelta(seconds=seconds, microseconds=number)
    return TrialRecord(number=number, state="RUNNING", started=started)


async def test_jobs_of_trials_that_the_database_has_lost_are_replaced() -> None:
    """Whatever they have become: none is taken for the trial that has got its number."""
    world = World(parallelism=4, maxTrials=8)
    await world.settle()
    world.server.trials[KEY] = [begun(number, 0) for number in range(4)]
    for number in range(4):
        world.delete_job(number)
    await world.settle()
    before = {number: job["metadata"]["uid"] for number, job in world.jobs.items()}
    world.begin(0)
    world.crash(1)
    world.end_job(2, succeeded=1, conditions=COMPLETE)
    left = pod(2, **terminated(0, message='{"state": "COMPLETE", "values": [0.9]}'))
    left["metadata"] |= {"ownerReferences": [world.owner(2)]}
    world.kube.put({**left, "kind": "Pod"})

    world.server.trials[KEY] = [begun(number, 60) for number in range(3)]
    world.edit(parallelism=3)
    await world.settle()
    running = [trial.number for trial in world.server.running(KEY)]
    assert running == [0, 1, 2], "no trial has failed, or has the result of another one"
    after = {number: job["metadata"]["uid"] for number, job in world.jobs.items()}
    assert not {after[number] for number in running} & set(before.values())
    assert ("TrialsLost", 1) in world.kube.events()


async def test_a_job_whose_trial_is_not_known_stays() -> None:
    """Such as one from an earlier version of the operator, or one that a user has changed."""
    world = World(parallelism=2)
    await world.settle()
    world.server.trials[KEY] = [begun(number, 0) for number in range(2)]
    world.jobs[1]["metadata"]["annotations"]["tuning.dev/trial-started"] = "yesterday"
    before = {number: job["metadata"]["uid"] for number, job in world.jobs.items()}
    await world.settle()
    assert {number: job["metadata"]["uid"] for number, job in world.jobs.items()} == before
