"""Pods that wait for resources, such as GPUs, which others use."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuning_operator.kube.jobs.evidence import pod_condition
from tuning_operator.kube.jobs.resources import excess, requests
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names
from tuning_operator.resource.quantity import GPU
from tuning_operator.resource.times import parse_time

Json = Mapping[str, Any]


@dataclass(frozen=True)
class WaitingPod:
    """A pod that no node has room for."""

    name: str
    """NAMESPACE/NAME."""
    study: StudyKey | None
    """Whose pod it is; None: not a study's."""
    lacking: frozenset[str]
    """The resources that nodes lack for it."""
    since: datetime

    @classmethod
    def of(cls, pod: Json, largest: Mapping[str, str] | None) -> "WaitingPod | None":
        """Return what a pod waits for; None if it does not wait, or would not fit on any empty node."""
        metadata, condition = pod["metadata"], pod_condition(pod, "PodScheduled", "False")
        since = parse_time(condition.get("lastTransitionTime")) if condition else None
        if condition is None or since is None or condition.get("reason") != "Unschedulable":
            return None
        if "deletionTimestamp" in metadata or (largest is not None and excess(pod, largest)):
            return None
        lacking = re.findall(r"Insufficient ([^\s,]+?)\.?(?=[\s,]|$)", condition.get("message", ""))
        study = metadata.get("labels", {}).get(names.LABEL_STUDY)
        return cls(
            f"{metadata['namespace']}/{metadata['name']}",
            StudyKey(metadata["namespace"], study) if study else None,
            frozenset(lacking),
            since,
        )


def gpu_resources(job: Json, own: str) -> frozenset[str]:
    """Return the GPUs that a Job's pods request; `own` is the resource that counts as GPUs in any case."""
    return frozenset(name for name in requests(job["spec"]["template"]) if name == own or GPU.fullmatch(name))


def first_of_others(
    waiting: Collection[WaitingPod],
    yielding: Collection[StudyKey],
    resources: Collection[str],
    until: datetime,
) -> WaitingPod | None:
    """Return the pod that has waited longest for one of the resources.

    Args:
        waiting: all pods that wait.
        yielding: studies whose pods don't count.
        resources: those that would be given back.
        until: pods that began to wait later don't count.
    """
    found = (
        pod
        for pod in waiting
        if pod.study not in yielding and pod.since <= until and not pod.lacking.isdisjoint(resources)
    )
    return min(found, key=lambda pod: (pod.since, pod.name), default=None)
