"""What Kubernetes shows about a Job, its pods and its Events, in the terms of the diagnoses.

Categories of failures are an interface for programs: do not rename them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.kube.plan.work import Fields
from tuning_operator.protocol import Failure
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import parse_time

Json = Mapping[str, Any]

MESSAGE_LIMIT = 800


@dataclass(frozen=True)
class Evidence:
    """What is known about one Job."""

    job: Json
    pods: Sequence[Json] = ()
    """The Job's pods."""
    events: Sequence[Json] = ()
    """Events of the Job and of its pods."""
    largest: Mapping[str, int] | None = None
    """The most that any single node has of each extended resource (`nvidia.com/gpu`); None if not known."""
    noun: str = "trial"
    """What the Job is for."""
    fields: Fields = field(default_factory=Fields)
    """Where the manifest defines what the Job runs."""

    @property
    def pod(self) -> Json | None:
        """The newest pod: a Job has several if nodes were drained."""
        return max(self.pods, key=created_text, default=None)


Check = Callable[[Evidence], Diagnosis | None]


def first(checks: Sequence[Check], evidence: Evidence) -> Diagnosis | None:
    """Return the diagnosis of the first check that finds something."""
    return next((found for check in checks if (found := check(evidence))), None)


def diagnosis(
    category: str, message: str, remedy: str | None = None, since: datetime | None = None
) -> Diagnosis:
    """Return a diagnosis with a message of limited length."""
    failure = Failure(category=category, message=shorten(message, MESSAGE_LIMIT), remedy=remedy)
    return Diagnosis(failure, since)


def job_state(job: Json) -> Literal["starting", "running", "ended", "stopping"]:
    """Return the state of the run that a Job is."""
    status = job.get("status", {})
    if job["metadata"].get("deletionTimestamp"):
        return "stopping"
    if job_condition(job, "Complete", "Failed"):
        return "ended"
    return "running" if status.get("ready") else "starting"


def job_condition(job: Json, *types: str) -> Json | None:
    """Return the first condition of these types that is true."""
    return _condition(job, "True", *types)


def is_unscheduled(pod: Json) -> bool:
    """Return whether the scheduler has not found a node for the pod yet."""
    return _condition(pod, "False", "PodScheduled") is not None


def pod_condition(pod: Json, type_: str, status: str = "True") -> Json | None:
    """Return the condition of this type if it has this status."""
    return _condition(pod, status, type_)


def _condition(item: Json, status: str, *types: str) -> Json | None:
    conditions: Sequence[Json] = item.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] in types and c["status"] == status), None)


def created(item: Json) -> datetime | None:
    """Return when an object was created."""
    return parse_time(item["metadata"].get("creationTimestamp"))


def created_text(item: Json) -> str:
    """Return when an object was created, for sorting."""
    return str(item["metadata"].get("creationTimestamp"))


def last_progress(pod: Json) -> datetime | None:
    """Return when the pod completed its last step: it may wait an hour for a GPU, then pull its image."""
    steps = ("PodScheduled", "PodReadyToStartContainers", "Initialized")
    times = (parse_time(found.get("lastTransitionTime")) for s in steps if (found := pod_condition(pod, s)))
    return max((time for time in times if time), default=created(pod))


class Container(NamedTuple):
    """A container of a pod."""

    name: str
    image: str
    """As in the manifest."""
    status: Json

    @property
    def waiting(self) -> Json:
        """Why it does not run yet; empty if it does, or did."""
        return self.status.get("state", {}).get("waiting") or {}

    @property
    def terminated(self) -> Json:
        """How it ended; empty if it has not."""
        return self.status.get("state", {}).get("terminated") or {}


def containers(pod: Json) -> Iterator[Container]:
    """Yield the containers that have a status, init containers first."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    images = {
        c["name"]: c.get("image", "") for c in [*spec.get("initContainers", []), *spec.get("containers", [])]
    }
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            name = container["name"]
            yield Container(name, images.get(name, container.get("image", "")), container)


def last_event(evidence: Evidence, *reasons: str) -> Json | None:
    """Return the newest of the Events with these reasons."""
    found = [event for event in evidence.events if event.get("reason") in reasons]
    return max(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime")), default=None)


def request_more(evidence: Evidence) -> str:
    """Return how to avoid evictions."""
    return (
        f"Request as much memory and ephemeral storage as the {evidence.noun} needs "
        f"(resources.requests in {evidence.fields.template})."
    )
