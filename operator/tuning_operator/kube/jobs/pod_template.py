"""The pods of a Job: the user's template, with the container `trainer` completed."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from tuning_operator.kube.jobs.lost import avoiding
from tuning_operator.kube.jobs.runtime import Runtime, trainer_name
from tuning_operator.kube.plan.work import Program, Work, Worker
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.podshape import source_of
from tuning_operator.resource.quantity import quantity
from tuning_operator.resource.study import TuningStudy

TRAINER_PATH = "/var/run/tuning.dev/trainer"
TOKEN_PATH = "/var/run/tuning.dev/token"  # noqa: S105  a folder, not a secret
SOURCE_PATH = "/var/run/tuning.dev/source"
CA_PATH = "/var/run/tuning.dev/ca"
TOKEN_SECONDS = 600
"""The shortest that Kubernetes allows, since the token outlives its pod. The kubelet renews it after 80 % of
this time; the trainer reads it again for each request."""
STARTUP_SECONDS = 3600
"""Time for images and init containers, in addition to the timeout, after which the kubelet ends a pod."""
ENDS_WITH_POD = frozenset(
    {"configMap", "downwardAPI", "emptyDir", "ephemeral", "image", "projected", "secret"}
)
"""Volumes whose files are not kept when their pod is deleted."""
ENFORCE = "pod-security.kubernetes.io/enforce"
LEVEL = "restricted"
RESTRICTED_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CAPABILITIES = {"drop": ["ALL"]}
"""What the Pod Security Standard `restricted` requires, as defaults for pods and containers."""


def pod_template(
    study: TuningStudy,
    work: Work,
    runs: Program,
    runtime: Runtime,
    *,
    avoided: Collection[str],
    restricted: bool,
) -> dict[str, Any]:
    """Return the pod template of the work's Job.

    Args:
        study: the study.
        work: what the Job is for.
        runs: what it executes.
        runtime: what every run needs.
        avoided: nodes on which the pods do not run.
        restricted: whether the namespace enforces the Pod Security Standard `restricted`.
    """
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
    if restricted:
        pod = _restricted(pod)
    if avoided:
        pod["affinity"] = avoiding(pod.get("affinity") or {}, avoided)
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


def is_restricted(namespace: Mapping[str, Any]) -> bool:
    """Return whether a namespace enforces the Pod Security Standard `restricted`."""
    return bool(namespace["metadata"].get("labels", {}).get(ENFORCE) == LEVEL)


def _restricted(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return a PodSpec that meets `restricted`, as far as it does not set these fields itself."""
    kinds = [kind for kind in ("initContainers", "containers") if pod.get(kind)]
    return {
        **pod,
        "securityContext": {**RESTRICTED_POD, **(pod.get("securityContext") or {})},
        **{kind: [_restricted_container(container) for container in pod[kind]] for kind in kinds},
    }


def _restricted_container(container: Mapping[str, Any]) -> dict[str, Any]:
    own = container.get("securityContext") or {}
    capabilities = {**RESTRICTED_CAPABILITIES, **(own.get("capabilities") or {})}
    context = {"allowPrivilegeEscalation": False, **own, "capabilities": capabilities}
    return {**container, "securityContext": context}
