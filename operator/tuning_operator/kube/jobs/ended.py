"""Why a Job ended without a result."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from pydantic import ValidationError

from tuning_operator.kube.jobs.evidence import (
    Check,
    Evidence,
    Json,
    containers,
    created_text,
    diagnosis,
    first,
    job_condition,
    request_more,
)
from tuning_operator.kube.plan.observation import Diagnosis
from tuning_operator.protocol import Failure
from tuning_operator.resource import names

SIGNALS = {134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
"""Signals by the exit code of the process that they ended."""


def why_ended(evidence: Evidence) -> Diagnosis:
    """Return why a Job ended without a result, if possible from its last pod."""
    last = replace(evidence, pods=[evidence.pod] if evidence.pod else [])
    found = first(POD_CHECKS, last) or first(POD_CHECKS, evidence) or first(JOB_CHECKS, evidence)
    return found or diagnosis("Lost", f"The {evidence.noun}'s Job ended and its pod was deleted.")


def _terminated(evidence: Evidence) -> Iterator[tuple[str, Json]]:
    """Yield the name and terminated state of the failed containers, the trainer first."""
    found = [
        (container.name, container.terminated)
        for pod in sorted(evidence.pods, key=created_text, reverse=True)
        for container in containers(pod)
        if container.terminated.get("exitCode")
    ]
    yield from sorted(found, key=lambda pair: pair[0] != names.TRAINER_CONTAINER)


def _reported_by_trainer(evidence: Evidence) -> Diagnosis | None:
    """The trainer also writes its failure to the termination message, in case the server is unreachable."""
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
    return diagnosis(
        "OutOfMemory",
        f"Container {killed} used more memory than its limit and was killed.",
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
    pod_reason = (evidence.pod or {}).get("status", {}).get("reason")
    job_reason = (job_condition(evidence.job, "Failed") or {}).get("reason")
    if "DeadlineExceeded" not in (pod_reason, job_reason):
        return None
    noun, timeout = evidence.noun, evidence.fields.timeout
    text = f"The {noun} ran longer than its timeout ({timeout}) and was stopped."
    return diagnosis("Timeout", text, f"Raise {timeout}, or make the {noun} faster.")


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
                "The image needs Python 3.9 or later: set spec.trial.python to its path (for example, "
                "/opt/conda/bin/python), or use an image that has python3."
            )
        return diagnosis("StartError", f"Container {name} could not be started: {message}", remedy)
    return None


def _exit_code(evidence: Evidence) -> Diagnosis | None:
    for name, state in _terminated(evidence):
        code, output = state["exitCode"], (state.get("message") or "").strip()
        exited = f"Container {name} exited with code {code}"
        if code in SIGNALS:
            exited += f" ({SIGNALS[code]})"
        text = f"{exited}: {output}" if output else f"{exited} before the {evidence.noun} had a result."
        return diagnosis("ExitCode", text, f"See `kubectl logs job/{evidence.job['metadata']['name']}`.")
    return None


def _no_result(evidence: Evidence) -> Diagnosis | None:
    if job_condition(evidence.job, "Complete") is None:
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
    why = f"({condition.get('reason')}): {condition.get('message', '')}"
    return diagnosis("JobFailed", f"The {evidence.noun}'s Job failed {why}")


POD_CHECKS: tuple[Check, ...] = (
    _out_of_memory,
    _evicted,
    _deadline,
    _cannot_run,
    _reported_by_trainer,
    _exit_code,
)

JOB_CHECKS: tuple[Check, ...] = (_no_result, _job_failed)
