"""From a pod's status to a failure and how to fix it. The statuses are those of real clusters."""
# ruff: noqa: E501  messages are quoted as Kubernetes writes them

from __future__ import annotations

import json
from typing import Any

import pytest
from tuning_operator.kube.jobs.ended import why_ended
from tuning_operator.kube.jobs.evidence import Evidence, job_state
from tuning_operator.kube.jobs.starting import why_not_started
from tuning_operator.kube.plan.work import Refit, program

from tests.unit.kube.builders import GPU, ago, failed_job, job, pod, study, terminated, waiting


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                 "lastTransitionTime": "2026-11-21T11:59:00Z"}  # fmt: skip
    return {"phase": "Pending", "conditions": [condition]}


def event(reason: str, message: str) -> dict[str, Any]:
    return {"reason": reason, "message": message, "type": "Warning", "lastTimestamp": "2026-11-21T12:00:00Z"}


FULL = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
TAINTED = "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
LIMITED = 'Error creating: pods "mnist-0-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2'
SECURITY = 'Error creating: pods "mnist-0-x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'

WAITING: dict[str, tuple[Evidence, str, list[str]]] = {
    "image": (
        Evidence(job(), [pod(phase="Pending", **waiting("ImagePullBackOff", 'Back-off pulling image "python:3.12"'))],
                 [event("Failed", 'Failed to pull image "python:3.12": not found')]),
        "ImagePull", ["python:3.12", "not found", "spec.trial.template", "imagePullSecrets"]),
    "image, first try": (
        Evidence(job(), [pod(**waiting("ErrImagePull", "dial tcp 127.0.0.1:1: connect: connection refused"))]),
        "ImagePull", ["connection refused"]),
    "image name": (
        Evidence(job(), [pod(**waiting("InvalidImageName", "couldn't parse image name"))]), "ImagePull", ["couldn't parse"]),
    "missing secret": (
        Evidence(job(), [pod(**waiting("CreateContainerConfigError", 'secret "hf-token" not found'))]),
        "ContainerConfig", ['secret "hf-token"', "Create the Secret hf-token in this namespace"]),
    "missing config map in env": (
        Evidence(job(), [pod(**waiting("CreateContainerConfigError", 'configmap "settings" not found'))]),
        "ContainerConfig", ["Create the ConfigMap settings in this namespace"]),
    "root image as non-root": (
        Evidence(job(), [pod(**waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"))]),
        "ContainerConfig", ["runAsNonRoot", "Correct the container's settings"]),
    "more GPUs than any node has": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={GPU: 2}),
        "Unschedulable", ["4 nvidia.com/gpu", "the largest node has 2", "resources.limits"]),
    "GPUs without any GPU node": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={}), "Unschedulable", ["no node has any"]),
    "all GPUs taken": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={GPU: 8}),
        "Capacity", ["no node has enough free nvidia.com/gpu", "spec.parallelism"]),
    "nodes may not be read": (
        Evidence(job(), [pod(**unschedulable(FULL))]), "Capacity", ["nvidia.com/gpu"]),
    "taint": (
        Evidence(job(), [pod(**unschedulable(TAINTED))], largest={GPU: 8}),
        "Unschedulable", ["untolerated taint {gpu: true}", "tolerations"]),
    "missing claim": (
        Evidence(job(), [pod(**unschedulable('persistentvolumeclaim "data" not found'))], largest={GPU: 8}),
        "Unschedulable", ['persistentvolumeclaim "data" not found', "volumes"]),
    "missing source": (
        Evidence(job(), [pod(phase="Pending", **waiting("ContainerCreating"))],
                 [event("FailedMount", 'MountVolume.SetUp failed for volume "tuning-source" : configmap "mnist-code" not found')]),
        "Volume", ["Create the ConfigMap mnist-code in this namespace", "spec.trial.source"]),
    "suspended by a queue": (
        Evidence({**job(), "spec": {"suspend": True}}), "Queued", ["Job mnist-0 is suspended", "queue", "kubectl describe job mnist-0"]),
    "quota": (Evidence(job(), [], [event("FailedCreate", LIMITED)]), "Quota", ["exceeded quota: gpus", "ResourceQuota"]),
    "pod security": (Evidence(job(), [], [event("FailedCreate", SECURITY)]), "PodRefused", ["PodSecurity", "policies"]),
    "node's network": (
        Evidence(job(), [pod(phase="Pending", **waiting("ContainerCreating"))],
                 [event("FailedCreatePodSandBox", "plugin type bridge failed")]),
        "Node", ["plugin type bridge failed"]),
    "init container's image": (
        Evidence(job(), [pod(spec={"initContainers": [{"name": "fetch", "image": "no/such:v1"}]}, initContainerStatuses=[
            {"name": "fetch", "image": "", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}],
            **waiting("PodInitializing"))]),
        "ImagePull", ["no/such:v1", "container fetch"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITING)
def test_why_not_started(name: str) -> None:
    evidence, category, words = WAITING[name]
    diagnosis = why_not_started(evidence)
    assert diagnosis is not None
    assert diagnosis.failure.category == category
    for word in words:
        assert word in diagnosis.failure.describe()


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(job()),
        Evidence(job(), [pod(phase="Pending")]),
        Evidence(job(), [pod(phase="Pending", **waiting("ContainerCreating"))]),
        Evidence(
            job(), [pod(phase="Pending", **waiting("PodInitializing"))], [event("BackOff", "something else")]
        ),
        Evidence(job(), [pod()], [event("FailedCreate", LIMITED)]),
    ],
    ids=["no pod yet", "new pod", "creating", "initializing", "rejected once, then created"],
)
def test_a_pod_on_its_way_has_no_diagnosis(evidence: Evidence) -> None:
    assert why_not_started(evidence) is None


def test_a_trial_that_is_evicted_repeatedly() -> None:
    evicted = [pod(age=age, **EVICTED) for age in (300, 200, 100)]
    fresh = pod(phase="Pending")
    assert why_not_started(Evidence(job(), [*evicted[:2], fresh])) is None
    diagnosis = why_not_started(Evidence(job(), [*evicted, fresh]))
    assert diagnosis is not None
    assert diagnosis.failure.category == "Evicted"
    assert "3 of its pods" in diagnosis.failure.message


def test_an_unreachable_node() -> None:
    lost = pod(phase="Running", spec={"nodeName": "gpu-7"}, conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}])  # fmt: skip
    lost["metadata"]["deletionTimestamp"] = "2026-11-21T11:58:00Z"
    diagnosis = why_not_started(Evidence(job(), [lost]))
    assert diagnosis is not None
    assert "kubectl delete node gpu-7" in diagnosis.failure.describe()
    assert diagnosis.since == ago(120)


def test_since_when() -> None:
    image = why_not_started(Evidence(job(), [pod(age=77, **waiting("ErrImagePull"))]))
    full = why_not_started(Evidence(job(), [pod(age=600, **unschedulable(FULL))]))
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T11:59:30Z"}
    queued = why_not_started(
        Evidence(job(), [pod(age=3600, **waiting("ErrImagePull"), conditions=[scheduled])])
    )
    assert queued is not None
    assert queued.since == ago(30), "the wait for a GPU does not count"
    assert image is not None
    assert full is not None
    assert (image.since, full.since) == (ago(77), ago(60))


NO_PYTHON = 'failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "python3": executable file not found in $PATH: unknown'
NO_PATH = 'OCI runtime create failed: unable to start container process: exec: "/no/such/python": stat /no/such/python: no such file or directory: unknown'
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
DEADLINE = {
    "phase": "Failed",
    "reason": "DeadlineExceeded",
    "message": "Pod was active on the node longer than the specified deadline",
}
REPORTED = json.dumps(
    {"category": "Exception", "message": "RuntimeError: boom", "remedy": None, "traceback": "Traceback ..."}
)

ENDED: dict[str, tuple[Evidence, str, list[str]]] = {
    "out of memory": (
        Evidence(failed_job(), [pod(**terminated(137, "OOMKilled"))]), "OutOfMemory", ["memory", "resources.limits.memory"]),
    "evicted": (Evidence(failed_job(), [pod(**EVICTED)]), "Evicted", ["low on resource: memory"]),
    "pod deadline": (
        Evidence(failed_job(), [pod(**{**terminated(137), **DEADLINE})]), "Timeout", ["timeout (spec.trial.timeout)"]),
    "Job deadline": (Evidence(failed_job(reason="DeadlineExceeded")), "Timeout", ["spec.trial.timeout"]),
    "no python": (
        Evidence(failed_job(), [pod(**terminated(128, "StartError", NO_PYTHON))]), "StartError", ["spec.trial.python", '"python3"']),
    "no such python": (
        Evidence(failed_job(), [pod(**terminated(128, "StartError", NO_PATH))]), "StartError", ["/no/such/python", "spec.trial.python"]),
    "a sidecar that cannot start": (
        Evidence(failed_job(), [pod(**terminated(128, "StartError", NO_PATH, container="logger"))]),
        "StartError", ["Container logger", "command and image"]),
    "reported by the trainer": (Evidence(failed_job(), [pod(**terminated(1, message=REPORTED))]), "Exception", ["RuntimeError: boom"]),
    "exit code with last lines": (
        Evidence(failed_job(), [pod(**terminated(3, message="libcuda.so.1: cannot open"))]),
        "ExitCode", ["Container trainer exited with code 3: libcuda.so.1: cannot open. See `kubectl logs job/mnist-0`."]),
    "segmentation fault": (Evidence(failed_job(), [pod(**terminated(139))]), "ExitCode", ["Container trainer exited with code 139 (SIGSEGV) before the trial had a result."]),
    "killed": (Evidence(failed_job(), [pod(**terminated(137, "Error"))]), "ExitCode", ["137 (SIGKILL)"]),
    "exit 0": (
        Evidence(job(conditions=[{"type": "Complete", "status": "True"}]), [pod(phase="Succeeded")]), "NoResult", ["did not report a result"]),
    "no pod left": (Evidence(failed_job()), "JobFailed", ["BackoffLimitExceeded"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDED)
def test_why_ended(name: str) -> None:
    evidence, category, words = ENDED[name]
    diagnosis = why_ended(evidence)
    assert diagnosis.failure.category == category
    for word in words:
        assert word in diagnosis.failure.describe()


def test_the_traceback_survives() -> None:
    diagnosis = why_ended(Evidence(failed_job(), [pod(**terminated(1, message=REPORTED))]))
    assert diagnosis.failure.traceback == "Traceback ..."


def test_the_newest_pod_counts() -> None:
    drained, last = pod(age=500, **terminated(143)), pod(age=10, **terminated(137, "OOMKilled"))
    assert why_ended(Evidence(failed_job(), [last, drained])).failure.category == "OutOfMemory"


def test_long_messages_are_cut() -> None:
    message = why_ended(Evidence(failed_job(), [pod(**terminated(1, message="x" * 10_000))])).failure.message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (job(), "starting"),
        (job(active=1, ready=0), "starting"),
        (job(active=1, ready=1), "running"),
        (failed_job(), "ended"),
        (job(conditions=[{"type": "Complete", "status": "True"}]), "ended"),
        (job(conditions=[{"type": "FailureTarget", "status": "True"}]), "starting"),
        (
            {**job(), "metadata": {**job()["metadata"], "deletionTimestamp": "2026-11-21T12:00:00Z"}},
            "stopping",
        ),
    ],
)
def test_job_state(given: dict[str, Any], state: str) -> None:
    assert job_state(given) == state


def test_of_several_attempts_the_last_one_counts() -> None:
    first = pod(age=60, **terminated(137, "OOMKilled"))
    reported = json.dumps({"category": "Exception", "message": "ValueError: boom"})
    last = pod(age=10, **terminated(1, message=reported))
    assert why_ended(Evidence(failed_job(), [first, last])).failure.category == "Exception"
    assert why_ended(Evidence(failed_job(), [last, first])).failure.category == "Exception"
    silent = pod(age=10, phase="Failed")
    assert why_ended(Evidence(failed_job(), [first, silent])).failure.category == "OutOfMemory"


def test_a_diagnosis_of_a_refit_names_the_refits_own_fields() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "image": "i"}]}}

    def why(refit: dict[str, Any], pod: dict[str, Any]) -> str:
        fields = program(study(refit=refit), Refit(0, "a")).fields
        return why_ended(Evidence(failed_job(), [pod], noun="refit", fields=fields)).failure.describe()

    killed = pod(**terminated(137, "OOMKilled"))
    assert "spec.refit.template" in why({"template": template}, killed)
    assert "make the refit use less memory" in why({"template": template}, killed)
    assert "spec.trial.template" in why({}, killed)
    assert "spec.refit.timeout" in why({}, pod(phase="Failed", reason="DeadlineExceeded"))
