"""The state of a run: the container `trainer` decides, whatever the other containers of its pod do."""

# ruff: noqa: E501  one state a line

from __future__ import annotations

from typing import Any

import pytest
from tuning_operator.kube.jobs.ended import why_ended
from tuning_operator.kube.jobs.evidence import ENDING_DEADLINE, Evidence, exited_at, job_state, run_state
from tuning_operator.kube.jobs.starting import why_incomplete
from tuning_operator.kube.plan.actions import Finish, Stop
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import Trial, Work
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import NOW, ago, decision, failed_job, job, pod, seen, study, summary, tell
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.world import RUNTIME

RUNNING = {"running": {"startedAt": rfc3339(ago(15))}}
IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image fluent-bit:3"}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
PATCHED = {"activeDeadlineSeconds": ENDING_DEADLINE}


def exited(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": rfc3339(ago(5))}
    return {"terminated": terminated}


def shared(
    trainer: dict[str, Any],
    other: dict[str, Any],
    *,
    native: bool = False,
    phase: str = "Running",
    **spec: Any,
) -> dict[str, Any]:
    """A pod with a trainer and another container in these states."""
    own, proxy = {"name": "trainer", "state": trainer}, {"name": "proxy", "state": other}
    sidecar = {"name": "proxy", "image": "proxy:1"}
    containers: list[dict[str, Any]] = [{"name": "trainer", "image": "python:3.12"}]
    statuses: dict[str, Any] = {"containerStatuses": [own], "startTime": rfc3339(ago(20))}
    if native:
        spec["initContainers"] = [{**sidecar, "restartPolicy": "Always"}]
        statuses["initContainerStatuses"] = [proxy]
    else:
        containers.append(sidecar)
        statuses["containerStatuses"] = [proxy, own]
    return pod(spec={"containers": containers, **spec}, phase=phase, **statuses)


def trial_job(failed: int = 0, **status: Any) -> dict[str, Any]:
    """A Job of a trial whose pod is not ready."""
    codes = {"containerName": "trainer", "operator": "NotIn", "values": [143]}
    policy = {"rules": [{"action": "Ignore"}, {"action": "FailJob", "onExitCodes": codes}]}
    body = job(active=1, ready=0, failed=failed, **status)
    return {**body, "spec": {"backoffLimit": 3, "podFailurePolicy": policy}}


def refit_job(failed: int) -> dict[str, Any]:
    return {**job(active=1, ready=0, failed=failed), "spec": {"backoffLimit": 2}}


DELETED = shared(exited(137), RUNNING)
DELETED["metadata"]["deletionTimestamp"] = rfc3339(NOW)
DRAINED = shared(exited(143), RUNNING)
DRAINED["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]

STATES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str, bool]] = {
    "out of memory beside a living proxy": (trial_job(), shared(exited(137, "OOMKilled"), RUNNING), "ended", True),
    "success beside a living proxy": (trial_job(), shared(exited(0, "Completed"), RUNNING), "ended", True),
    "failed beside a proxy without an image": (trial_job(), shared(exited(1), IMAGE), "ended", True),
    "runs beside a proxy without an image": (trial_job(), shared(RUNNING, IMAGE, phase="Pending"), "running", False),
    "runs beside a proxy that failed": (trial_job(), shared(RUNNING, exited(1)), "running", False),
    "runs beside a native sidecar that failed": (trial_job(), shared(RUNNING, exited(1), native=True), "running", False),
    "not running yet beside a proxy that is": (trial_job(), shared(CREATING, RUNNING), "starting", False),
    "a native sidecar ends with its pod": (trial_job(), shared(exited(137, "OOMKilled"), RUNNING, native=True), "starting", False),
    "alone, the Job shows the end": (trial_job(), shared(exited(1), exited(0)), "starting", False),
    "a pod that has ended": (trial_job(), shared(exited(1), exited(143), phase="Failed"), "starting", False),
    "stopped: another pod follows": (trial_job(), shared(exited(143), RUNNING), "starting", True),
    "stopped: no other pod follows": (trial_job(failed=3), shared(exited(143), RUNNING), "ended", True),
    "being deleted": (trial_job(), DELETED, "starting", False),
    "being evicted": (trial_job(), DRAINED, "starting", False),
    "a refit that has attempts left": (refit_job(1), shared(exited(1), RUNNING), "starting", True),
    "a refit without attempts left": (refit_job(2), shared(exited(1), RUNNING), "ended", True),
    "a refit that succeeded": (refit_job(0), shared(exited(0), RUNNING), "ended", True),
    "without a pod": (trial_job(), None, "starting", False),
    "ready": (job(active=1, ready=1), None, "running", False),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_the_trainer_decides(name: str) -> None:
    body, found, state, lives_on = STATES[name]
    evidence = Evidence(body, [found] if found else [])
    assert run_state(evidence) == state
    assert (exited_at(evidence) == ago(5)) == lives_on


def test_why_a_trainer_ended_beside_a_living_proxy() -> None:
    killed = why_ended(Evidence(trial_job(), [shared(exited(137, "OOMKilled"), RUNNING)])).failure
    assert killed.category == "OutOfMemory"
    assert killed.message.startswith("Container trainer")
    crashed = why_ended(Evidence(trial_job(), [shared(exited(3, message="boom"), exited(1))])).failure
    assert crashed.message == "Container trainer exited with code 3: boom"
    silent = why_ended(Evidence(trial_job(), [shared(exited(0), exited(1))])).failure
    assert silent.category == "NoResult", "how the proxy ended does not matter"


def test_a_deadline_that_ends_the_proxy_is_no_timeout() -> None:
    over = {"phase": "Failed", "reason": "DeadlineExceeded"}
    ended = shared(exited(1, message="boom"), exited(137), **PATCHED)
    ended["status"] |= over
    timeout = {"spec": {"template": {"spec": {"activeDeadlineSeconds": 3600}}}}
    for body in (failed_job(), {**failed_job(), **timeout}):
        assert why_ended(Evidence(body, [ended])).failure.category == "ExitCode"
    short = {"spec": {"template": {"spec": {"activeDeadlineSeconds": 10}}}}
    assert why_ended(Evidence({**failed_job(), **short}, [ended])).failure.category == "Timeout"


def test_what_does_not_run_beside_the_trainer() -> None:
    found = why_incomplete(Evidence(trial_job(), [shared(RUNNING, IMAGE)]))
    assert found is not None
    assert found.failure.describe() == (
        "container proxy does not run (ImagePullBackOff): Back-off pulling image fluent-bit:3. "
        "Correct or remove it in spec.trial.template."
    )
    assert why_incomplete(Evidence(trial_job(), [shared(RUNNING, CREATING)])) is None
    assert why_incomplete(Evidence(trial_job())) is None


def test_a_trial_whose_sidecar_does_not_run_goes_on_and_the_sidecar_is_reported() -> None:
    incomplete = why_incomplete(Evidence(trial_job(), [shared(RUNNING, IMAGE)]))
    decided = decision(study(), seen(summary(0), {0: Run("running", incomplete)}), NOW)
    assert not [action for action in decided.actions if isinstance(action, Stop)]
    [stalled] = [c for c in decided.status.conditions if c.type == "Stalled"]
    assert (stalled.status, stalled.reason) == ("False", "SidecarNotRunning")
    assert stalled.message.startswith("No trial is blocked, but in trial 0, container proxy does not run")
    assert [event.message for event in decided.events if event.reason == "SidecarNotRunning"] == [
        stalled.message
    ]


def test_what_lives_on_is_ended_after_a_grace() -> None:
    """The trial's result is recorded at once; the slot is free; its pod and its logs are kept."""
    killed = Run("ended", exited=ago(5))
    decided = decision(study(maxTrials=1), seen(summary(0), {0: killed}), NOW)
    assert decided.actions == (tell(0, "FAIL"),)
    over = seen(summary(complete=1), {0: killed})
    waits = decision(study(maxTrials=1), over, NOW)
    assert waits.actions == ()
    assert waits.requeue_after == 25, "the rest of pruneGrace"
    assert decision(study(maxTrials=1), over, ago(-25)).actions == (Finish(Trial(0), again=False),)
    retried = seen(summary(0), {0: Run("starting", exited=ago(60))})
    assert decision(study(maxTrials=1), retried, NOW).actions == (Finish(Trial(0), again=True),)


def test_what_lives_on_is_ended_once_in_a_pass() -> None:
    over = seen(summary(complete=1), {0: Run("ended", exited=ago(60))})
    plan = decision(study(maxTrials=1), over, NOW).plan
    assert plan.actions == (Finish(Trial(0), again=False),)
    assert over.summary
    assert decision(study(maxTrials=1), over.after(over.summary, plan.actions), NOW).actions == ()


async def listed(*pods: dict[str, Any], unfinished: set[Work]) -> tuple[JobRuns, FakeKube, Run]:
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    await runs.start(study(), Trial(0))
    kube.objects["Job", "ml", "mnist-0"]["metadata"]["creationTimestamp"] = rfc3339(ago(20))
    kube.set_status("Job", "ml", "mnist-0", active=1, ready=0, failed=1)
    for found in pods:
        kube.put({**found, "kind": "Pod"})
    return runs, kube, (await runs.list_runs(study(), unfinished))[Trial(0)]


@pytest.mark.parametrize("unfinished", [{Trial(0)}, set()], ids=["without a result", "with a result"])
async def test_a_run_that_lives_on_is_ended_by_its_pods_deadline(unfinished: set[Work]) -> None:
    key, work = StudyKey("ml", "mnist"), Trial(0)
    runs, kube, run = await listed(shared(exited(137, "OOMKilled"), RUNNING), unfinished=unfinished)
    assert (run.state, run.exited) == ("ended", ago(5))
    await runs.finish(key, work, again=False)
    assert kube.objects["Job", "ml", "mnist-0"]["spec"]["backoffLimit"] == 1, "no pod follows the failed ones"
    assert kube.objects["Pod", "ml", "mnist-0-abcde"]["spec"]["activeDeadlineSeconds"] == ENDING_DEADLINE
    run = (await runs.list_runs(study(), unfinished))[work]
    assert (run.state, run.exited) == ("ended", None), "once is enough"
    await runs.finish(key, Trial(7), again=False)


async def test_another_attempt_may_follow() -> None:
    runs, kube, run = await listed(shared(exited(143), RUNNING), unfinished={Trial(0)})
    assert (run.state, run.exited) == ("starting", ago(5))
    await runs.finish(StudyKey("ml", "mnist"), Trial(0), again=True)
    assert kube.objects["Job", "ml", "mnist-0"]["spec"]["backoffLimit"] == 3
    assert kube.objects["Pod", "ml", "mnist-0-abcde"]["spec"]["activeDeadlineSeconds"] == ENDING_DEADLINE


async def test_a_run_that_is_starting_is_looked_at_again() -> None:
    """Events about it are not watched."""
    _, _, run = await listed(shared(CREATING, CREATING, phase="Pending"), unfinished={Trial(0)})
    assert (run.state, run.check_at) == ("starting", ago(-10)), "its pod is 10 s old"


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (job(), "starting"),
        (job(active=1, ready=0), "starting"),
        (job(active=1, ready=1), "running"),
        (failed_job(), "ended"),
        (job(conditions=[{"type": "Complete", "status": "True"}]), "ended"),
        (job(conditions=[{"type": "FailureTarget", "status": "True"}]), "starting"),
        (job(conditions=[{"type": "Complete", "status": "False"}]), "starting"),
        (
            {**job(), "metadata": {**job()["metadata"], "deletionTimestamp": "2026-11-21T12:00:00Z"}},
            "stopping",
        ),
    ],
)
def test_job_state(given: dict[str, Any], state: str) -> None:
    assert job_state(given) == state
