"""From a pod's status to a failure and how to fix it. The statuses are those of real clusters."""
# ruff: noqa: E501  messages are quoted as Kubernetes writes them

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from tuning_operator.kube.jobs.ended import why_ended
from tuning_operator.kube.jobs.evidence import Evidence, is_unscheduled
from tuning_operator.kube.jobs.starting import why_not_started
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.waiting import START_GRACE
from tuning_operator.kube.plan.work import Refit, program
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import (
    GPU,
    NOW,
    ago,
    decision,
    failed_job,
    job,
    pod,
    seen,
    study,
    summary,
    terminated,
    waiting,
)


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                 "lastTransitionTime": "2026-11-21T11:59:00Z"}  # fmt: skip
    return {"phase": "Pending", "conditions": [condition]}


def event(reason: str, message: str, lasting: float = 60) -> dict[str, Any]:
    """An Event that was repeated for some seconds."""
    return {"reason": reason, "message": message, "type": "Warning",
            "firstTimestamp": rfc3339(ago(lasting)), "lastTimestamp": rfc3339(NOW)}  # fmt: skip


FULL = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
TAINTED = "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
LIMITED = 'Error creating: pods "mnist-0-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2'
SECURITY = 'Error creating: pods "mnist-0-x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'

LARGER_THAN_QUOTA = 'Error creating: pods "mnist-0-x" is forbidden: exceeded quota: kf, requested: cpu=4,memory=2Gi, used: cpu=0,memory=0, limited: cpu=2,memory=8Gi'
NO_CPU = "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
REJECTED = {
    "phase": "Failed",
    "reason": "UnexpectedAdmissionError",
    "message": "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu",
}
SANDBOX = {
    "type": "PodReadyToStartContainers",
    "status": "True",
    "lastTransitionTime": "2026-11-21T11:59:30Z",
}


def requesting(*containers: dict[str, str], init: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod's spec whose containers request these resources."""
    spec = {"containers": [{"name": f"c{n}", "resources": {"requests": r}} for n, r in enumerate(containers)]}
    return spec | ({"initContainers": [{"name": "init", "resources": {"limits": init}}]} if init else {})


def initializing(state: dict[str, Any], **container: Any) -> dict[str, Any]:
    """A pod whose container `fetch` is in this state while the trainer waits."""
    spec = {"initContainers": [{"name": "fetch", "image": "i", **container}]}
    statuses = [{"name": "fetch", "image": "i", "state": state, "started": False}]
    return pod(spec=spec, phase="Pending", initContainerStatuses=statuses, **waiting("PodInitializing"))


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
        "ContainerConfig", ["Secret \"hf-token\" doesn't exist in this namespace: create it, or correct its name in spec.trial.template."]),
    "missing config map in env": (
        Evidence(job(), [pod(**waiting("CreateContainerConfigError", 'configmap "settings" not found'))]),
        "ContainerConfig", ["ConfigMap \"settings\" doesn't exist in this namespace: create it"]),
    "root image as non-root": (
        Evidence(job(), [pod(**waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"))]),
        "ContainerConfig", ["runAsNonRoot", "Use an image whose user is a number other than 0", "securityContext.runAsUser in spec.trial.template"]),
    "more GPUs than any node has": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={GPU: "2"}),
        "Unschedulable", ["its pod requests 4 nvidia.com/gpu, but the largest node has 2", "Lower the request in spec.trial.template"]),
    "GPUs without any GPU node": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={}), "Unschedulable", ["its pod requests nvidia.com/gpu, but no node has any", "add a node that has it"]),
    "all GPUs taken": (
        Evidence(job(), [pod(**unschedulable(FULL))], largest={GPU: "8"}),
        "Capacity", ["no node has enough free nvidia.com/gpu", "spec.parallelism"]),
    "nodes may not be read": (
        Evidence(job(), [pod(**unschedulable(FULL))]), "Capacity", ["nvidia.com/gpu"]),
    "taint": (
        Evidence(job(), [pod(**unschedulable(TAINTED))], largest={GPU: "8"}),
        "Unschedulable", ["untolerated taint {gpu: true}", "tolerations"]),
    "missing claim": (
        Evidence(job(), [pod(**unschedulable('persistentvolumeclaim "data" not found'))], largest={GPU: "8"}),
        "Unschedulable", ["PersistentVolumeClaim \"data\" doesn't exist in this namespace: create it, or correct its name in volumes of spec.trial.template."]),
    "missing source": (
        Evidence(job(), [pod(phase="Pending", **waiting("ContainerCreating"))],
                 [event("FailedMount", 'MountVolume.SetUp failed for volume "tuning-source" : configmap "mnist-code" not found')]),
        "Volume", ["ConfigMap \"mnist-code\" doesn't exist in this namespace: create it", "spec.trial.source"]),
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
        "ImagePull", ["no/such:v1", "init container fetch"]),
    "a request for cpu that no node can satisfy": (
        Evidence(job(), [pod(spec=requesting({"cpu": "500"}, {"cpu": "500m"}), **unschedulable(NO_CPU))], largest={"cpu": "2"}),
        "Unschedulable", ["its pod requests 500.5 cpu, but the largest node has 2", "Lower the request in spec.trial.template"]),
    "a request for memory that no node can satisfy": (
        Evidence(job(), [pod(spec=requesting({"memory": "1Ti"}), **unschedulable("0/2 nodes are available: 2 Insufficient memory."))],
                 largest={"memory": "8005432Ki"}),
        "Unschedulable", ["its pod requests 1024Gi memory, but the largest node has 7.635Gi"]),
    "cpu that other pods use": (
        Evidence(job(), [pod(spec=requesting({"cpu": "1"}), **unschedulable(NO_CPU))], largest={"cpu": "2"}),
        "Capacity", ["no node has enough free cpu", "Wait until other work has ended"]),
    "an init container that needs more than any node has": (
        Evidence(job(), [pod(spec=requesting({"cpu": "1"}, init={"cpu": "64"}), **unschedulable(NO_CPU))], largest={"cpu": "2"}),
        "Unschedulable", ["its pod requests 64 cpu"]),
    "a misspelt resource": (
        Evidence(job(), [pod(spec=requesting({"nvidia/gpu": "1"}), **unschedulable("0/2 nodes are available: 2 Insufficient nvidia/gpu."))],
                 largest={"cpu": "2", GPU: "8"}),
        "Unschedulable", ["requests nvidia/gpu, but no node has any", "Correct the resource's name in spec.trial.template: did you mean nvidia.com/gpu?"]),
    "missing service account": (
        Evidence(job(), [], [event("FailedCreate", 'Error creating: pods "mnist-0-" is forbidden: error looking up service account ml/s3-reader: serviceaccount "s3-reader" not found')]),
        "PodRefused", ["ServiceAccount \"s3-reader\" doesn't exist in this namespace: create it, or correct its name in serviceAccountName of spec.trial.template."]),
    "missing priority class": (
        Evidence(job(), [], [event("FailedCreate", 'Error creating: pods "mnist-0-" is forbidden: no PriorityClass with name high was found')]),
        "PodRefused", ["PriorityClass \"high\" doesn't exist in this cluster: create it, or correct its name in priorityClassName"]),
    "missing runtime class": (
        Evidence(job(), [], [event("FailedCreate", 'Error creating: pods "mnist-0-" is forbidden: pod rejected: RuntimeClass "nvidia" not found')]),
        "PodRefused", ["RuntimeClass \"nvidia\" doesn't exist in this cluster: create it"]),
    "quota that needs requests": (
        Evidence(job(), [], [event("FailedCreate", 'Error creating: pods "mnist-0-x" is forbidden: failed quota: kf: must specify cpu for: trainer; memory for: trainer')]),
        "PodRefused", ["Set resources in spec.trial.template as the quota requires: cpu for: trainer; memory for: trainer."]),
    "more than the quota allows at all": (
        Evidence(job(), [], [event("FailedCreate", LARGER_THAN_QUOTA)]), "Quota", ["Lower the request in spec.trial.template"]),
    "an init container that does not end": (
        Evidence(job(), [initializing({"running": {"startedAt": rfc3339(ago(90))}})]),
        "InitContainer", ["its init container fetch has been running since 2026-11-21T11:58:30Z and has to exit before the trainer starts",
                          "see `kubectl logs mnist-0-abcde -c fetch`"]),
    "a sidecar that crashes before the trainer starts": (
        Evidence(job(), [initializing({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting"}}, restartPolicy="Always")]),
        "InitContainer", ["its sidecar container fetch exits again and again", "`kubectl logs mnist-0-abcde -c fetch`"]),
    "a sidecar whose startup probe fails": (
        Evidence(job(), [initializing({"running": {"startedAt": rfc3339(ago(90))}}, restartPolicy="Always")]),
        "InitContainer", ["its sidecar container fetch has been running since", "startup probe"]),
    "a node that rejects the pod": (
        Evidence(job(failed=1), [pod(spec={"nodeName": "gpu-7"}, **REJECTED)]),
        "PodFailed", ["is being replaced (1 pod so far)", "UnexpectedAdmissionError on node gpu-7: Allocate failed due to no healthy devices"]),
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
        Evidence(
            job(),
            [pod(phase="Pending", **waiting("ContainerCreating"))],
            [event("FailedMount", "failed to sync configmap cache: timed out waiting for the condition", 4)],
        ),
        Evidence(
            job(),
            [pod(phase="Pending", **waiting("ContainerCreating"), conditions=[SANDBOX])],
            [event("FailedMount", 'configmap "mnist-code" not found')],
        ),
        Evidence(
            job(),
            [
                pod(
                    phase="Pending",
                    spec={"initContainers": [{"name": "proxy", "restartPolicy": "Always"}]},
                    initContainerStatuses=[{"name": "proxy", "state": {"running": {}}, "started": True}],
                    **waiting("ContainerCreating"),
                )
            ],
        ),
    ],
    ids=[
        "no pod yet",
        "new pod",
        "creating",
        "initializing",
        "rejected once, then created",
        "a first mount that failed",
        "mounted after all",
        "a sidecar that has started",
    ],
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
    image = why_not_started(Evidence(job(), [pod(age=77, **waiting("InvalidImageName"))]))
    full = why_not_started(Evidence(job(), [pod(age=600, **unschedulable(FULL))]))
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T11:59:30Z"}
    queued = why_not_started(
        Evidence(job(), [pod(age=3600, **waiting("InvalidImageName"), conditions=[scheduled])])
    )
    assert queued is not None
    assert queued.since == ago(30), "the wait for a GPU does not count"
    assert image is not None
    assert full is not None
    assert (image.since, full.since) == (ago(77), ago(60))


RESET = "read tcp 10.0.0.2:58132->10.0.0.7:443: read: connection reset by peer"
NO_SECRET = 'secret "hf-token" not found'


@pytest.mark.parametrize(
    ("reason", "message", "events", "since"),
    [
        ("ErrImagePull", RESET, [], None),
        ("ImagePullBackOff", "Back-off", [], None),
        ("ImagePullBackOff", "Back-off",
         [event("Failed", f'Failed to pull image "python:3.12": {RESET}', 5), event("Failed", "Error: ErrImagePull", 5),
          event("Failed", 'Failed to pull image "python:3.12": not found', 0)], ago(5)),
        ("ImagePullBackOff", 'Back-off pulling image "quay.io/weights:v1"',
         [event("Failed", 'Failed to pull image "quay.io/weights:v1": not found', 5)], ago(5)),
        ("CreateContainerConfigError", NO_SECRET, [], None),
        ("CreateContainerConfigError", NO_SECRET,
         [event("Failed", "Error: ErrImagePull", 60), event("Failed", "Error: ImagePullBackOff", 60),
          event("Failed", f"Error: {NO_SECRET}", 5)], ago(5)),
        ("CreateContainerError", 'failed to generate container "2b" spec',
         [event("Failed", 'Error: failed to generate container "1a" spec', 20),
          event("Failed", 'Error: failed to generate container "2b" spec', 5)], ago(20)),
    ],
)  # fmt: skip
def test_a_failure_after_a_long_pull_counts_from_its_first_event(
    reason: str, message: str, events: list[dict[str, Any]], since: datetime | None
) -> None:
    """Large images take minutes; the trial waits for its user, or for the next attempt, from then on."""
    types = ("PodScheduled", "PodReadyToStartContainers", "Initialized")
    before = [{"type": t, "status": "True", "lastTransitionTime": rfc3339(ago(430))} for t in types]
    there = pod(age=440, phase="Pending", conditions=before, **waiting(reason, message))
    found = why_not_started(Evidence(job(), [there], events))
    assert found is not None
    assert found.since == since
    runs = {0: Run("starting", found), 1: Run("running")}
    decided = decision(study(), seen(summary(0, 1), runs), NOW)
    assert decided.actions == ()
    assert decided.requeue_after == ((since + START_GRACE - NOW).total_seconds() if since else None)
    [stalled] = [c for c in decided.status.conditions if c.type == "Stalled"]
    assert stalled.status == "True"


def test_a_condition_counts_by_its_type_and_status() -> None:
    """The conditions of a pod that was scheduled and whose image can't be pulled."""
    conditions = [
        {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2026-11-21T11:59:10Z"},
        {"type": "Initialized", "status": "True", "lastTransitionTime": "2026-11-21T11:58:00Z"},
        {
            "type": "Ready",
            "status": "False",
            "reason": "Unschedulable",
            "lastTransitionTime": "2026-11-21T11:59:50Z",
        },
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T11:59:30Z"},
    ]
    there = pod(phase="Pending", conditions=conditions, **waiting("InvalidImageName"))
    assert not is_unscheduled(there)
    found = why_not_started(Evidence(job(), [there]))
    assert found is not None
    assert (found.failure.category, found.since) == ("ImagePull", ago(30))
    del there["status"]["containerStatuses"]
    assert why_not_started(Evidence(job(), [there])) is None, "nothing is known to keep it from starting"


def test_a_pod_that_waits_at_a_scheduling_gate_is_unscheduled_but_not_unschedulable() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
             "lastTransitionTime": rfc3339(ago(60))}  # fmt: skip
    gates = [{"name": "kueue.x-k8s.io/admission"}]
    there = pod(phase="Pending", spec={"schedulingGates": gates}, conditions=[gated])
    assert is_unscheduled(there)
    queued = why_not_started(Evidence(job(), [there]))
    assert queued is not None
    assert (queued.failure.category, queued.since) == ("Queued", ago(60))
    assert "scheduling gate kueue.x-k8s.io/admission" in queued.failure.message
    assert "`kubectl describe pod mnist-0-abcde`" in queued.failure.describe()


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
        "StartError", ["Container logger", "The image has no /no/such/python: correct the container's command or image in spec.trial.template."]),
    "reported by the trainer": (Evidence(failed_job(), [pod(**terminated(1, message=REPORTED))]), "Exception", ["RuntimeError: boom"]),
    "exit code with last lines": (
        Evidence(failed_job(), [pod(**terminated(3, message="libcuda.so.1: cannot open"))]),
        "ExitCode", ["Container trainer exited with code 3: libcuda.so.1: cannot open. The container sees no GPU", "See `kubectl logs job/mnist-0`."]),
    "segmentation fault": (Evidence(failed_job(), [pod(**terminated(139))]), "ExitCode", ["Container trainer exited with code 139 (SIGSEGV) before the trial had a result."]),
    "killed": (Evidence(failed_job(), [pod(**terminated(137, "Error"))]), "ExitCode", ["137 (SIGKILL)", "It may have run out of memory: raise resources.limits.memory in spec.trial.template. See `kubectl logs"]),
    "a bus error": (
        Evidence(failed_job(), [pod(**terminated(135))]), "ExitCode", ["135 (SIGBUS)", "an emptyDir volume with medium: Memory is mounted at /dev/shm in spec.trial.template"]),
    "a data loader without shared memory": (
        Evidence(failed_job(), [pod(**terminated(1, message=json.dumps({"category": "Exception", "message": "RuntimeError: DataLoader worker (pid 61) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."})))]),
        "Exception", ["/dev/shm"]),
    "a read-only root file system": (
        Evidence(failed_job(), [pod(**terminated(1, message="OSError: [Errno 30] Read-only file system: 'results'"))]),
        "ExitCode", ["readOnlyRootFilesystem", "an emptyDir mounted at /tmp in spec.trial.template"]),
    "an old Python": (
        Evidence(failed_job(), [pod(**terminated(1, message='  File "/var/run/tuning.dev/trainer/trainer.zip/__main__.py", line 3\nSyntaxError: future feature annotations is not defined'))]),
        "StartError", ["Python is too old", "The image needs Python 3.9 or later", "spec.trial.python"]),
    "an init container that fails": (
        Evidence(failed_job(), [pod(spec={"initContainers": [{"name": "git-clone", "image": "i"}]}, phase="Failed",
            initContainerStatuses=[{"name": "git-clone", "state": {"terminated": {"exitCode": 128, "message": "fatal: Could not resolve host"}}}],
            **waiting("PodInitializing"))]),
        "ExitCode", ["Init container git-clone exited with code 128: fatal: Could not resolve host. See `kubectl logs job/mnist-0 -c git-clone`."]),
    "a trainer beside others": (
        Evidence(failed_job(), [pod(spec={"containers": [{"name": "trainer"}, {"name": "proxy"}]}, **terminated(3))]),
        "ExitCode", ["See `kubectl logs job/mnist-0 -c trainer`."]),
    "nodes that reject each pod": (
        Evidence(failed_job(), [pod(age=age, spec={"nodeName": "gpu-7"}, **REJECTED) for age in (90, 60, 30, 10)]),
        "PodFailed", ["failed 4 times before the trainer ran: UnexpectedAdmissionError on node gpu-7: Allocate failed"]),
    "pods that are deleted": (
        Evidence({**failed_job(), "status": {**failed_job()["status"], "failed": 4}}),
        "PodDeleted", ["4 pods of the trial were deleted before it had a result", "kubectl get events"]),
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

    limited = {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}]}
    killed = pod(spec=limited, **terminated(137, "OOMKilled"))
    assert "spec.refit.template" in why({"template": template}, killed)
    assert "make the refit use less memory" in why({"template": template}, killed)
    assert "spec.trial.template" in why({}, killed)
    assert "spec.refit.timeout" in why({}, pod(phase="Failed", reason="DeadlineExceeded"))
