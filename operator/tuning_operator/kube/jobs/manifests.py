"""The objects made for a study: the Job of a trial or of the refit, and the ConfigMap with the trainer."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from tuning_trainer.wire.codec import to_wire

from tuning_operator.kube.jobs.evidence import STOPPED
from tuning_operator.kube.jobs.lost import Restarts
from tuning_operator.kube.jobs.pod_template import pod_template
from tuning_operator.kube.jobs.runtime import Runtime, server_address, trainer_name
from tuning_operator.kube.plan.work import POD_RETRIES, Program, Refit, Trial, Work, Worker, program
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy

SHORTEST_TTL = 60
"""Seconds: a Job that is gone before the operator has seen its end would be started again."""
MAX_PARAMETERS = 4096
"""Characters; all annotations of an object together may have 256 KiB, and each list of Jobs has them."""
MAX_RULES = 20
"""The API server's limit for podFailurePolicy."""


def trainer_config_map(study: TuningStudy, runtime: Runtime) -> dict[str, Any]:
    """Return the ConfigMap that brings the trainer into pods; immutable, since its name is its digest."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(study, trainer_name(study.metadata["name"], runtime), {}),
        "immutable": True,
        "binaryData": {"trainer.zip": base64.b64encode(runtime.trainer).decode()},
        "data": server_address(runtime),
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
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": runs.retries or POD_RETRIES,
            "podFailurePolicy": {"rules": _failure_rules(work, runs)},
            "ttlSecondsAfterFinished": max(seconds(study.spec.trial.ttl_after_finished), SHORTEST_TTL),
            "template": pod_template(
                study, work, runs, runtime, avoided=restarts.avoided, restricted=restricted
            ),
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
