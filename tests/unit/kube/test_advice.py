"""Messages of registries, container runtimes, schedulers and programs, and what a user is advised to do."""
# ruff: noqa: E501  messages are quoted as clusters write them

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tuning_operator.kube.jobs.ended import why_ended
from tuning_operator.kube.jobs.evidence import Evidence, run_state
from tuning_operator.kube.jobs.lost import rejecting_node, why_lost
from tuning_operator.kube.jobs.starting import why_incomplete, why_not_started
from tuning_operator.kube.plan.observation import Diagnosis, Run
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
    tell,
    terminated,
    waiting,
)
from tests.unit.kube.test_diagnose import event, unschedulable
from tests.unit.kube.test_run_state import RUNNING, exited, shared, trial_job

OCI = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "


def found(evidence: Evidence) -> Diagnosis:
    state = run_state(evidence)
    diagnosis = {"starting": why_not_started, "running": why_incomplete, "ended": why_ended}[state](evidence)
    assert diagnosis is not None
    return diagnosis


def waits(reason: str, message: str) -> Evidence:
    return Evidence(job(), [pod(phase="Pending", **waiting(reason, message))])


def ended(code: int, reason: str, message: str = "", *, spec: Any = None, **status: Any) -> Evidence:
    there = pod(spec=spec, **{**terminated(code, reason, message), **status})
    return Evidence(failed_job(reason="PodFailurePolicy"), [there])


IMAGES = [
    ("ImagePull", 'failed to resolve reference "docker.io/acme/train:v1": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed', "imagePullSecrets must name a Secret with access"),
    ("ImagePull", "initializing source docker://quay.io/acme/train:v1: reading manifest v1 in quay.io/acme/train: unauthorized: access to the requested resource is not authorized", "imagePullSecrets must name a Secret"),
    ("ImagePull", "reading manifest v9 in ghcr.io/acme/train: manifest unknown", "Check the image's name and tag"),
    ("ImagePull", 'failed to pull and unpack image "docker.io/acme/train:arm": no match for platform in manifest: not found', "not built for the CPU of this node"),
    ("ImagePull", 'choosing image instance: no image found in manifest list for architecture "arm64", variant "v8", OS "linux"', "kubernetes.io/arch"),
    ("ImagePull", 'failed to do request: Head "https://registry.corp/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority', "registry's certificate"),
    ("ImagePull", 'failed to do request: Head "https://10.0.0.5:5000/v2/": http: server gave HTTP response to HTTPS client', "plain HTTP"),
    ("ImagePull", 'failed to do request: Head "https://registry.crop/v2/": dial tcp: lookup registry.crop on 10.0.0.2:53: no such host', "check the registry's name in spec.trial.template"),
    ("Registry", "httpReadSeeker: failed open: unexpected status code https://registry-1.docker.io/v2/pytorch/pytorch/manifests/sha256:aa: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit.", "add imagePullSecrets to spec.trial.template, or use a mirror"),
    ("Registry", "unexpected status from HEAD request to https://registry.corp/v2/train/manifests/v1: 503 Service Unavailable", "The registry is unavailable"),
    ("Node", "failed to extract layer sha256:aa: write /var/lib/containerd/snapshots/1/fs/x: no space left on device", "The node's disk is full"),
]  # fmt: skip


@pytest.mark.parametrize(("category", "message", "advice"), IMAGES, ids=[row[1][:60] for row in IMAGES])
def test_images(category: str, message: str, advice: str) -> None:
    failure = found(waits("ErrImagePull", message)).failure
    assert failure.category == category
    assert message in failure.message
    assert advice in (failure.remedy or "")


@pytest.mark.parametrize(
    ("reason", "message", "advice"),
    [
        ("InvalidImageName", 'couldn\'t parse image name "Acme/Train": invalid reference format: repository name must be lowercase', "in lower case"),
        ("ErrImageNeverPull", 'Container image "train:dev" is not present with pull policy of Never', "imagePullPolicy"),
        ("ImageInspectError", 'Failed to inspect image "train:v1": rpc error: layers are missing', "is damaged"),
        ("SignatureValidationFailed", "image pull failed because the signature validation failed: Source image rejected", "signature"),
    ],
)  # fmt: skip
def test_other_reasons_of_images(reason: str, message: str, advice: str) -> None:
    failure = found(waits(reason, message)).failure
    assert failure.category == "ImagePull"
    assert advice in (failure.remedy or "")


def test_the_last_event_about_the_same_image_counts() -> None:
    containers = [{"name": "log", "image": "fluent:9"}, {"name": "trainer", "image": "train:v1"}]
    there = pod(
        phase="Pending", spec={"containers": containers}, **waiting("ImagePullBackOff", "Back-off", "log")
    )
    first = event("Failed", 'Failed to pull image "fluent:9": i/o timeout')
    first["lastTimestamp"] = rfc3339(ago(50))
    events = [event("Failed", 'Failed to pull image "train:v1": denied'), first,
              event("Failed", 'Failed to pull image "fluent:9": not found')]  # fmt: skip
    message = found(Evidence(job(), [there], events)).failure.message
    assert message.endswith('(ImagePullBackOff): Failed to pull image "fluent:9": not found')


def test_a_registry_that_refuses_for_a_while_fails_no_trial() -> None:
    """Its rate limit counts hours, and the trial is not at fault. A wrong name fails the trial in the end."""
    for message, fails in (("429 Too Many Requests", False), ("manifest unknown", True)):
        there = pod(age=600, phase="Pending", **waiting("ImagePullBackOff"))
        failed = event("Failed", f'Failed to pull image "python:3.12": {message}', 600)
        run = Run("starting", why_not_started(Evidence(job(), [there], [failed])))
        decided = decision(study(maxTrials=1), seen(summary(0), {0: run}), NOW)
        assert (tell(0, "FAIL", run.diagnosis and run.diagnosis.failure) in decided.actions) == fails
        [stalled] = [c for c in decided.status.conditions if c.type == "Stalled"]
        assert stalled.status == "True"


CREATED = [
    ("ContainerConfig", "couldn't find key token in Secret ml/hf-token", 'Secret "hf-token" has no key "token": add it, or correct the key in spec.trial.template.'),
    ("ContainerConfig", "couldn't find key lr in ConfigMap ml/settings", 'ConfigMap "settings" has no key "lr"'),
    ("ContainerConfig", 'container has runAsNonRoot and image has non-numeric user (jovyan), cannot verify user is non-root (pod: "p", container: trainer)', "securityContext.runAsUser"),
    ("ContainerConfig", 'container\'s runAsUser breaks non-root policy (pod: "p", container: trainer)', "securityContext.runAsUser"),
    ("ContainerConfig", 'failed to prepare subPath for volumeMount "data" of container "trainer"', "Correct subPath"),
    ("Node", "failed to sync secret cache: timed out waiting for the condition", "comes from the node"),
    ("Node", 'failed to reserve container name "trainer_0": name "trainer_0" is reserved for "1f0e"', "comes from the node"),
    ("Node", "context deadline exceeded", "comes from the node"),
    ("Node", "container create failed: error executing hook `/usr/bin/nvidia-container-toolkit` (exit code: 1)", "check the NVIDIA driver"),
    ("ContainerConfig", 'container create failed: time="2026-11-21T10:00:00Z" level=error msg="runc create failed: unable to start container process: exec: \\"python3\\": executable file not found in $PATH"', "spec.trial.python"),
    ("ContainerConfig", "container create failed: executable file `python3` not found in $PATH: No such file or directory", "spec.trial.python"),
    ("ContainerConfig", 'failed to generate container "1f" spec: failed to stat "/data/imagenet": stat /data/imagenet: no such file or directory', "/data/imagenet doesn't exist on the node: correct the hostPath volume"),
]  # fmt: skip


@pytest.mark.parametrize(("category", "message", "advice"), CREATED, ids=[row[1][:60] for row in CREATED])
def test_containers_that_cannot_be_created(category: str, message: str, advice: str) -> None:
    failure = found(waits("CreateContainerError", message)).failure
    assert failure.category == category
    assert advice in (failure.remedy or "")


STARTED = [
    ('exec: "python3": executable file not found in $PATH: unknown', "The image needs Python 3.9 or later"),
    ('exec: "/opt/conda/bin/python": permission denied: unknown', "The container's user may not execute /opt/conda/bin/python"),
    ('error during container init: chdir to cwd ("/workspace/src") set in config.json failed: no such file or directory: unknown', "its working directory /workspace/src: correct workingDir"),
    ("error during container init: error running hook #0: stderr: nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.6, please update your driver to a newer version, or use an earlier cuda container: unknown", "an older CUDA version"),
    ('error during container init: error mounting "/var/lib/kubelet/pods/u/volume-subpaths/cfg/trainer/0" to rootfs at "/app/config.yaml": not a directory: unknown', "the volumeMount at /app/config.yaml"),
    ("error during container init: unable to find user jovyan: no matching entries in passwd file: unknown", "no user or group jovyan"),
    ("container init was OOM-killed (memory limit too low?): unknown", "Raise resources.limits.memory"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "advice"), STARTED, ids=[row[1] for row in STARTED])
def test_containers_that_cannot_be_started(message: str, advice: str) -> None:
    evidence = ended(128, "StartError", OCI + message)
    failure = found(evidence).failure
    assert failure.category == "StartError"
    assert advice in (failure.remedy or "")
    assert why_lost(evidence) is None


def test_an_init_containers_program_is_not_the_trainers_python() -> None:
    state = {
        "terminated": {
            "exitCode": 128,
            "reason": "StartError",
            "message": OCI + 'exec: "sh": executable file not found in $PATH: unknown',
        }
    }
    init = {"initContainers": [{"name": "fetch", "image": "gcr.io/distroless/static"}]}
    there = pod(
        spec=init,
        phase="Failed",
        initContainerStatuses=[{"name": "fetch", "state": state}],
        **waiting("PodInitializing"),
    )
    failure = found(Evidence(failed_job(reason="PodFailurePolicy"), [there])).failure
    assert (
        failure.remedy
        == "The image has no sh: correct the container's command or image in spec.trial.template."
    )


@pytest.mark.parametrize(
    "message",
    [
        "error running prestart hook #0: Auto-detected mode as 'legacy' nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory: unknown",
        "failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-aa: unknown",
    ],
)
def test_a_node_whose_gpus_do_not_work_is_not_the_trials_fault(message: str) -> None:
    evidence = ended(128, "StartError", OCI + message, spec={"nodeName": "gpu-7"})
    assert "its node could not start its trainer: StartError on node gpu-7" in (why_lost(evidence) or "")
    assert evidence.pod is not None
    assert rejecting_node(evidence.pod) == "gpu-7", "so that the next pods avoid it"


WITHOUT_A_NODE = [
    ("Capacity", "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 4 Insufficient nvidia.com/gpu.", "Wait until other work has ended, lower spec.parallelism or the request in spec.trial.template, or add nodes."),
    ("Capacity", "1 node(s) had taint {node-role.kubernetes.io/master: }, that the pod didn't tolerate, 3 Insufficient nvidia.com/gpu.", "or add nodes."),
    ("Capacity", "2 node(s) had untolerated taint {nvidia.com/gpu: present}, 3 Insufficient nvidia.com/gpu.", "Other nodes have the taint {nvidia.com/gpu: present}: to use them, add a toleration to spec.trial.template."),
    ("Capacity", "3 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node affinity/selector.", "Other nodes don't match nodeSelector or affinity in spec.trial.template."),
    ("Capacity", "1 node(s) had volume node affinity conflict, 2 Insufficient cpu.", "or add nodes."),
    ("Capacity", "1 node(s) had untolerated taint {karpenter.sh/disrupted: }, 3 Insufficient memory.", "or add nodes."),
    ("Capacity", "2 Too many pods.", "Wait until other work has ended"),
    ("Capacity", "2 node(s) didn't have free ports for the requested pod ports.", "Remove hostPort"),
    ("Capacity", "3 node(s) didn't match pod anti-affinity rules.", "relax podAntiAffinity"),
    ("Capacity", "3 node(s) didn't match pod topology spread constraints.", "topologySpreadConstraints"),
    ("Capacity", "3 cannot allocate all claims.", "ResourceClaim"),
    ("VolumeInUse", "3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode.", "ReadWriteMany"),
    ("Unschedulable", "pod has unbound immediate PersistentVolumeClaims.", "`kubectl describe pvc`"),
    ("Unschedulable", "3 node(s) had volume node affinity conflict.", "tied to a node or zone"),
    ("Unschedulable", 'persistentvolumeclaim "data" is being deleted', 'PersistentVolumeClaim "data" is being deleted: create it again'),
    ("Unschedulable", "2 node(s) were unschedulable.", "`kubectl get nodes`"),
    ("Unschedulable", "2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", "`kubectl get nodes`"),
    ("Unschedulable", 'waiting for dynamic resource controller to create the resourceclaim "mnist-0-abcde-gpu-x"', "resourceclaimtemplates"),
    ("Unschedulable", "3 request gpu: device class gpu.nvidia.com does not exist.", 'DeviceClass "gpu.nvidia.com" doesn\'t exist in this cluster'),
]  # fmt: skip
PREEMPTION = " preemption: 0/5 nodes are available: 1 Preemption is not helpful for scheduling, 4 Insufficient memory, 2 Too many pods."


@pytest.mark.parametrize(
    ("category", "reasons", "advice"), WITHOUT_A_NODE, ids=[row[1] for row in WITHOUT_A_NODE]
)
def test_pods_without_a_node(category: str, reasons: str, advice: str) -> None:
    message = f"0/5 nodes are available: {reasons}{PREEMPTION}"
    diagnosis = found(Evidence(job(), [pod(**unschedulable(message))], largest={GPU: "8"}))
    assert diagnosis.failure.category == category
    assert reasons in diagnosis.failure.message
    assert advice in (diagnosis.failure.remedy or "")
    assert not re.search(r"control-plane|karpenter", diagnosis.failure.remedy or "")
    assert diagnosis.since == ago(60)


def test_a_cluster_without_nodes() -> None:
    evidence = Evidence(job(), [pod(**unschedulable("no nodes available to schedule pods"))], largest={})
    assert found(evidence).failure.message == "the cluster has no nodes at the moment"


def mounting(*events: dict[str, Any]) -> Evidence:
    return Evidence(job(), [pod(phase="Pending", **waiting("ContainerCreating"))], events)


@pytest.mark.parametrize(
    ("category", "reason", "message", "advice"),
    [
        ("VolumeInUse", "FailedAttachVolume", 'Multi-Attach error for volume "pvc-aa" Volume is already used by pod(s) mnist-1-zzzzz', "set spec.parallelism to 1"),
        ("VolumeInUse", "FailedAttachVolume", 'Multi-Attach error for volume "pvc-aa" Volume is already exclusively attached to one node and can\'t be attached to another', "ReadWriteMany"),
    ],
)  # fmt: skip
def test_a_volume_in_use_is_reported_though_its_event_does_not_repeat(
    category: str, reason: str, message: str, advice: str
) -> None:
    """Trials that wait for their volume wait their turn: that is no failure."""
    diagnosis = found(mounting(event(reason, message, 0)))
    assert diagnosis.failure.category == category
    assert advice in (diagnosis.failure.remedy or "")
    there = seen(
        summary(0, 1), {0: Run("running"), 1: Run("starting", Diagnosis(diagnosis.failure, ago(900)))}
    )
    decided = decision(study(maxTrials=2), there, NOW)
    assert decided.actions == ()
    assert decided.plan.blocked == ()
    assert len(decided.plan.queued) == 1


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ('MountVolume.SetUp failed for volume "creds" : references non-existent secret key: sa.json', 'volume "creds" has no key "sa.json"'),
        ('MountVolume.MountDevice failed for volume "pvc-aa" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name ebs.csi.aws.com not found in the list of registered CSI drivers', "no driver ebs.csi.aws.com"),
        ('MountVolume.SetUp failed for volume "data" : hostPath type check failed: /data/imagenet is not a directory', "/data/imagenet must exist on the node"),
    ],
)  # fmt: skip
def test_volumes(message: str, advice: str) -> None:
    failure = found(mounting(event("FailedMount", message))).failure
    assert failure.category == "Volume"
    assert advice in (failure.remedy or "")


def test_the_summary_of_all_volumes_hides_no_cause() -> None:
    cause = event("FailedMount", 'MountVolume.SetUp failed for volume "data" : secret "creds" not found')
    cause["lastTimestamp"] = rfc3339(ago(10))
    message = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[]: timed out waiting for the condition"
    assert (
        'Secret "creds" doesn\'t exist'
        in found(mounting(cause, event("FailedMount", message))).failure.describe()
    )
    assert message in found(mounting(event("FailedMount", message))).failure.message


@pytest.mark.parametrize(("mounted", "category"), [(True, "Node"), (False, "Volume")])
def test_volumes_are_mounted_once_the_node_sets_up_the_pods_network(mounted: bool, category: str) -> None:
    """On a new node, one after the other is not ready yet. A volume fails a trial, and the node doesn't."""
    volume = event(
        "FailedMount", "driver name efs.csi.aws.com not found in the list of registered CSI drivers", 318
    )
    network = event("FailedCreatePodSandBox", "failed to assign an IP address to container", 285)
    earlier = volume if mounted else network
    earlier["lastTimestamp"] = rfc3339(ago(280))
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(ago(320))}
    there = pod(age=400, phase="Pending", conditions=[scheduled], **waiting("ContainerCreating"))
    diagnosis = found(Evidence(job(), [there], [volume, network]))
    assert diagnosis.failure.category == category
    decided = decision(study(maxTrials=1), seen(summary(0), {0: Run("starting", diagnosis)}), NOW)
    assert (decided.actions == ()) is mounted


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ('Internal error occurred: failed calling webhook "mutate.kyverno.svc-fail": failed to call webhook: Post "https://kyverno-svc.kyverno.svc:443/mutate/fail?timeout=10s": context deadline exceeded', "The admission webhook mutate.kyverno.svc-fail is failing: ask the cluster's administrator."),
        ('pods "mnist-0-x" is forbidden: unable to create new content in namespace ml because it is being terminated', "The namespace is being deleted"),
        ("Timeout: request did not complete within requested timeout - context deadline exceeded", "Kubernetes will retry"),
        ('admission webhook "validation.gatekeeper.sh" denied the request: [require-team] you must provide labels: {"team"}', "Change spec.trial.template to meet the cluster's policies"),
        ('pods "mnist-0-x" is forbidden: maximum memory usage per Container is 4Gi, but limit is 8Gi', "the namespace's limits"),
    ],
)  # fmt: skip
def test_pods_that_are_not_created(message: str, advice: str) -> None:
    failure = found(Evidence(job(), [], [event("FailedCreate", f"Error creating: {message}")])).failure
    assert failure.category == "PodRefused"
    assert message in failure.message
    assert advice in (failure.remedy or "")


PRINTED = [
    (1, "exec /opt/conda/bin/python: exec format error", "not built for the CPU of this node"),
    (132, "", "not built for the CPU of this node"),
    (1, "RuntimeError: Found no NVIDIA driver on your system.", "The container sees no GPU"),
    (1, "RuntimeError: CUDA error: no kernel image is available for execution on the device", "don't support this GPU"),
    (1, "The NVIDIA driver on your system is too old (found version 11040).", "a newer NVIDIA driver"),
    (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "Use less GPU memory"),
    (1, "RuntimeError: DataLoader worker (pid(s) 77) exited unexpectedly", "raise resources.limits.memory"),
    (1, "OSError: [Errno 28] No space left on device: '/dev/shm/x'", "an emptyDir volume with medium: Memory"),
    (1, "OSError: [Errno 28] No space left on device: '/tmp/x'", "A disk is full"),
    (1, "PermissionError: [Errno 13] Permission denied: '/data/out'", "fsGroup"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "output", "advice"), PRINTED, ids=[row[1] or str(row[0]) for row in PRINTED]
)
def test_what_programs_print(code: int, output: str, advice: str) -> None:
    failure = found(ended(code, "Error", output)).failure
    assert advice in (failure.remedy or "")
    assert "See `kubectl logs job/mnist-0`." in (failure.remedy or "")
    reported = json.dumps({"category": "Exception", "message": output, "traceback": "..."})
    assert not output or advice in (found(ended(1, "Error", reported)).failure.remedy or "")


def test_a_key_that_a_server_refuses_is_no_matter_of_file_modes() -> None:
    output = "git@github.com: Permission denied (publickey)."
    assert found(ended(128, "Error", output)).failure.remedy == "See `kubectl logs job/mnist-0`."


def test_a_sidecar_matters_no_more_once_the_trainer_has_ended() -> None:
    evidence = Evidence(trial_job(), [shared(exited(137, "OOMKilled"), RUNNING, native=True)])
    assert why_not_started(evidence) is None


def test_a_report_that_the_kubelet_has_shortened() -> None:
    """It allows a pod 12 KiB of termination messages: a mesh and init containers leave less to the trainer."""
    report = json.dumps(
        {"category": "Exception", "message": 'KeyError: "lr"', "remedy": None, "traceback": "x" * 400}
    )
    failure = found(ended(1, "Error", report[:200])).failure
    assert (failure.category, failure.message) == ("Exception", 'KeyError: "lr"')
    assert found(ended(1, "Error", report[:30])).failure.category == "ExitCode"


def test_memory() -> None:
    """A container without a limit is killed for what others use, and a smaller batch does not help others."""
    limited = {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "8Gi"}}}]}
    own = found(ended(137, "OOMKilled", spec=limited)).failure.describe()
    assert "Container trainer used more memory than its limit" in own
    assert "a smaller batch size" in own
    unlimited = found(ended(137, "OOMKilled")).failure.describe()
    assert "has no memory limit of its own" in unlimited
    assert "Set resources.requests.memory and resources.limits.memory of container trainer" in unlimited
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    init = {"name": "fetch", "resources": {"limits": {"memory": "1Gi"}}}
    there = pod(
        spec={"initContainers": [init]},
        initContainerStatuses=[{"name": "fetch", "state": state}],
        **waiting("PodInitializing"),
    )
    remedy = found(Evidence(failed_job(reason="PodFailurePolicy"), [there])).failure.remedy
    assert remedy == "Raise resources.limits.memory of init container fetch in spec.trial.template."


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 52340Ki. Container trainer was using 12Gi, request is 0, has larger consumption of memory.", "Request as much memory"),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 10Gi.", "Raise resources.limits.ephemeral-storage"),
        ('Container trainer exceeded its local ephemeral storage limit "10Gi".', "Raise resources.limits.ephemeral-storage"),
        ('Usage of EmptyDir volume "dshm" exceeds the limit "1Gi".', "Raise sizeLimit of the emptyDir volume dshm"),
    ],
)  # fmt: skip
def test_evictions(message: str, advice: str) -> None:
    evicted = pod(**{**terminated(137, "OOMKilled"), "reason": "Evicted", "message": message})
    failure = why_ended(Evidence(failed_job(), [evicted])).failure
    assert failure.category == "Evicted"
    assert advice in (failure.remedy or "")


@pytest.mark.parametrize(
    ("statuses", "text"),
    [
        ({"initContainerStatuses": [{"name": "fetch", "state": {"terminated": {"exitCode": 137, "reason": "Error"}}}],
          **waiting("PodInitializing")}, "while it waited for init container fetch to end"),
        (waiting("ImagePullBackOff"), "while it waited for container trainer to start"),
    ],
)  # fmt: skip
def test_a_deadline_before_the_trainer_started_is_no_timeout(statuses: dict[str, Any], text: str) -> None:
    """Neither was the pod lost: another one would wait as long. Nor did its node reject it."""
    over = {
        "phase": "Failed",
        "reason": "DeadlineExceeded",
        "message": "Pod was active on the node longer than the specified deadline",
    }
    there = pod(spec={"nodeName": "gpu-7", "initContainers": [{"name": "fetch"}]}, **{**statuses, **over})
    evidence = Evidence(failed_job(reason="PodFailurePolicy"), [there])
    failure = found(evidence).failure
    assert failure.category == "NotStarted"
    assert text in failure.message
    assert why_lost(evidence) is None
    assert rejecting_node(there) is None


def test_how_a_sidecar_ended_beside_a_running_trainer() -> None:
    failure = found(Evidence(trial_job(), [shared(RUNNING, exited(137, "OOMKilled"))])).failure
    assert failure.describe() == (
        "container proxy exited with code 137 (OOMKilled). Correct or remove it in spec.trial.template. "
        "See `kubectl logs mnist-0-abcde -c proxy`."
    )
    assert why_incomplete(Evidence(trial_job(), [shared(RUNNING, exited(0, "Completed"))])) is None
    crashing = {
        "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}
    }
    there = shared(RUNNING, crashing, native=True)
    there["status"]["initContainerStatuses"][0]["lastState"] = exited(1)
    message = found(Evidence(trial_job(), [there])).failure.message
    assert message.endswith("back-off 5m0s restarting failed container; it last exited with code 1 (Error)")


def test_a_trainer_on_an_unreachable_node_is_reported_though_its_status_says_that_it_runs() -> None:
    there = shared(RUNNING, RUNNING, nodeName="gpu-7")
    there["metadata"]["deletionTimestamp"] = rfc3339(ago(120))
    there["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    ]
    diagnosis = found(Evidence(trial_job(), [there]))
    decided = decision(study(), seen(summary(0), {0: Run("running", diagnosis)}), NOW)
    [stalled] = [c for c in decided.status.conditions if c.type == "Stalled"]
    assert "in trial 0, its node gpu-7 is unreachable" in stalled.message
    assert [e.message for e in decided.events if e.reason == "Node"] == [stalled.message]
