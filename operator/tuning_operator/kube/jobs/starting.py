"""Why a Job does not start. The messages follow "Trial 3 cannot start: "."""

import re
from collections.abc import Mapping

from tuning_operator.kube.jobs.evidence import (
    Check,
    Container,
    Evidence,
    Json,
    containers,
    created,
    diagnosis,
    first,
    last_event,
    last_progress,
    pod_condition,
    request_more,
)
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.resource import names
from tuning_operator.resource.times import parse_time

QUOTA_REMEDY = "Wait until other work has ended, lower spec.parallelism, or ask for a larger ResourceQuota."
EVICTIONS = 3
"""After so many evictions, the next pod of a trial is not expected to survive either."""
KINDS = {"secret": "Secret", "configmap": "ConfigMap", "persistentvolumeclaim": "PersistentVolumeClaim"}


def why_not_started(evidence: Evidence) -> Diagnosis | None:
    """Return what keeps a Job's pod from starting; None if nothing is known to."""
    return first(CHECKS, evidence)


def _waiting(pod: Json | None, *reasons: str) -> Container | None:
    """Return the first container that waits for one of these reasons."""
    found = containers(pod) if pod else ()
    return next((container for container in found if container.waiting.get("reason") in reasons), None)


def _image(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    reasons = (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
    )
    found = _waiting(pod, *reasons)
    if pod is None or found is None:
        return None
    failed = (e["message"] for e in evidence.events if "Failed to pull" in e.get("message", ""))
    detail = next(failed, found.waiting.get("message", ""))
    reason = found.waiting["reason"]
    return diagnosis(
        "ImagePull",
        f"the image {found.image} of container {found.name} cannot be pulled ({reason}): {detail}",
        f"Check the image's name and tag in {evidence.fields.template}, and that the image exists. If the "
        "registry is private, add imagePullSecrets.",
        last_progress(pod),
    )


def _container_config(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    found = _waiting(pod, "CreateContainerConfigError", "CreateContainerError")
    if pod is None or found is None:
        return None
    reason, message = found.waiting["reason"], found.waiting.get("message", "")
    remedy = _create_missing(message, evidence.fields.template) or (
        f"Correct the container's settings in {evidence.fields.template}."
    )
    text = f"container {found.name} cannot be created ({reason}): {message}"
    return diagnosis("ContainerConfig", text, remedy, last_progress(pod))


def _create_missing(message: str, *fields: str) -> str | None:
    """Return the remedy for a message about a missing object; None if it is about something else."""
    missing = re.search(rf'({"|".join(KINDS)}) "([^"]+)" not found', message)
    if missing is None:
        return None
    kind, name = KINDS[missing[1]], missing[2].rpartition("/")[2]
    return f"Create the {kind} {name} in this namespace, or correct its name in {' or '.join(fields)}."


def _unschedulable(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    found = pod_condition(pod, "PodScheduled", "False") if pod else None
    if pod is None or found is None or found.get("reason") != "Unschedulable":
        return None
    since, message = parse_time(found.get("lastTransitionTime")), found.get("message", "")
    template = evidence.fields.template
    too_large = _larger_than_any_node(pod, evidence.largest)
    if too_large:
        remedy = f"Lower the request in {template} (resources.limits), or add a node that has enough."
        return diagnosis("Unschedulable", f"{too_large} ({message})", remedy, since)
    short = sorted(set(re.findall(r"Insufficient ([^\s,.]+(?:\.[^\s,.]+)*)", message)))
    if short and not re.search(r"affinity|selector|taint|persistentvolumeclaim", message):
        what = f"no node has enough free {', '.join(short)} for its pod: {message}"
        lower = f"lower spec.parallelism or the request in {template}"
        return diagnosis("Capacity", what, f"Wait until other work has ended, {lower}, or add nodes.", since)
    remedy = f"Correct nodeSelector, affinity, tolerations or volumes in {template}, or the nodes themselves."
    return diagnosis("Unschedulable", f"no node can run its pod: {message}", remedy, since)


def _larger_than_any_node(pod: Json, largest: Mapping[str, int] | None) -> str | None:
    for container in pod["spec"].get("containers", []) if largest is not None else []:
        for resource, amount in container.get("resources", {}).get("limits", {}).items():
            most = (largest or {}).get(resource, 0)
            if "/" in resource and str(amount).isdecimal() and int(amount) > most:
                has = f"the largest node has {most}" if most else "no node has any"
                return f"its pod requests {amount} {resource}, but {has}"
    return None


def _volume(evidence: Evidence) -> Diagnosis | None:
    event = last_event(evidence, "FailedMount", "FailedAttachVolume")
    if event is None or evidence.pod is None:
        return None
    message, since = event.get("message", ""), last_progress(evidence.pod)
    missing = re.search(r'configmap "([^"]+)" not found', message)
    if missing and f'"{names.TRAINER_VOLUME}"' in message:
        text = f"the trainer's ConfigMap {missing[1]} was deleted; the operator creates it again."
        return diagnosis("TrainerMissing", text, since=since)
    remedy = _create_missing(message, evidence.fields.source, evidence.fields.template) or (
        f"Check the volumes in {evidence.fields.template}."
    )
    return diagnosis("Volume", f"a volume cannot be mounted: {message}", remedy, since)


def _sandbox(evidence: Evidence) -> Diagnosis | None:
    event = last_event(evidence, "FailedCreatePodSandBox")
    if event is None or evidence.pod is None:
        return None
    remedy = "Ask the cluster's administrator to check the node's container runtime and network."
    text = f"the node cannot set up its pod: {event.get('message', '')}"
    return diagnosis("Node", text, remedy, last_progress(evidence.pod))


def _pod_refused(evidence: Evidence) -> Diagnosis | None:
    event = last_event(evidence, "FailedCreate")
    if event is None or evidence.pod is not None:
        return None
    message, since = event.get("message", ""), created(evidence.job)
    if "exceeded quota" in message:
        return diagnosis("Quota", f"the namespace's quota is used up: {message}", QUOTA_REMEDY, since)
    remedy = f"Change {evidence.fields.template} to meet the cluster's policies and the namespace's limits."
    return diagnosis("PodRefused", f"its pod is rejected: {message}", remedy, since)


def _node_unreachable(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    leaving = pod and pod["metadata"].get("deletionTimestamp")
    if not pod or not leaving:
        return None
    disrupted = pod_condition(pod, "DisruptionTarget")
    if disrupted is None or disrupted.get("reason") != "DeletionByTaintManager":
        return None
    node = pod["spec"].get("nodeName", "")
    return diagnosis(
        "Node",
        f"its node {node} is unreachable, so its pod cannot be replaced yet",
        f"Repair the node, or delete it (`kubectl delete node {node}`): the {evidence.noun} then starts "
        "again.",
        parse_time(leaving),
    )


def _evicted_repeatedly(evidence: Evidence) -> Diagnosis | None:
    """The Job replaces an evicted pod; a trial that exhausts every node would never end."""
    evicted = [pod for pod in evidence.pods if pod.get("status", {}).get("reason") == "Evicted"]
    if len(evicted) < EVICTIONS:
        return None
    message = f"{len(evicted)} of its pods were evicted: {evicted[-1]['status'].get('message', '')}"
    return diagnosis("Evicted", message, request_more(evidence), created(evidence.job))


def _queued(evidence: Evidence) -> Diagnosis | None:
    job = evidence.job
    if not job.get("spec", {}).get("suspend"):
        return None
    name, conditions = job["metadata"]["name"], job.get("status", {}).get("conditions", [])
    since = next((c.get("lastTransitionTime") for c in conditions if c["type"] == "Suspended"), None)
    return diagnosis(
        "Queued",
        f"Job {name} is suspended: it waits in a queue, or a user suspended it.",
        f"It starts when its queue admits it; `kubectl describe job {name}` may show why it waits.",
        parse_time(since) or created(job),
    )


CHECKS: tuple[Check, ...] = (
    _queued,
    _node_unreachable,
    _evicted_repeatedly,
    _image,
    _container_config,
    _unschedulable,
    _volume,
    _sandbox,
    _pod_refused,
)
