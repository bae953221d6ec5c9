"""Why a Job ended without a result."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from pydantic import ValidationError

from tuning_operator.kube.jobs.advice import NODES, PROGRAMS, PYTHON, Advice, advise
from tuning_operator.kube.jobs.evidence import (
    START_ERRORS,
    Check,
    Container,
    Evidence,
    Json,
    containers,
    created_text,
    diagnosis,
    eviction_remedy,
    first,
    job_condition,
    logs_command,
    pod_failure,
    start_advice,
    trainer,
)
from tuning_operator.kube.jobs.lost import DELETED, restarts_of, why_lost
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.protocol import Failure, TellRequest
from tuning_operator.resource import names
from tuning_operator.resource.text import count
from tuning_operator.resource.times import parse_time

SIGNALS = {
    132: "SIGILL",
    134: "SIGABRT",
    135: "SIGBUS",
    136: "SIGFPE",
    137: "SIGKILL",
    139: "SIGSEGV",
    143: "SIGTERM",
}
"""Signals by the exit code of the process that they ended."""

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
            return TellRequest.model_validate_json(message or "", extra="ignore")
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
        failure = _read_failure(container.terminated.get("message") or "")
        if failure is None:
            continue
        if failure.remedy is None:
            failure = failure.model_copy(update={"remedy": _advice(failure.message, evidence)})
        return Diagnosis(failure)
    return None


def _read_failure(message: str) -> Failure | None:
    """Return the failure in a termination message; a pod with many containers has shortened ones."""
    try:
        return Failure.model_validate(json.loads(message), extra="ignore")
    except (ValueError, ValidationError):
        found = re.match(r'\{"category": ("\w+"), "message": ("(?:[^"\\]|\\.)*")', message)
    return Failure(category=json.loads(found[1]), message=json.loads(found[2])) if found else None


def _out_of_memory(evidence: Evidence) -> Diagnosis | None:
    killed = next((c for c in _failed(evidence) if c.terminated.get("reason") == "OOMKilled"), None)
    if killed is None:
        return None
    template, described = evidence.fields.template, killed.described
    if "memory" not in killed.limits:
        return diagnosis(
            "OutOfMemory",
            f"{described.capitalize()} has no memory limit of its own, and was killed since its node or pod "
            "ran out of memory.",
            f"Set resources.requests.memory and resources.limits.memory of {described} in {template} to what "
            "it needs.",
        )
    text = f"{described.capitalize()} used more memory than its limit and was killed."
    remedy = f"Raise resources.limits.memory of {described} in {template}"
    if killed.name == names.TRAINER_CONTAINER:
        remedy += f", or make the {evidence.noun} use less memory (for example, a smaller batch size)"
    return diagnosis("OutOfMemory", text, f"{remedy}.")


def _evicted(evidence: Evidence) -> Diagnosis | None:
    pod = evidence.pod
    if pod is None or pod.get("status", {}).get("reason") != "Evicted":
        return None
    message = pod["status"].get("message", "")
    text = f"The node evicted the {evidence.noun}'s pod: {message}"
    return diagnosis("Evicted", text, eviction_remedy(evidence, message))


def _deadline(evidence: Evidence) -> Diagnosis | None:
    """The deadline of a pod whose trainer had exited before was set to end the other containers."""
    pod_reason = (evidence.pod or {}).get("status", {}).get("reason")
    job_reason = (job_condition(evidence.job, "Failed") or {}).get("reason")
    if "DeadlineExceeded" not in (pod_reason, job_reason) or _exited_in_time(evidence):
        return None
    noun, timeout, own = evidence.noun, evidence.fields.timeout, evidence.trainer
    if evidence.pod and own and own.waiting:
        return _never_started(evidence, evidence.pod, own)
    return timed_out(noun, timeout)


def _never_started(evidence: Evidence, pod: Json, own: Container) -> Diagnosis:
    """The time before the trainer starts does not count towards the trial's timeout, but is limited, too."""
    init = next((c for c in containers(pod) if c.init and not c.succeeded), None)
    waited = f"{init.described} to end" if init else f"{own.described} to start"
    logs = f" See {logs_command(evidence, init.name)}." if init else ""
    return diagnosis(
        "NotStarted",
        f"The {evidence.noun}'s trainer never started: its pod reached its deadline (activeDeadlineSeconds) "
        f"while it waited for {waited}.",
        "Make sure that images can be pulled and that init containers end "
        f"({evidence.fields.template}).{logs}",
    )


def _exited_in_time(evidence: Evidence) -> bool:
    own, pod = evidence.trainer, evidence.pod
    start = parse_time(pod.get("status", {}).get("startTime")) if pod else None
    end = parse_time(own.terminated.get("finishedAt")) if own else None
    if start is None or end is None:
        return False
    deadline = evidence.template.get("spec", {}).get("activeDeadlineSeconds")
    return deadline is None or end < start + timedelta(seconds=deadline)


def _lost(evidence: Evidence) -> Diagnosis | None:
    """Starting it again did not help, or it would not have ended."""
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
        message = container.terminated.get("message", "")
        if container.name == names.TRAINER_CONTAINER and re.search(OLD_PYTHON, message):
            return diagnosis("StartError", f"The image's Python is too old: {message}", PYTHON)
        if container.terminated.get("reason") in START_ERRORS:
            text = f"{container.described.capitalize()} could not be started: {message}"
            return diagnosis("StartError", text, start_advice(container, message, evidence).remedy)
    return None


def _exit_code(evidence: Evidence) -> Diagnosis | None:
    for container in _failed(evidence):
        return exited(
            container.described.capitalize(),
            container.terminated["exitCode"],
            (container.terminated.get("message") or "").strip(),
            evidence.noun,
            PROGRAMS,
            evidence.fields.template,
            logs_command(evidence, container.name),
        )
    return None


def exited(
    subject: str, code: int, output: str, noun: str, table: Sequence[Advice], template: str, log: str
) -> Diagnosis:
    """Return why a program exited without a result, with advice by its signal and its last lines of output.

    Args:
        subject: what exited.
        code: the exit code; 128 + N for signal N.
        output: the last lines.
        noun: what it ran.
        table: advice about programs, where they run.
        template: the field of the manifest.
        log: how to see all of the output.
    """
    signal = f" ({SIGNALS[code]})" if code in SIGNALS else ""
    text = f"{subject} exited with code {code}{signal}"
    text += f": {output}" if output else f" before the {noun} had a result."
    found = advise(table, f"{signal} {output}", template)
    return diagnosis("ExitCode", text, f"{found.remedy} See {log}." if found else f"See {log}.")


def timed_out(noun: str, timeout: str) -> Diagnosis:
    """Return that a program ran for longer than this field of the manifest allows."""
    text = f"The {noun} ran longer than its timeout ({timeout}) and was stopped."
    return diagnosis("Timeout", text, f"Raise {timeout}, or make the {noun} faster.")


def without_result(subject: str, log: str = "") -> Diagnosis:
    """Return that a program exited as if all was well, but reported nothing."""
    text = f"{subject} exited without an error, but did not report a result."
    remedy = (
        "Make sure that the code runs to its end: os._exit ends the process before the result is reported."
    )
    return diagnosis("NoResult", text, f"{remedy} See {log}." if log else remedy)


def _advice(text: str, evidence: Evidence) -> str | None:
    """Return how to fix what the image and the pod template cause, by what programs print about it."""
    found = advise(PROGRAMS, text, evidence.fields.template)
    return found.remedy if found else None


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
    return without_result(f"The {evidence.noun}'s container")


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
    _evicted,
    _out_of_memory,
    _deadline,
    _lost,
    _cannot_run,
    _reported_by_trainer,
    _exit_code,
)

JOB_CHECKS: tuple[Check, ...] = (_failed_on_node, _no_result, _job_failed)
