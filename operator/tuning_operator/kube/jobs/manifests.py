"""The objects made for a study: the Job of a trial or of the refit, and the ConfigMap with the trainer."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuning_trainer.wire.codec import to_wire

from tuning_operator.kube.jobs.evidence import STOPPED
from tuning_operator.kube.jobs.lost import Restarts, avoiding
from tuning_operator.kube.jobs.restricted import with_defaults
from tuning_operator.kube.plan.work import POD_RETRIES, Program, Refit, Trial, Work, Worker, program
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.podshape import source_of
from tuning_operator.resource.quantity import quantity
from tuning_operator.resource.study import TuningStudy

TRAINER_PATH = "/var/run/tuning.dev/trainer"
TOKEN_PATH = "/var/run/tuning.dev/token"  # noqa: S105  a folder, not a secret
SOURCE_PATH = "/var/run/tuning.dev/source"
CA_PATH = "/var/run/tuning.dev/ca"
SHORTEST_TTL = 60
"""Seconds: a Job that is gone before the operator has seen its end would be started again."""
TOKEN_SECONDS = 600
"""The shortest that Kubernetes allows, since the token outlives its pod. The kubelet renews it after 80 % of
this time; the trainer reads it again for each request."""


STARTUP_SECONDS = 3600
"""Time for images and init containers, in addition to the timeout, after which the kubelet ends a pod."""
MAX_PARAMETERS = 4096
"""Characters; all annotations of an object together may have 256 KiB, and each list of Jobs has them."""
ENDS_WITH_POD = frozenset(
    {"configMap", "downwardAPI", "emptyDir", "ephemeral", "image", "projected", "secret"}
)
"""Volumes whose files are not kept when their pod is deleted."""
MAX_RULES = 20
"""The API server's limit for podFailurePolicy."""


@dataclass(frozen=True)
class Runtime:
    """What every run needs: the trainer runtime, and how to reach the study server."""

    trainer: bytes
    server_url: str
    ca: str | None = None
    """PEM of the server's certificate authority; None for plain HTTP, or if the image trusts it already."""
    image: str | None = None
    """The image of a container `trainer` that names none."""
    gpu_resource: str = "nvidia.com/gpu"
    """What `gpus` of a trial counts."""
    ca_config_map: str = "study-server-ca"
    """The ConfigMap of each namespace that brings the CA into its pods."""


def trainer_config_map(study: TuningStudy, runtime: Runtime) -> dict[str, Any]:
    """Return the ConfigMap that brings the trainer into pods; immutable, since its name is its digest."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(study, trainer_name(study.metadata["name"], runtime), {}),
        "immutable": True,
        "binaryData": {"trainer.zip": base64.b64encode(runtime.trainer).decode()},
        "data": _address(runtime),
    }


def ca_config_map(namespace: str, runtime: Runtime) -> dict[str, Any]:
    """Return the ConfigMap with the CA, for all pods of a namespace.

    It is not part of the trainer's, since running pods need the new CA when the study server's certificate is
    renewed: the kubelet updates the mounted file.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": runtime.ca_config_map, "namespace": namespace},
        "data": {"ca.crt": runtime.ca},
    }


def _address(runtime: Runtime) -> dict[str, str]:
    """Return how to reach the study server, for `kubectl tuning`."""
    ca = {"ca-config-map": runtime.ca_config_map} if runtime.ca else {}
    return {"server-url": runtime.server_url, **ca}


def job(
    study: TuningStudy,
    work: Work,
    runtime: Runtime,
    restarts: Restarts | None = None,
    *,
    restricted: bool = False,
) -> dict[str, Any]:
    """Return the Job that does the work: the pod template with the container `trainer` completed.

    Args:
        study: the study.
        work: what the Job is for.
        runtime: what every run needs.
        restarts: what happened to the work's earlier Jobs.
        restricted: whether the namespace enforces the Pod Security Standard `restricted`.
    """
    restarts = restarts or Restarts()
    runs = program(study, work)
    metadata = _metadata(study, work.job_name(study.metadata["name"]), work.labels)
    metadata["labels"] = {**runs.job.labels, **metadata["labels"]}
    metadata["annotations"] = {
        **runs.job.annotations,
        names.ANNOTATION_PROGRAM: runs.digest,
        **_trial_annotations(work),
        **({names.ANNOTATION_SERVER: runtime.server_url} if isinstance(work, Worker) else {}),
        **restarts.annotations(),
    }
    template = _pod_template(study, work, runs, runtime)
    if restricted:
        template["spec"] = with_defaults(template["spec"])
    if restarts.avoided:
        pod = template["spec"]
        pod["affinity"] = avoiding(pod.get("affinity") or {}, restarts.avoided)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": runs.retries or POD_RETRIES,
            "podFailurePolicy": {"rules": _failure_rules(work, runs)},
            "ttlSecondsAfterFinished": max(seconds(study.spec.trial.ttl_after_finished), SHORTEST_TTL),
            "template": template,
        },
    }


def _trial_annotations(work: Work) -> dict[str, str]:
    """Return which trial it is: its start and its parameters; those that are too much are only counted."""
    if not isinstance(work, Trial):
        return {}
    started = {names.ANNOTATION_STARTED: work.started.isoformat()} if work.started else {}
    if not work.parameters:
        return started
    shown: dict[str, Any] = {}
    length = 0
    for name, value in work.parameters.items():
        length += len(json.dumps({name: to_wire(value)}))
        if length > MAX_PARAMETERS:
            shown["..."] = f"{len(work.parameters) - len(shown)} more"
            break
        shown[name] = to_wire(value)
    return {**started, names.ANNOTATION_PARAMETERS: json.dumps(shown)}


def _failure_rules(work: Work, runs: Program) -> list[dict[str, Any]]:
    """Return when another pod gets the work.

    A drained node or a preemption is not a failure: the next pod resumes the work. A trial, or a refit
    without retries, fails once its trainer or an init container fails by itself. A pod without such an exit
    code was deleted, or its node rejected or lost it: it is replaced a few times. A refit with retries is
    attempted again whatever fails.
    """
    disruption = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    if isinstance(work, Refit) and runs.retries:
        return [disruption]
    inits = runs.template["spec"].get("initContainers") or []
    ending = [container["name"] for container in inits if container.get("restartPolicy") != "Always"]
    failures = (
        {"containerName": name, "operator": "NotIn", "values": [STOPPED]}
        for name in (names.TRAINER_CONTAINER, *ending[: MAX_RULES - 2])
    )
    return [disruption, *({"action": "FailJob", "onExitCodes": failure} for failure in failures)]


def _metadata(study: TuningStudy, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": study.metadata["name"],
        "uid": study.metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": study.metadata["namespace"],
        "labels": {names.LABEL_STUDY: study.metadata["name"], **labels},
        "ownerReferences": [owner],
    }


def trainer_name(study: str, runtime: Runtime) -> str:
    """Return the name of the ConfigMap that carries the trainer to the pods of a study, given its name."""
    return f"{study}-trainer-{_digest(runtime)[:10]}"


@lru_cache(maxsize=64)
def _digest(runtime: Runtime) -> str:
    """Return the digest of what the ConfigMap holds. Every Job needs it, and it rarely changes."""
    address = json.dumps(_address(runtime), sort_keys=True)
    return hashlib.sha256(runtime.trainer + address.encode()).hexdigest()


def _pod_template(study: TuningStudy, work: Work, runs: Program, runtime: Runtime) -> dict[str, Any]:
    metadata = runs.template.get("metadata", {})
    ours = {names.LABEL_STUDY: study.metadata["name"], **work.labels}
    pod = dict(runs.template["spec"])
    pod["restartPolicy"] = "Never"  # whether there is another pod is up to the Job's podFailurePolicy
    pod.setdefault("automountServiceAccountToken", False)
    if runs.timeout and not isinstance(work, Worker):
        # The trainer stops itself at its timeout, counted from its own start; this is in case it can't. It is
        # the pod's deadline, not the Job's, so that the pod is kept with its logs.
        pod["activeDeadlineSeconds"] = seconds(runs.timeout) + STARTUP_SECONDS
    if pod.get("hostNetwork"):
        # Kubernetes' default would be the node's DNS, which doesn't know the study server's Service.
        pod.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    pod["volumes"] = [*pod.get("volumes", []), *_volumes(study, runs, runtime)]
    pod["containers"] = [
        _trainer(container, study, work, runs, runtime)
        if container["name"] == names.TRAINER_CONTAINER
        else container
        for container in pod["containers"]
    ]
    labelled = {**metadata, "labels": {**metadata.get("labels", {}), **ours}}
    return {**runs.template, "metadata": labelled, "spec": pod}


def _volumes(study: TuningStudy, runs: Program, runtime: Runtime) -> list[dict[str, Any]]:
    audience = names.token_audience(study.metadata["uid"])
    token = {"path": "token", "audience": audience, "expirationSeconds": TOKEN_SECONDS}
    volumes: list[dict[str, Any]] = [
        {"name": names.TRAINER_VOLUME, "configMap": {"name": trainer_name(study.metadata["name"], runtime)}},
        {"name": "tuning-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    if runtime.ca:
        volumes.append({"name": names.CA_VOLUME, "configMap": {"name": runtime.ca_config_map}})
    if runs.source:
        volumes.append({"name": "tuning-source", "configMap": {"name": runs.source}})
    return volumes


def _trainer(
    container: Mapping[str, Any], study: TuningStudy, work: Work, runs: Program, runtime: Runtime
) -> dict[str, Any]:
    """Return the container `trainer` of the template, with what the runtime needs."""
    mounts = {names.TRAINER_VOLUME: TRAINER_PATH, "tuning-token": TOKEN_PATH}
    if runs.source:
        mounts["tuning-source"] = SOURCE_PATH
    place: dict[str, Any] = {"storage": _storage(container, runs)}
    if isinstance(work, Worker):
        job_name = work.job_name(study.metadata["name"])
        place["log"] = f"`kubectl logs job/{job_name} -c {names.TRAINER_CONTAINER}`"
    ours = environment(study, work, runs, runtime.server_url, f"{TOKEN_PATH}/token", **place)
    if runtime.ca:
        mounts[names.CA_VOLUME] = CA_PATH
        ours["TUNING_CA_FILE"] = f"{CA_PATH}/ca.crt"
    if runs.source:
        ours["TUNING_SOURCE"] = SOURCE_PATH
    theirs = [variable for variable in container.get("env", []) if variable["name"] not in ours]
    resources = dict(container.get("resources") or {})
    if runs.gpus is not None:
        resources["limits"] = {**(resources.get("limits") or {}), runtime.gpu_resource: runs.gpus}
    return {
        **({"image": runtime.image} if runtime.image else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # after a crash, it has the last lines of output
        **container,
        **({"resources": resources} if resources else {}),
        "command": [runs.python, f"{TRAINER_PATH}/trainer.zip", *runs.arguments],
        "env": [*theirs, *({"name": name, "value": value} for name, value in ours.items())],
        "volumeMounts": [
            *container.get("volumeMounts", []),
            *({"name": name, "mountPath": path, "readOnly": True} for name, path in mounts.items()),
        ],
    }


def _storage(container: Mapping[str, Any], runs: Program) -> dict[str, Any]:
    """Return which folders of the container `trainer` are kept when its pod is deleted."""
    volumes = {volume["name"]: source_of(volume) for volume in runs.template["spec"].get("volumes", ())}
    mounts = {
        mount["mountPath"].rstrip("/"): volumes.get(mount["name"]) not in ENDS_WITH_POD
        for mount in container.get("volumeMounts", ())
    }
    return {"field": runs.fields.template, "outlastPod": {"/": False, "/dev/shm": False, **mounts}}  # noqa: S108


def environment(
    study: TuningStudy, work: Work, runs: Program, server_url: str, token_file: str, **place: Any
) -> dict[str, str]:
    """Return the variables that the trainer runtime reads, wherever it runs.

    Args:
        study: the study.
        work: what the run is for.
        runs: what it executes.
        server_url: the study server's address.
        token_file: the file with the run's token.
        place: more settings of the trainer, which depend on where it runs.
    """
    namespace, name = study.metadata["namespace"], study.metadata["name"]
    return {
        "TUNING_TRIAL_URL": f"{server_url.rstrip('/')}/v1/studies/{namespace}/{name}/{work.path}",
        "TUNING_TOKEN_FILE": token_file,
        "TUNING_STUDY": f"{namespace}/{name}",
        **({} if isinstance(work, Worker) else {"TUNING_TRIAL_NUMBER": str(work.trial)}),
        "TUNING_ROLE": work.role,
        "TUNING_CONFIG": json.dumps({**_config(runs), **place}),
    }


def _config(runs: Program) -> dict[str, Any]:
    """Return what the runtime needs from the spec."""
    return {
        **runs.settings,
        **({"study": runs.study} if runs.study else {}),
        **({"timeoutSeconds": seconds(runs.timeout)} if runs.timeout else {}),
        **(_shared(runs) if runs.side_by_side > 1 else {}),
    }


def _shared(runs: Program) -> dict[str, int]:
    """Return what the trials that run side by side in a pod share."""
    containers = runs.template["spec"]["containers"]
    limits = next(
        (
            c.get("resources", {}).get("limits") or {}
            for c in containers
            if c["name"] == names.TRAINER_CONTAINER
        ),
        {},
    )
    memory = int(quantity(limits.get("memory", 0)))
    return {"trialsPerPod": runs.side_by_side, **({"memoryLimit": memory} if memory else {})}
