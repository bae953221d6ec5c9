"""Why a trial's or a refit's Job does not start, or ended without a result: status to sentence and mend.

Categories are a contract with programs: do not rename them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.kube.plan.work import Fields
from tuning_operator.protocol import Failure
from tuning_operator.resource import names
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import parse_time

Json = Mapping[str, Any]

MESSAGE_LIMIT = 800
QUOTA_REMEDY = "Wait for other work to end, lower spec.parallelism, or ask for a larger ResourceQuota."
EVICTIONS = 3
"""Evictions of one trial's pods after which the next pod is not expected to fare better."""


@dataclass(frozen=True)
class Evidence:
    """What Kubernetes says of one Job."""

    job: Json
    pods: Sequence[Json] = ()
    """The Job's pods."""
    events: Sequence[Json] = ()
    """Events of the Job and of its pods."""
    largest: Mapping[str, int] | None = None
    """The most that any single node has of each extended resource (`nvidia.com/gpu`); None: not known."""
    noun: str = "trial"
    """What the Job is for."""
    fields: Fields = field(default_factory=Fields)
    """Where the manifest says what it runs."""

    @property
    def pod(self) -> Json | None:
        """The newest pod: a Job may have several, when nodes were drained."""
        return max(self.pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)


def why_not_started(evidence: Evidence) -> Diagnosis | None:
    """Return what keeps a Job's pod from starting; None: nothing that is known of."""
    return _first(WAITING, evidence)


def why_ended(evidence: Evidence) -> Diagnosis:
    """Return why a Job ended without a result: of several tries the last one tells, if it does."""
    last = replace(evidence, pods=[evidence.pod] if evidence.pod else [])
    found = _first(OF_A_POD, last) or _first(OF_A_POD, evidence) or _first(OF_THE_JOB, evidence)
    return found or _diagnosis("Lost", f"The {evidence.noun}'s Job ended and its pod is gone.")


def job_state(job: Json) -> Literal["starting", "running", "ended", "stopping"]:
    """Return starting, running, ended or stopping."""
    status = job.get("status", {})
    if job["metadata"].get("deletionTimestamp"):
        return "stopping"
    if any(
        c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions", [])
    ):
        return "ended"
    return "running" if status.get("ready") else "starting"


def is_unscheduled(pod: Json) -> bool:
    """Tell whether the scheduler has found no node for the pod yet."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)


Check = Callable[[Evidence], Diagnosis | None]


def _first(checks: Sequence[Check], evidence: Evidence) -> Diagnosis | None:
    return next((found for check in checks if (found := check(evidence))), None)


def _diagnosis(
    category: str, message: str, remedy: str | None = None, since: datetime | None = None
) -> Diagnosis:
    failure = Failure(category=category, message=shorten(message, MESSAGE_LIMIT), remedy=remedy)
    return Diagnosis(failure, since)


def _created(item: Json) -> datetime | None:
    return parse_time(item["metadata"].get("creationTimestamp"))


def _progressed(pod: Json) -> datetime | None:
    """Return when the pod last got a step further: it may wait an hour for its GPU, then pull its image."""
    steps = ("PodScheduled", "PodReadyToStartContainers", "Initialized")
    conditions = pod.get("status", {}).get("conditions", [])
    times = [
        parse_time(c.get("lastTransitionTime"))
        for c in conditions
        if c["type"] in steps and c["status"] == "True"
    ]
    return max((time for time in times if time), default=_created(pod))


def _containers(pod: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield (name, image as the manifest has it, status) of each container, init containers first."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    images = {
        c["name"]: c.get("image", "") for c in [*spec.get("initContainers", []), *spec.get("containers", [])]
    }
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            yield container["name"], images.get(container["name"], container.get("image", "")), container


def _waiting(pod: Json, *reasons: str) -> tuple[str, str, str, str] | None:
    """Return (container, image, reason, message) of the first container that waits for one of the reasons."""
    for name, image, status in _containers(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in reasons:
            return name, image, waiting["reason"], waiting.get("message", "")
    return None


# --- what keeps a pod from starting


def _image(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    reasons = (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
    )
    found = _waiting(pod, *reasons) if pod else None
    if pod is None or found is None:
        return None
    container, image, reason, message = found
    detail = next(
        (e["message"] for e in evidence.events if "Failed to pull" in e.get("message", "")), message
    )
    return _diagnosis(
        "ImagePull",
        f"the image {image} of container {container} cannot be pulled ({reason}): {detail}",
        f"Check the image's name and tag in {evidence.fields.template}, that the registry has it, and for a "
        "private registry imagePullSecrets.",
        _progressed(pod),
    )


def _container_config(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    found = _waiting(pod, "CreateContainerConfigError", "CreateContainerError") if pod else None
    if pod is None or found is None:
        return None
    container, _, reason, message = found
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    remedy = (
        f"Create the {missing[1]} {missing[2]} in the study's namespace, or correct its name in "
        f"{evidence.fields.template}."
        if missing
        else f"Correct the container's settings in {evidence.fields.template}."
    )
    text = f"container {container} cannot be created ({reason}): {message}"
    return _diagnosis("ContainerConfig", text, remedy, _progressed(pod))


def _unschedulable(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    conditions = pod.get("status", {}).get("conditions", []) if pod else []
    found = next((c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"), None)
    if pod is None or found is None or found.get("reason") != "Unschedulable":
        return None
    since, message = parse_time(found.get("lastTransitionTime")), found.get("message", "")
    template = evidence.fields.template
    too_large = _larger_than_any_node(pod, evidence.largest)
    if too_large:
        remedy = f"Lower the request in {template} (resources.limits), or add such a node."
        return _diagnosis("Unschedulable", f"{too_large} ({message})", remedy, since)
    short = sorted(set(re.findall(r"Insufficient ([^\s,.]+(?:\.[^\s,.]+)*)", message)))
    if short and not re.search(r"affinity|selector|taint|persistentvolumeclaim", message):
        what = f"no node has enough free {', '.join(short)} for its pod: {message}"
        lower = f"lower spec.parallelism or the request in {template}"
        return _diagnosis("Capacity", what, f"Wait for other work to end, {lower}, or add nodes.", since)
    remedy = f"Correct nodeSelector, affinity, tolerations or volumes in {template}, or the nodes themselves."
    return _diagnosis("Unschedulable", f"no node takes its pod: {message}", remedy, since)


def _larger_than_any_node(pod: Json, largest: Mapping[str, int] | None) -> str | None:
    for container in pod["spec"].get("containers", []) if largest is not None else []:
        for resource, amount in container.get("resources", {}).get("limits", {}).items():
            most = (largest or {}).get(resource, 0)
            if "/" in resource and str(amount).isdecimal() and int(amount) > most:
                has = f"the largest node has {most}" if most else "no node has any"
                return f"its pod asks for {amount} {resource}, {has}"
    return None


def _volume(evidence: Evidence) -> Diagnosis | None:
    event = _last_event(evidence, "FailedMount", "FailedAttachVolume")
    if event is None or evidence.pod is None:
        return None
    message, since = event.get("message", ""), _progressed(evidence.pod)
    missing = re.search(r'(secret|configmap|persistentvolumeclaim) "([^"]+)" not found', message)
    if missing and f'"{names.TRAINER_VOLUME}"' in message:
        text = f"The trainer's ConfigMap {missing[2]} was deleted; the operator creates it again."
        return _diagnosis("TrainerMissing", text, since=since)
    remedy = (
        f"Create the {missing[1]} {missing[2].rpartition('/')[2]} in the study's namespace, or correct its "
        f"name in {evidence.fields.source} or {evidence.fields.template}."
        if missing
        else f"Check the volumes in {evidence.fields.template}."
    )
    return _diagnosis("Volume", f"a volume cannot be mounted: {message}", remedy, since)


def _sandbox(evidence: Evidence) -> Diagnosis | None:
    event = _last_event(evidence, "FailedCreatePodSandBox")
    if event is None or evidence.pod is None:
        return None
    remedy = "Ask the cluster's administrator to look at the node's container runtime and network."
    text = f"the node cannot set up its pod: {event.get('message', '')}"
    return _diagnosis("Node", text, remedy, _progressed(evidence.pod))


def _pod_refused(evidence: Evidence) -> Diagnosis | None:
    event = _last_event(evidence, "FailedCreate")
    if event is None or evidence.pod is not None:
        return None
    message, since = event.get("message", ""), _created(evidence.job)
    if "exceeded quota" in message:
        return _diagnosis("Quota", f"the namespace's quota is used up: {message}", QUOTA_REMEDY, since)
    remedy = f"Correct {evidence.fields.template} to what cluster policies and the namespace's limits allow."
    return _diagnosis("PodRefused", f"its pod is refused: {message}", remedy, since)


def _node_away(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    leaving = pod and pod["metadata"].get("deletionTimestamp")
    if not pod or not leaving:
        return None
    reason = next(
        (
            c.get("reason")
            for c in pod.get("status", {}).get("conditions", [])
            if c["type"] == "DisruptionTarget"
        ),
        None,
    )
    if reason != "DeletionByTaintManager":
        return None
    node = pod["spec"].get("nodeName", "")
    return _diagnosis(
        "Node",
        f"its node {node} is unreachable, so its pod cannot be replaced yet",
        f"Bring the node back, or delete it (kubectl delete node {node}): the {evidence.noun} then "
        "starts again.",
        parse_time(leaving),
    )


def _evicted_again(evidence: Evidence) -> Diagnosis | None:
    """The Job makes a new pod after an eviction; a trial that uses up any node would never end."""
    evicted = [pod for pod in evidence.pods if pod.get("status", {}).get("reason") == "Evicted"]
    if len(evicted) < EVICTIONS:
        return None
    message = f"{len(evicted)} of its pods were evicted: {evicted[-1]['status'].get('message', '')}"
    return _diagnosis("Evicted", message, _request_more(evidence), _created(evidence.job))


def _request_more(evidence: Evidence) -> str:
    needs = f"Request what the {evidence.noun} needs in {evidence.fields.template}"
    return f"{needs} (resources.requests: memory, ephemeral-storage)."


def _last_event(evidence: Evidence, *reasons: str) -> Json | None:
    found = [event for event in evidence.events if event.get("reason") in reasons]
    return max(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime")), default=None)


WAITING: tuple[Check, ...] = (
    _node_away,
    _evicted_again,
    _image,
    _container_config,
    _unschedulable,
    _volume,
    _sandbox,
    _pod_refused,
)


# --- why a Job ended without a result


def _terminated(evidence: Evidence) -> Iterator[tuple[str, Json]]:
    """Yield (container, terminated state) of the failed containers, the trainer first."""
    pods = sorted(evidence.pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
    found = [
        (name, state)
        for pod in pods
        for name, _, status in _containers(pod)
        if (state := status.get("state", {}).get("terminated")) and state.get("exitCode")
    ]
    yield from sorted(found, key=lambda pair: pair[0] != names.TRAINER_CONTAINER)


def _told_by_trainer(evidence: Evidence) -> Diagnosis | None:
    """The trainer writes its failure where the kubelet keeps it, in case the server could not be told."""
    for _, state in _terminated(evidence):
        try:
            return Diagnosis(Failure.model_validate(json.loads(state.get("message") or "null")))
        except (ValueError, ValidationError):
            continue
    return None


def _out_of_memory(evidence: Evidence) -> Diagnosis | None:
    killed = next((name for name, state in _terminated(evidence) if state.get("reason") == "OOMKilled"), None)
    if killed is None:
        return None
    return _diagnosis(
        "OutOfMemory",
        f"Container {killed} needed more memory than its limit and was killed.",
        f"Raise resources.limits.memory in {evidence.fields.template}, or let the {evidence.noun} "
        "need less (a smaller batch, say).",
    )


def _evicted(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    if pod is None or pod.get("status", {}).get("reason") != "Evicted":
        return None
    text = f"The node evicted its pod: {pod['status'].get('message', '')}"
    return _diagnosis("Evicted", text, _request_more(evidence))


def _deadline(evidence: Evidence) -> Diagnosis | None:
    pod_reason = (evidence.pod or {}).get("status", {}).get("reason")
    if pod_reason != "DeadlineExceeded" and _job_condition(evidence, "DeadlineExceeded") is None:
        return None
    noun, timeout = evidence.noun, evidence.fields.timeout
    text = f"The {noun} ran longer than its timeout ({timeout}) and was stopped."
    return _diagnosis("Timeout", text, f"Raise {timeout}, or let the {noun} do less.")


def _cannot_run(evidence: Evidence) -> Diagnosis | None:
    for name, state in _terminated(evidence):
        reason, message = state.get("reason"), state.get("message", "")
        if reason not in ("StartError", "ContainerCannotRun", "RunContainerError"):
            continue
        remedy = f"Check the container's command and image in {evidence.fields.template}."
        if name == names.TRAINER_CONTAINER and re.search(
            r"no such file|not found in \$PATH|not found", message
        ):
            remedy = (
                "The image needs Python 3.9 or newer: name it in spec.trial.python (a path, say "
                "/opt/conda/bin/python), or use an image that has python3."
            )
        return _diagnosis("StartError", f"Container {name} could not be started: {message}", remedy)
    return None


def _exit_code(evidence: Evidence) -> Diagnosis | None:
    for name, state in _terminated(evidence):
        code, said = state["exitCode"], (state.get("message") or "").strip()
        noun = evidence.noun
        text = f"Container {name} exited with code {code}{_signal(code)} before the {noun} had a result."
        logs = f"kubectl logs job/{evidence.job['metadata']['name']} shows what it said last."
        return _diagnosis("ExitCode", f"{text} {said}".strip(), logs)
    return None


def _signal(code: int) -> str:
    signals = {134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
    return f" ({signals[code]})" if code in signals else ""


def _no_result(evidence: Evidence) -> Diagnosis | None:
    if not any(c["type"] == "Complete" for c in evidence.job.get("status", {}).get("conditions", [])):
        return None
    return _diagnosis(
        "NoResult",
        f"The {evidence.noun}'s container ended without an error and without a result.",
        "Let the code run to its end; a call of os._exit ends the process before its result is told.",
    )


def _job_failed(evidence: Evidence) -> Diagnosis | None:
    condition = _job_condition(evidence)
    if condition is None:
        return None
    said = f"({condition.get('reason')}): {condition.get('message', '')}"
    return _diagnosis("JobFailed", f"The {evidence.noun}'s Job failed {said}")


def _job_condition(evidence: Evidence, reason: str | None = None) -> Json | None:
    for condition in evidence.job.get("status", {}).get("conditions", []):
        if (
            condition["type"] == "Failed"
            and condition["status"] == "True"
            and reason in (None, condition.get("reason"))
        ):
            return dict(condition)
    return None


OF_A_POD: tuple[Check, ...] = (
    _out_of_memory,
    _evicted,
    _deadline,
    _cannot_run,
    _told_by_trainer,
    _exit_code,
)

OF_THE_JOB: tuple[Check, ...] = (_no_result, _job_failed)
