"""Runs that ended, or never began, through no fault of the study: their Jobs are started again.

A Job itself replaces pods that were deleted or rejected before their trainer ran. But it can't tell a
container that its node lost from a program that failed, and it does not keep its next pod from the node that
rejected the last one. The operator does both, with another Job for the same work.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.jobs.evidence import (
    STOPPED,
    Evidence,
    Json,
    containers,
    created,
    job_condition,
    pod_condition,
    pod_failure,
    trainer,
)
from tuning_operator.resource import names
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import parse_time

MOST_RESTARTS = 5
"""How often work is started again; after that, what its Job shows counts."""
REJECTIONS = 2
"""A node that rejected so many pods is avoided: a single one may have come at a bad moment."""
AVOIDED_FOR = timedelta(minutes=5)
"""Then the node is tried again."""
MOST_AVOIDED = 50
KILLED = 137
"""The exit code of a trainer that was deleted and did not end within its grace period."""
DELETED = "its pod was deleted while it ran"
REASON_LIMIT = 300
"""Characters of the reason in the annotation."""


@dataclass(frozen=True)
class Restarts:
    """What happened to the earlier Jobs of some work, as an annotation of its Job."""

    count: int = 0
    avoided: tuple[str, ...] = ()
    """Nodes on which the Job's pods do not run."""
    reason: str = ""
    """How the kubelet explained the last rejection."""

    def annotations(self) -> dict[str, str]:
        """Return the annotation, if there is anything to record."""
        if not self.count and not self.avoided:
            return {}
        reason = shorten(self.reason, REASON_LIMIT)
        content = {"count": self.count, "avoidedNodes": self.avoided, "reason": reason}
        return {names.ANNOTATION_RESTARTS: json.dumps(content)}


def restarts_of(job: Json) -> Restarts:
    """Return what a Job's annotation records; users may have changed it."""
    try:
        content = json.loads(job["metadata"].get("annotations", {})[names.ANNOTATION_RESTARTS])
        avoided = tuple(str(node) for node in content["avoidedNodes"])
        return Restarts(int(content["count"]), avoided, str(content["reason"]))
    except (KeyError, ValueError, TypeError):
        return Restarts()


def rejecting_node(pod: Json) -> str | None:
    """Return the node that rejected a pod before its trainer ran."""
    if pod_failure(pod) is None:
        return None
    own = trainer(pod)
    if own and own.terminated and not own.never_ran:
        return None
    if pod["status"].get("reason") == "Evicted":  # admitted, and ended for what it used
        return None
    return pod.get("spec", {}).get("nodeName") or None


def _rejected_at(pod: Json) -> datetime | None:
    """Return when a pod that was rejected last changed: it may have waited for a node for hours.

    The kubelet sets startTime as it rejects a pod, and may drop the conditions.
    """
    status = pod["status"]
    conditions = status.get("conditions", [])
    texts = [status.get("startTime"), *(found.get("lastTransitionTime") for found in conditions)]
    return max((when for text in texts if (when := parse_time(text))), default=created(pod))


class Rejections:
    """Which nodes reject pods. A restarted operator learns it from the next pods."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, tuple[datetime, str]]] = {}

    def see(self, pod: Json) -> None:
        """Remember a pod if its node rejected it."""
        node, when = rejecting_node(pod), _rejected_at(pod)
        if node and when and (text := pod_failure(pod)):
            self._pods.setdefault(node, {})[pod["metadata"]["uid"]] = when, text

    def nodes(self, now: datetime) -> dict[str, str]:
        """Return the nodes to avoid, in the order of their last rejection, with the kubelet's explanation."""
        for pods in self._pods.values():
            for uid in [uid for uid, (when, _) in pods.items() if when < now - AVOIDED_FOR]:
                del pods[uid]
        last = {node: max(pods.values()) for node, pods in self._pods.items() if len(pods) >= REJECTIONS}
        self._pods = {node: pods for node, pods in self._pods.items() if pods}
        return {node: text for node, (_, text) in sorted(last.items(), key=lambda n: n[1])[-MOST_AVOIDED:]}


def why_lost(evidence: Evidence) -> str | None:
    """Return how a Job failed through no fault of its own; None if it did not fail, or by itself."""
    failed, pod = job_condition(evidence.job, "Failed"), evidence.pod
    if failed is None or failed.get("reason") != "PodFailurePolicy":
        return None  # otherwise its pods were replaced as often as they may be
    if pod is None:
        return DELETED
    own = trainer(pod)
    if text := pod_failure(pod):
        what = "could not start its trainer" if own and own.never_ran else "ended its pod"
        return f"its node {what}: {text}"
    ended = own.terminated if own else {}
    deleted = pod["metadata"].get("deletionTimestamp") and ended.get("reason") != "OOMKilled"
    if deleted and ended.get("exitCode") in (KILLED, STOPPED):
        return DELETED
    return None


def is_pinned(template: Json) -> bool:
    """Return whether a pod template names its node (nodeName).

    Its pods are not scheduled: the node rejects them when it is full, which says nothing about the node, and
    they can't avoid it.
    """
    return bool(template.get("spec", {}).get("nodeName"))


def must_move(evidence: Evidence, rejecting: Collection[str]) -> str | None:
    """Return why a Job has to be started again to get its next pod on another node; None if it need not.

    Args:
        evidence: of a Job that is starting.
        rejecting: the nodes that reject pods.
    """
    pod = evidence.pod
    node = rejecting_node(pod) if pod else None
    if (
        pod is None
        or is_pinned(evidence.template)
        or node not in rejecting
        or node in restarts_of(evidence.job).avoided
    ):
        return None
    return f"node {node} rejects its pods, so it moves to another node: {pod_failure(pod)}"


def never_starts(evidence: Evidence) -> str | None:
    """Return why the pod of a starting Job stays Pending forever; None if it may yet start.

    If a node goes down after it has created a container, and before it has started it, its kubelet finds the
    pod's sandbox gone. It does not make another one for a pod whose containers are not restarted, and nobody
    deletes the pod.
    """
    pod = evidence.pod
    if pod is None or pod_condition(pod, "PodReadyToStartContainers"):
        return None
    if any(
        found.status.get("containerID") and found.status.get("state") == {"waiting": {}}
        for found in containers(pod)
    ):
        return f"its node {pod['spec'].get('nodeName')} went down while starting its pod"
    return None


def avoiding(affinity: Mapping[str, Any], nodes: Collection[str]) -> dict[str, Any]:
    """Return a pod's affinity such that it does not run on some nodes, whatever else it requires."""
    node = affinity.get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # The API server allows one value for each field, and a term without any requirement matches nothing.
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    terms = [
        {**term, "matchFields": [*term.get("matchFields", []), *others]} if term else term
        for term in required.get("nodeSelectorTerms") or [{"matchFields": []}]
    ]
    required = {**required, "nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": {**node, "requiredDuringSchedulingIgnoredDuringExecution": required}}
