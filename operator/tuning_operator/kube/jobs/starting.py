"""Why a Job does not start, or not completely. The messages follow "Trial 3 cannot start: "."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tuning_operator.kube.jobs.advice import (
    IMAGES,
    NODES,
    REFUSALS,
    SCHEDULING,
    VOLUMES,
    Advice,
    advise,
)
from tuning_operator.kube.jobs.evidence import (
    Check,
    Container,
    Evidence,
    Json,
    began,
    containers,
    created,
    diagnosis,
    eviction_remedy,
    first,
    last_event,
    last_progress,
    logs_command,
    pod_condition,
    pod_failure,
    start_advice,
)
from tuning_operator.kube.jobs.lost import restarts_of
from tuning_operator.kube.jobs.resources import excess, missing_resource, similar_resource
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.resource import names
from tuning_operator.resource.quantity import quantity
from tuning_operator.resource.text import count
from tuning_operator.resource.times import parse_time, rfc3339

QUOTA_REMEDY = "Wait until other work has ended, lower spec.parallelism, or ask for a larger ResourceQuota."
RESUME = '{"spec":{"suspend":false}}'
VOLUME_EVENTS = ("FailedMount", "FailedAttachVolume")
SANDBOX_EVENT = "FailedCreatePodSandBox"
VOLUMES_SUMMARY = r"Unable to attach or mount volumes"
EVICTIONS = 3
"""After so many evictions, the next pod of a trial is not expected to survive either."""
LASTING = timedelta(seconds=5)
"""A volume's first mount often fails once or twice, until the node has read the ConfigMap or Secret."""
IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
FAILED_PULLS = ("ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed")
"""Why a container waits right after a pull failed; after that, it is ImagePullBackOff until the next one."""
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError")
CONFIG_ERROR = rf"Error: (?!{'|'.join(IMAGE_REASONS)})"
"""How an Event begins that reports such an error. Its message may differ from one attempt to the next."""
SYSTEM_TAINTS = (
    r"\{(?:node(?:-role)?(?:\.cloudprovider)?\.kubernetes\.io/|karpenter\.sh/|ToBeDeletedByClusterAutoscaler)"
)
"""Of nodes that are not meant for pods, are not ready, or are being removed."""
KINDS = {
    kind.lower(): kind
    for kind in (
        "ConfigMap",
        "PersistentVolumeClaim",
        "PriorityClass",
        "RuntimeClass",
        "Secret",
        "ServiceAccount",
    )
}
CLUSTER_WIDE = ("PriorityClass", "RuntimeClass")
FIELDS = {
    "PersistentVolumeClaim": "volumes",
    "PriorityClass": "priorityClassName",
    "RuntimeClass": "runtimeClassName",
    "ServiceAccount": "serviceAccountName",
}
"""The field of a pod that names an object of a kind."""


def why_not_started(evidence: Evidence) -> Diagnosis | None:
    """Return what keeps a Job's pod from starting; None if nothing is known to."""
    return first(CHECKS, evidence)


def in_need_of_events(evidence: Evidence) -> Json | None:
    """Return the object whose Events may explain what no status shows; None if the status shows it all.

    A Job does not show why its pod is refused, and a pod that has a node does not show why it is not set up,
    nor how pulling its image failed before the kubelet waits for its next attempt, nor since when that or
    creating a container fails.
    """
    pod = evidence.pod
    if pod is None:
        return None if evidence.job.get("spec", {}).get("suspend") else evidence.job
    is_set_up = pod_condition(pod, "PodReadyToStartContainers")
    silent = "nodeName" in pod["spec"] and not is_set_up
    return pod if silent or _waiting(pod, ("ImagePullBackOff", *CONFIG_REASONS)) else None


def why_incomplete(evidence: Evidence) -> Diagnosis | None:
    """Return why a container beside the running trainer does not run; None if all do, or may yet."""
    if unreachable := _node_unreachable(evidence):
        return unreachable
    for container in containers(evidence.pod) if evidence.pod else ():
        if container.name == names.TRAINER_CONTAINER:
            continue
        text = _not_running(container)
        if text:
            logs = logs_command(evidence, container.name, evidence.pod)
            shown = (
                ""
                if container.waiting.get("reason") in (*IMAGE_REASONS, *CONFIG_REASONS)
                else f" See {logs}."
            )
            remedy = f"Correct or remove it in {evidence.fields.template}.{shown}"
            return diagnosis("SidecarNotRunning", f"{container.described} {text}", remedy)
    return None


def _not_running(container: Container) -> str | None:
    """Return how a container beside the trainer does not run, though it should."""
    ended = container.terminated or container.status.get("lastState", {}).get("terminated") or {}
    how = f"exited with code {ended.get('exitCode')} ({ended.get('reason', '')})"
    if container.terminated:
        return how if ended.get("exitCode") else None
    reason, message = container.waiting.get("reason", ""), container.waiting.get("message", "")
    if reason not in (*IMAGE_REASONS, *CONFIG_REASONS, "CrashLoopBackOff", "RunContainerError"):
        return None
    last = f"; it last {how}" if ended else ""
    return f"does not run ({reason}): {message}{last}"


def _waiting(pod: Json | None, reasons: Sequence[str]) -> Container | None:
    """Return the first container that waits for one of these reasons."""
    found = containers(pod) if pod else ()
    return next((container for container in found if container.waiting.get("reason") in reasons), None)


def _image(evidence: Evidence) -> Diagnosis | None:
    pod, found = evidence.pod, _waiting(evidence.pod, IMAGE_REASONS)
    if pod is None or found is None:
        return None
    reason, message, template = (
        found.waiting["reason"],
        found.waiting.get("message", ""),
        evidence.fields.template,
    )
    since = None if reason in FAILED_PULLS else last_progress(pod)
    if reason == "ImagePullBackOff":  # the Event of the last attempt has the cause
        pulls = [e for e in evidence.events if e.get("message", "").startswith("Failed to pull image")]
        # A container also waits for the images of its volumes.
        failed = [e for e in pulls if f'image "{found.image}"' in e["message"]] or pulls
        event = last_event(replace(evidence, events=failed), "Failed")
        message, since = event["message"] if event else message, _first_time(failed)
    advice = advise(IMAGES, f"{reason}: {message}", template) or Advice(
        "",
        f"Check the image's name and tag in {template}, and that the image exists. If the registry is "
        "private, imagePullSecrets must name a Secret with access to it.",
    )
    return diagnosis(
        advice.category or "ImagePull",
        f"the image {found.image} of {found.described} cannot be pulled ({reason}): {message}",
        advice.remedy,
        since,
    )


def _first_time(events: Iterable[Json]) -> datetime | None:
    """Return since when a container fails, by the Events about it; None while none is known.

    The conditions of its pod do not show it: an image may be pulled for minutes before that fails.
    """
    return min((time for event in events if (time := began(event))), default=None)


def _container_config(evidence: Evidence) -> Diagnosis | None:
    pod, found = evidence.pod, _waiting(evidence.pod, CONFIG_REASONS)
    if pod is None or found is None:
        return None
    reason, message = found.waiting["reason"], found.waiting.get("message", "")
    failed = (e for e in evidence.events if re.match(CONFIG_ERROR, e.get("message", "")))
    advice = start_advice(found, message, evidence)
    return diagnosis(
        advice.category or "ContainerConfig",
        f"{found.described} cannot be created ({reason}): {message}",
        _create_missing(message, evidence.fields.template) or advice.remedy,
        _first_time(failed),
    )


def _initializing(evidence: Evidence) -> Diagnosis | None:
    """An init container may be meant to take long, so the report only says what the pod waits for."""
    pod, own = evidence.pod, evidence.trainer
    if own and own.terminated:
        return None
    for container in containers(pod) if pod else ():
        if pod is None or not container.init:
            continue
        logs = logs_command(evidence, container.name, pod)
        if container.waiting.get("reason") == "CrashLoopBackOff":
            text = f"its {container.described} exits again and again: {container.waiting.get('message', '')}"
            return diagnosis("InitContainer", text, f"See {logs}.", last_progress(pod))
        unready = container.running and not (container.restarts and container.status.get("started"))
        if unready:
            since = parse_time(container.status["state"]["running"].get("startedAt"))
            running = f"its {container.described} has been running since {rfc3339(since)}" if since else ""
            if container.restarts:
                text = f"{running} but its startup probe has not succeeded"
                remedy = f"See {logs}."
            else:
                text = f"{running} and has to exit before the trainer starts"
                remedy = f"If it should have ended by now, see {logs}."
            return diagnosis("InitContainer", text, remedy, since)
    return None


def _create_missing(message: str, *fields: str) -> str | None:
    """Return the remedy for a message about a missing object; None if it is about something else."""
    found = re.search(rf'\b({"|".join(KINDS)}) "([^"]+)" not found', message, re.IGNORECASE) or re.search(
        r"no (PriorityClass) with name (\S+) was found", message
    )
    if found is None:
        return None
    kind, name = KINDS[found[1].lower()], found[2].rpartition("/")[2]
    where = "cluster" if kind in CLUSTER_WIDE else "namespace"
    field = f"{FIELDS[kind]} of " if kind in FIELDS else ""
    return (
        f'{kind} "{name}" doesn\'t exist in this {where}: create it, or correct its name in '
        f"{field}{' or '.join(fields)}."
    )


def _unschedulable(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    found = pod_condition(pod, "PodScheduled", "False") if pod else None
    if pod is None or found is None:
        return None
    since, message = parse_time(found.get("lastTransitionTime")), found.get("message", "")
    if found.get("reason") == "SchedulingGated":
        return _gated(pod, since)
    if found.get("reason") != "Unschedulable":
        return None
    template = evidence.fields.template
    if remedy := _create_missing(message, template):
        return diagnosis("Unschedulable", f"no node can run its pod: {message}", remedy, since)
    if "no nodes available" in message:
        return diagnosis("Unschedulable", "the cluster has no nodes at the moment", "Add nodes.", since)
    if too_much := _never_enough(pod, evidence):
        text, remedy = too_much
        return diagnosis("Unschedulable", f"{text} ({message})", remedy, since)
    restarts = restarts_of(evidence.job)
    if restarts.avoided:
        text = (
            f"it waits for a node other than {' and '.join(restarts.avoided)}, which rejected pods "
            f"({restarts.reason}): {message}"
        )
        return diagnosis("PodFailed", text, f"{NODES} The nodes are tried again after a few minutes.")
    reasons = message.partition("preemption:")[0]
    advice = advise(SCHEDULING, reasons, template)
    if advice and advice.category:
        short = sorted(set(re.findall(r"Insufficient ([^\s,.]+(?:\.[^\s,.]+)*)", reasons)))
        what = (
            f"no node has enough free {', '.join(short)} for its pod"
            if short
            else "no node has room for its pod"
        )
        remedy = advice.remedy + _excluded(reasons, template)
        return diagnosis(advice.category, f"{what}: {message}", remedy, since)
    remedy = (
        advice.remedy
        if advice
        else (
            f"Correct nodeSelector, affinity, tolerations or volumes in {template}, or the nodes themselves."
        )
    )
    return diagnosis("Unschedulable", f"no node can run its pod: {message}", remedy, since)


def _gated(pod: Json, since: datetime | None) -> Diagnosis:
    gates = ", ".join(gate["name"] for gate in pod["spec"].get("schedulingGates", []))
    name = pod["metadata"]["name"]
    return diagnosis(
        "Queued",
        f"its pod waits for the scheduling gate {gates}: it is in a queue.",
        f"It starts when its queue admits it; `kubectl describe pod {name}` may show why it waits.",
        since,
    )


def _excluded(reasons: str, template: str) -> str:
    """Return how to use nodes that have the wrong taint or label; they may be those with free resources."""
    taints = [
        taint for taint in re.findall(r"taint (\{[^}]*\})", reasons) if not re.match(SYSTEM_TAINTS, taint)
    ]
    texts = [
        f" Other nodes have the taint {taint}: to use them, add a toleration to {template}."
        for taint in taints
    ]
    if re.search(r"affinity/selector|match node selector", reasons):
        texts.append(f" Other nodes don't match nodeSelector or affinity in {template}.")
    return "".join(texts)


def _never_enough(pod: Json, evidence: Evidence) -> tuple[str, str] | None:
    """Return what the pod requests that no node has, however long it waits, and the remedy."""
    largest, template = evidence.largest, evidence.fields.template
    if largest is None:
        return None
    if missing := missing_resource(pod, largest):
        text = f"its pod requests {missing}, but no node has any"
        if similar := similar_resource(missing, largest):
            return text, f"Correct the resource's name in {template}: did you mean {similar}?"
        return text, (
            f"Check the resource's name in {template} (resources.limits), or add a node that has it, with "
            "its device plugin."
        )
    too_much = excess(pod, largest)
    remedy = f"Lower the request in {template} (resources), or add a node that has enough."
    return (too_much, remedy) if too_much else None


def missing_config_map(evidence: Evidence) -> str | None:
    """Return the ConfigMap of the operator that a pod waits for, since it was deleted."""
    event = _volume_event(evidence)
    message = event.get("message", "") if event else ""
    ours = any(f'"{volume}"' in message for volume in (names.TRAINER_VOLUME, names.CA_VOLUME))
    missing = re.search(r'configmap "([^"]+)" not found', message)
    return missing[1] if missing and ours else None


def _volume_event(evidence: Evidence) -> Json | None:
    """Return the Event that explains why a pod waits for its volumes; None if it has them."""
    # A summary follows the message with the cause.
    specific = [e for e in evidence.events if not re.match(VOLUMES_SUMMARY, e.get("message", ""))]
    cause = last_event(replace(evidence, events=specific), *VOLUME_EVENTS)
    newest, pod = last_event(evidence, *VOLUME_EVENTS, SANDBOX_EVENT), evidence.pod
    if newest is None or pod is None or pod_condition(pod, "PodReadyToStartContainers"):
        return None
    if newest["reason"] == SANDBOX_EVENT:
        return None  # the volumes are mounted before the kubelet creates the pod's sandbox
    return cause or newest


def _volume(evidence: Evidence) -> Diagnosis | None:
    event, pod = _volume_event(evidence), evidence.pod
    if event is None or pod is None:
        return None
    message, since = event.get("message", ""), last_progress(pod)
    if missing := missing_config_map(evidence):
        text = f"the operator's ConfigMap {missing} was deleted; it is created again."
        return diagnosis("TrainerMissing", text, since=since)
    first_time = began(event)
    latest = parse_time(event.get("lastTimestamp")) or parse_time(
        (event.get("series") or {}).get("lastObservedTime")
    )
    advice = advise(VOLUMES, message, evidence.fields.template)
    category = (advice and advice.category) or "Volume"
    if category == "Volume" and (first_time is None or latest is None or latest - first_time < LASTING):
        return None
    missing_object = _create_missing(message, evidence.fields.source, evidence.fields.template)
    remedy = missing_object or (
        advice.remedy if advice else f"Check the volumes in {evidence.fields.template}."
    )
    return diagnosis(category, f"a volume cannot be mounted: {message}", remedy, since)


def _sandbox(evidence: Evidence) -> Diagnosis | None:
    event, pod = last_event(evidence, SANDBOX_EVENT), evidence.pod
    if event is None or pod is None or pod_condition(pod, "PodReadyToStartContainers"):
        return None
    remedy = "Ask the cluster's administrator to check the node's container runtime and network."
    text = f"the node cannot set up its pod: {event.get('message', '')}"
    return diagnosis("Node", text, remedy, last_progress(pod))


def _pod_refused(evidence: Evidence) -> Diagnosis | None:
    event = last_event(evidence, "FailedCreate")
    if event is None or evidence.pod is not None:
        return None
    message, since, template = event.get("message", ""), created(evidence.job), evidence.fields.template
    if remedy := _create_missing(message, template):
        return diagnosis("PodRefused", f"its pod is rejected: {message}", remedy, since)
    if missing := re.search(r"failed quota: .*?must specify (.+)", message):
        remedy = f"Set resources in {template} as the quota requires: {missing[1]}."
        return diagnosis("PodRefused", f"its pod is rejected: {message}", remedy, since)
    if "exceeded quota" in message:
        remedy = (
            QUOTA_REMEDY
            if _fits_quota(message)
            else (f"Lower the request in {template}, or ask for a larger ResourceQuota.")
        )
        return diagnosis("Quota", f"the namespace's quota is exceeded: {message}", remedy, since)
    if advice := advise(REFUSALS, message, template):
        return diagnosis("PodRefused", f"its pod cannot be created: {message}", advice.remedy, since)
    remedy = f"Change {template} to meet the cluster's policies and the namespace's limits."
    return diagnosis("PodRefused", f"its pod is rejected: {message}", remedy, since)


def _fits_quota(message: str) -> bool:
    """Return whether a pod fits into its namespace's quota once other pods have ended."""
    parts = (
        re.search(rf"{part}: (.*?)(?:, (?:used|limited): |$)", message) for part in ("requested", "limited")
    )
    requested, limited = (
        dict(re.findall(r"([^\s,=]+)=([^\s,]+)", part[1])) if part else {} for part in parts
    )
    return all(quantity(amount) <= quantity(limited.get(name, amount)) for name, amount in requested.items())


def _pod_replaced(evidence: Evidence) -> Diagnosis | None:
    """The Job makes another pod after a short while, and gives up after a few."""
    pod = evidence.pod
    failure = pod_failure(pod) if pod else None
    if failure is None:
        return None
    text = f"its pod failed and is being replaced ({count(len(evidence.pods), 'pod')} so far): {failure}"
    return diagnosis("PodFailed", text)


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
    why = evicted[-1]["status"].get("message", "")
    message = f"{len(evicted)} of its pods were evicted: {why}"
    return diagnosis("Evicted", message, eviction_remedy(evidence, why), created(evidence.job))


def _queued(evidence: Evidence) -> Diagnosis | None:
    job = evidence.job
    if not job.get("spec", {}).get("suspend"):
        return None
    name, conditions = job["metadata"]["name"], job.get("status", {}).get("conditions", [])
    since = next((c.get("lastTransitionTime") for c in conditions if c["type"] == "Suspended"), None)
    return diagnosis(
        "Queued",
        f"Job {name} is suspended: it waits in a queue, or a user suspended it.",
        f"It starts when its queue admits it; `kubectl describe job {name}` may show why it waits. If a user "
        f"suspended it, resume it: `kubectl patch job {name} -p '{RESUME}'`.",
        parse_time(since) or created(job),
    )


CHECKS: tuple[Check, ...] = (
    _queued,
    _node_unreachable,
    _evicted_repeatedly,
    _image,
    _container_config,
    _initializing,
    _unschedulable,
    _volume,
    _sandbox,
    _pod_refused,
    _pod_replaced,
)
