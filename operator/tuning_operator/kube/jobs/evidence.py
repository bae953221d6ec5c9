"""What Kubernetes shows about a Job, its pods and its Events, in the terms of the diagnoses.

Categories of failures are an interface for programs: do not rename them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

from tuning_operator.kube.jobs.advice import CONTAINERS, NO_PROGRAM, PYTHON, Advice, advise
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.kube.plan.work import Fields
from tuning_operator.protocol import Failure
from tuning_operator.resource import names
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import parse_time

Json = Mapping[str, Any]

MESSAGE_LIMIT = 800
START_ERRORS = ("StartError", "ContainerCannotRun", "RunContainerError")
"""Reasons of a container's end that mean that its program never ran."""
ENDING_DEADLINE = 1
"""Seconds; as a pod's deadline, it ends a pod that has run for longer, and keeps it with its logs."""
LOST_CONTAINER = ("ContainerStatusUnknown", "Unknown")
"""The reasons that the kubelet gives for the end of a container that is gone, for example after a reboot."""
STOPPED = 143
"""The trainer's exit code after SIGTERM. It has reported nothing, and another pod resumes the work."""


class Container(NamedTuple):
    """A container of a pod, with its status."""

    name: str
    image: str
    """As in the manifest."""
    init: bool
    restarts: bool
    """Whether it is a native sidecar: an init container that is restarted and runs beside the trainer."""
    limits: Json
    """Of resources."""
    status: Json

    @property
    def waiting(self) -> Json:
        """Why it does not run yet; empty if it does, or did."""
        return self.status.get("state", {}).get("waiting") or {}

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self.status.get("state", {}).get("running") is not None

    @property
    def terminated(self) -> Json:
        """How it ended; empty if it has not."""
        return self.status.get("state", {}).get("terminated") or {}

    @property
    def never_ran(self) -> bool:
        """Whether it ended since its program could not be started."""
        return self.terminated.get("reason") in START_ERRORS

    @property
    def succeeded(self) -> bool:
        """Whether it ended without a failure, or runs beside the trainer as it should."""
        done = self.terminated.get("exitCode") == 0
        return done or (self.restarts and self.running and bool(self.status.get("started")))

    @property
    def described(self) -> str:
        """Return for example `init container fetch`."""
        kind = "sidecar container" if self.restarts else "init container" if self.init else "container"
        return f"{kind} {self.name}"


@dataclass(frozen=True)
class Evidence:
    """What is known about one Job."""

    job: Json
    pods: Sequence[Json] = ()
    """The Job's pods."""
    events: Sequence[Json] = ()
    """Events of the Job and of its pods."""
    largest: Mapping[str, str] | None = None
    """The most that any single node has of each resource, as quantities; None if not known."""
    noun: str = "trial"
    """What the Job is for."""
    fields: Fields = field(default_factory=Fields)
    """Where the manifest defines what the Job runs."""

    @cached_property
    def pod(self) -> Json | None:
        """The newest pod: a Job has several if nodes were drained."""
        return max(self.pods, key=created_text, default=None)

    @property
    def template(self) -> Json:
        """The Job's pod template, without what nothing reads."""
        template: Json = self.job.get("spec", {}).get("template", {})
        return template

    @cached_property
    def trainer(self) -> Container | None:
        """The trainer in the newest pod."""
        return trainer(self.pod) if self.pod else None


Check = Callable[[Evidence], Diagnosis | None]
State = Literal["starting", "running", "ended", "stopping"]


def first(checks: Sequence[Check], evidence: Evidence) -> Diagnosis | None:
    """Return the diagnosis of the first check that finds something."""
    return next((found for check in checks if (found := check(evidence))), None)


def diagnosis(
    category: str, message: str, remedy: str | None = None, since: datetime | None = None
) -> Diagnosis:
    """Return a diagnosis with a message of limited length."""
    failure = Failure(category=category, message=shorten(message, MESSAGE_LIMIT), remedy=remedy)
    return Diagnosis(failure, since)


def job_state(job: Json) -> State:
    """Return the state of a run as far as its Job shows it.

    A Job whose pod is not ready counts as starting: only the pod shows whether the trainer runs or has ended.
    """
    if job["metadata"].get("deletionTimestamp"):
        return "stopping"
    if job_condition(job, "Complete", "Failed"):
        return "ended"
    return "running" if job.get("status", {}).get("ready") else "starting"


def have_ended(job: Json, pods: Sequence[Json]) -> bool:
    """Return whether all pods of a Job have ended, though the Job doesn't show it yet.

    A cluster with many Jobs may take minutes until it updates their statuses.

    Args:
        job: the Job.
        pods: those of its pods that have not succeeded.
    """
    has_pods = bool(job.get("status", {}).get("active"))
    return has_pods and all(pod.get("status", {}).get("phase") == "Failed" for pod in pods)


def run_state(evidence: Evidence) -> State:
    """Return the state of a run. What other containers of its pod do does not matter."""
    state, found = job_state(evidence.job), evidence.trainer
    if state != "starting" or found is None or evidence.pod is None:
        return state
    if found.running:
        return "running"
    alive = exited_at(evidence) is not None
    return "ended" if alive and not _is_repeated(evidence.job, found.terminated.get("exitCode", 0)) else state


def exited_at(evidence: Evidence) -> datetime | None:
    """Return when the trainer exited, if other containers keep its pod alive."""
    pod, found = evidence.pod, evidence.trainer
    if pod is None or found is None or not found.terminated or pod["metadata"].get("deletionTimestamp"):
        return None
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or pod_condition(
        pod, "DisruptionTarget"
    ):
        return None
    others = [c for c in containers(pod) if not c.init and c.name != found.name]
    if all(other.terminated for other in others):
        return None  # the kubelet ends the pod, native sidecars included
    return parse_time(found.terminated.get("finishedAt"))


def is_ending(pod: Json) -> bool:
    """Return whether the pod's deadline has been set to end what the trainer left running."""
    deadline: int | None = pod.get("spec", {}).get("activeDeadlineSeconds")
    return deadline == ENDING_DEADLINE


def _is_repeated(job: Json, exit_code: int) -> bool:
    """Return whether the Job makes another pod once this one has ended, given the trainer's exit code."""
    if exit_code == 0:
        return False
    for rule in job.get("spec", {}).get("podFailurePolicy", {}).get("rules", []):
        codes = rule.get("onExitCodes", {})
        if codes.get("containerName") == names.TRAINER_CONTAINER and exit_code not in codes["values"]:
            return False
    failed: int = job.get("status", {}).get("failed", 0)
    limit: int = job.get("spec", {}).get("backoffLimit", 0)
    return failed < limit


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
    conditions: Sequence[Json] = item.get("status", {}).get("conditions", ())
    for condition in conditions:
        if condition["type"] in types and condition["status"] == status:
            return condition
    return None


def created(item: Json) -> datetime | None:
    """Return when an object was created."""
    return parse_time(item["metadata"].get("creationTimestamp"))


def created_text(item: Json) -> str:
    """Return when an object was created, for sorting."""
    return str(item["metadata"].get("creationTimestamp"))


def last_progress(item: Json) -> datetime | None:
    """Return when a pod completed its last step: it may wait an hour for a GPU, then pull its image.

    A Job without a pod has only been created.
    """
    steps = ("PodScheduled", "PodReadyToStartContainers", "Initialized")
    times = (parse_time(found.get("lastTransitionTime")) for s in steps if (found := pod_condition(item, s)))
    return max((time for time in times if time), default=created(item))


def containers(pod: Json) -> Iterator[Container]:
    """Yield the containers that have a status, init containers first."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    for kind, init in (("initContainers", True), ("containers", False)):
        found_statuses = status.get("initContainerStatuses" if init else "containerStatuses")
        defined = {container["name"]: container for container in spec.get(kind, [])} if found_statuses else {}
        for found in found_statuses or ():
            own = defined.get(found["name"], {})
            image = own.get("image", found.get("image", ""))
            restarts = init and own.get("restartPolicy") == "Always"
            limits = own.get("resources", {}).get("limits") or {}
            yield Container(found["name"], image, init, restarts, limits, found)


def trainer(pod: Json) -> Container | None:
    """Return the container `trainer`, if it has a status."""
    return next((c for c in containers(pod) if c.name == names.TRAINER_CONTAINER), None)


def pod_failure(pod: Json) -> str | None:
    """Return how the kubelet explains that it rejected or lost a pod; None if its trainer ended by itself."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    own = trainer(pod)
    ended = own.terminated if own else {}
    reason, message = status.get("reason"), status.get("message", "")
    if reason is None and ended.get("reason") in START_ERRORS:
        message = ended.get("message", "")
        found = advise(CONTAINERS, message, "")
        reason = ended["reason"] if found and found.category == "Node" else None
    if ended.get("reason") in LOST_CONTAINER:
        reason, message = ended["reason"], ended.get("message") or "the node was probably restarted"
    elif reason == "DeadlineExceeded" or (ended and reason == "Evicted"):
        return None
    node = f" on node {pod['spec']['nodeName']}" if pod.get("spec", {}).get("nodeName") else ""
    return f"{reason}{node}: {message}" if reason else None


def logs_command(evidence: Evidence, container: str, pod: Json | None = None) -> str:
    """Return the command that shows a container's logs: of a pod, or of the Job's."""
    some = pod or evidence.pod
    spec = some.get("spec", {}) if some else {}
    of = f"{pod['metadata']['name']}" if pod else f"job/{evidence.job['metadata']['name']}"
    several = len([*spec.get("initContainers", []), *spec.get("containers", [])]) > 1
    return f"`kubectl logs {of}{f' -c {container}' if several else ''}`"


def last_event(evidence: Evidence, *reasons: str) -> Json | None:
    """Return the newest of the Events with these reasons."""
    found = [event for event in evidence.events if event.get("reason") in reasons]
    return max(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime")), default=None)


def began(event: Json) -> datetime | None:
    """Return when what an Event reports happened first."""
    return parse_time(event.get("firstTimestamp") or event.get("eventTime"))


def start_advice(container: Container, message: str, evidence: Evidence) -> Advice:
    """Return how to fix a container that can't be created or started, by the container runtime's message."""
    template, text = evidence.fields.template, message.replace('\\"', '"')
    if found := re.search(NO_PROGRAM, text):
        if container.name == names.TRAINER_CONTAINER:
            return Advice(NO_PROGRAM, PYTHON)
        program = found["name"] or found["other"]
        return Advice(
            NO_PROGRAM, f"The image has no {program}: correct the container's command or image in {template}."
        )
    default = Advice("", f"Check the container's command, image and volumes in {template}.")
    return advise(CONTAINERS, text, template) or default


def eviction_remedy(evidence: Evidence, message: str) -> str:
    """Return how to avoid evictions: for going over a limit of its own, or for lack of room on the node."""
    template = evidence.fields.template
    if found := re.search(r'EmptyDir volume "([^"]+)" exceeds the limit', message):
        return f"Raise sizeLimit of the emptyDir volume {found[1]} in {template}, or write less to it."
    if re.search(r"local (?:ephemeral )?storage (?:usage )?exceed|exceeded its local ephemeral", message):
        return f"Raise resources.limits.ephemeral-storage in {template}, or write to a volume instead."
    return (
        f"Request as much memory and ephemeral storage as the {evidence.noun} needs "
        f"(resources.requests in {template})."
    )
