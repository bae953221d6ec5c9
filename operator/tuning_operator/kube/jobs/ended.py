"""Why a Job ended without a result."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from pydantic import ValidationError

from tuning_operator.kube.jobs.evidence import (
    NODES,
    Check,
    Container,
    Evidence,
    containers,
    created_text,
    diagnosis,
    first,
    job_condition,
    logs_command,
    pod_failure,
    request_more,
    trainer,
)
from tuning_operator.kube.jobs.lost import DELETED, restarts_of, why_lost
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.protocol import Failure, TellRequest
from tuning_operator.resource import names
from tuning_operator.resource.text import count
from tuning_operator.resource.times import parse_time

SIGNALS = {134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
"""Signals by the exit code of the process that they ended."""

PYTHON = (
    "The image needs Python 3.9 or later: set spec.trial.python to its path (for example, "
    "/opt/conda/bin/python), or use an image that has python3."
)
DELETING = "Find out what deletes pods in this namespace, for example with `kubectl get events`."
OLD_PYTHON = r"future feature annotations is not defined"


def why_ended(evidence: Evidence) -> Diagnosis:
    """Return why a Job ended without a result, if possible from its last pod."""
    last = replace(evidence, pods=[evidence.pod] if evidence.pod else [])
    found = first(POD_CHECKS, last) or first(POD_CHECKS, evidence) or first(JOB_CHECKS, evidence)
    return found or diagnosis("Lost", f"The {evidence.noun}'s Job ended and its pod was deleted.")


def undelivered_result(evidence: Evidence) -> TellRequest | None:
    """Return the result that a pod left as its termination message, those of the newest pod first."""
    for pod in sorted(evidence.pods, key=created_text, reverse=True):
        message = own.terminated.get("message") if (own := trainer(pod)) else None
        with suppress(ValidationError):
            return TellRequest.model_validate_json(message or "")
    return None


def _failed(evidence: Evidence) -> Iterator[Container]:
    """Yield the containers that failed, those of the newest pod first.

    The trainer alone counts once it has ended: what fails beside it, or after it, does not matter.
    """
    for pod in sorted(evidence.pods, key=created_text, reverse=True):
        own = trainer(pod)
        for container in [own] if own and own.terminated else containers(pod):
            if container.terminated.get("exitCode"):
                yield container


def _reported_by_trainer(evidence: Evidence) -> Diagnosis | None:
    """The trainer also writes its failure to the termination message, in case the server is unreachable."""
    for container in _failed(evidence):
        try:
            failure = Failure.model_validate(json.loads(container.terminated.get("message") or "null"))
        except (ValueError, ValidationError):
            continue
        if failure.remedy is None:
            failure = failure.model_copy(update={"remedy": _advice(failure.message, evidence)})
        return Diagnosis(failure)
    return None


def _out_of_memory(evidence: Evidence) -> Diagnosis | None:
    killed = next((c for c in _failed(evidence) if c.terminated.get("reason") == "OOMKilled"), None)
    if killed is None:
        return None
    return diagnosis(
        "OutOfMemory",
        f"{killed.described.capitalize()} used more memory than its limit and was killed.",
        f"Raise resources.limits.memory in {evidence.fields.template}, or make the {evidence.noun} use less "
        "memory (for example, a smaller batch size).",
    )


def _evicted(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    if pod is None or pod.get("status", {}).get("reason") != "Evicted":
        return None
    text = f"The node evicted the {evidence.noun}'s pod: {pod['status'].get('message', '')}"
    return diagnosis("Evicted", text, request_more(evidence))


def _deadline(evidence: Evidence) -> Diagnosis | None:
    """The deadline of a pod whose trainer had exited before was set to end the other containers."""
    pod_reason = (evidence.pod or {}).get("status", {}).get("reason")
    job_reason = (job_condition(evidence.job, "Failed") or {}).get("reason")
    if "DeadlineExceeded" not in (pod_reason, job_reason) or _exited_in_time(evidence):
        return None
    noun, timeout = evidence.noun, evidence.fields.timeout
    text = f"The {noun} ran longer than its timeout ({timeout}) and was stopped."
    return diagnosis("Timeout", text, f"Raise {timeout}, or make the {noun} faster.")


def _exited_in_time(evidence: Evidence) -> bool:
    own, pod = evidence.trainer, evidence.pod
    start = parse_time(pod.get("status", {}).get("startTime")) if pod else None
    end = parse_time(own.terminated.get("finishedAt")) if own else None
    if start is None or end is None:
        return False
    template = evidence.job.get("spec", {}).get("template", {}).get("spec", {})
    deadline = template.get("activeDeadlineSeconds")
    return deadline is None or end < start + timedelta(seconds=deadline)


def _lost(evidence: Evidence) -> Diagnosis | None:
    """Starting it again was of no use, or it would not have ended."""
    text = why_lost(evidence)
    if text is None:
        return None
    times = count(restarts_of(evidence.job).count, "time")
    text = f"The {evidence.noun} was started again {times}; the last time, {text}"
    return (
        diagnosis("PodDeleted", text, DELETING)
        if text.endswith(DELETED)
        else diagnosis("PodFailed", text, NODES)
    )


def _cannot_run(evidence: Evidence) -> Diagnosis | None:
    for container in _failed(evidence):
        reason, message = container.terminated.get("reason"), container.terminated.get("message", "")
        own = container.name == names.TRAINER_CONTAINER
        if own and re.search(OLD_PYTHON, message):
            return diagnosis("StartError", f"The image's Python is too old: {message}", PYTHON)
        if reason not in ("StartError", "ContainerCannotRun", "RunContainerError"):
            continue
        remedy = f"Check the container's command and image in {evidence.fields.template}."
        if own and re.search(r"no such file|not found", message):
            remedy = PYTHON
        text = f"{container.described.capitalize()} could not be started: {message}"
        return diagnosis("StartError", text, remedy)
    return None


def _exit_code(evidence: Evidence) -> Diagnosis | None:
    for container in _failed(evidence):
        code = container.terminated["exitCode"]
        output = (container.terminated.get("message") or "").strip()
        signal = f" ({SIGNALS[code]})" if code in SIGNALS else ""
        exited = f"{container.described.capitalize()} exited with code {code}{signal}"
        text = f"{exited}: {output}" if output else f"{exited} before the {evidence.noun} had a result."
        logs = f"See {logs_command(evidence, container.name)}."
        advice = _advice(f"{signal} {output}", evidence)
        return diagnosis("ExitCode", text, f"{advice} {logs}" if advice else logs)
    return None


def _advice(text: str, evidence: Evidence) -> str | None:
    """Return how to fix what the image and the pod template cause, by what programs print about it."""
    template = evidence.fields.template
    if "SIGKILL" in text:  # the kubelet may miss that the kernel did this for lack of memory
        return f"It may have run out of memory: raise resources.limits.memory in {template}."
    if re.search(r"SIGBUS|[Bb]us error|insufficient shared memory|out of shared memory|/dev/shm", text):
        return (
            "Shared memory (/dev/shm) is probably full: it has 64 MiB unless an emptyDir volume with medium: "
            f"Memory is mounted at /dev/shm in {template}. PyTorch's data loaders use it if num_workers > 0."
        )
    if re.search(r"[Rr]ead-only file system", text):
        return (
            "The container's root file system is read-only (readOnlyRootFilesystem): write to a volume, for "
            f"example an emptyDir mounted at /tmp in {template}, or set readOnlyRootFilesystem to false."
        )
    return None


def _failed_on_node(evidence: Evidence) -> Diagnosis | None:
    """A node may reject a pod, or shut down, so that the trainer has no exit code."""
    failed = sorted((pod for pod in evidence.pods if pod_failure(pod)), key=created_text)
    if not failed:
        return None
    times = f"{len(failed)} times" if len(failed) > 1 else "once"
    text = f"The {evidence.noun}'s pod failed {times} before the trainer ran: {pod_failure(failed[-1])}"
    return diagnosis("PodFailed", text, NODES)


def _no_result(evidence: Evidence) -> Diagnosis | None:
    exited = evidence.trainer is not None and evidence.trainer.terminated.get("exitCode") == 0
    if not exited and job_condition(evidence.job, "Complete") is None:
        return None
    return diagnosis(
        "NoResult",
        f"The {evidence.noun}'s container exited without an error, but did not report a result.",
        "Make sure that the code runs to its end: os._exit ends the process before the result is reported.",
    )


def _job_failed(evidence: Evidence) -> Diagnosis | None:
    condition = job_condition(evidence.job, "Failed")
    if condition is None:
        return None
    failed = evidence.job.get("status", {}).get("failed", 0)
    if condition.get("reason") == "BackoffLimitExceeded" and not evidence.pods and failed > 1:
        text = f"{count(failed, 'pod')} of the {evidence.noun} were deleted before it had a result."
        return diagnosis("PodDeleted", text, DELETING)
    why = f"({condition.get('reason')}): {condition.get('message', '')}"
    return diagnosis("JobFailed", f"The {evidence.noun}'s Job failed {why}")


POD_CHECKS: tuple[Check, ...] = (
    _out_of_memory,
    _evicted,
    _deadline,
    _lost,
    _cannot_run,
    _reported_by_trainer,
    _exit_code,
)

JOB_CHECKS: tuple[Check, ...] = (_failed_on_node, _no_result, _job_failed)
