"""The state of a run, as its Job, pods and Events show it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from tuning_operator.kube.jobs.ended import undelivered_result, why_ended
from tuning_operator.kube.jobs.evidence import (
    Evidence,
    Json,
    exited_at,
    is_ending,
    job_state,
    last_progress,
    run_state,
)
from tuning_operator.kube.jobs.starting import why_incomplete, why_not_started
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import Program
from tuning_operator.resource import names
from tuning_operator.resource.times import parse_time

DIAGNOSIS_DELAY = timedelta(seconds=3)
"""A Job is not diagnosed before this age; nor are Events read of a pod that has just completed a step."""
LONGEST_DELAY = timedelta(minutes=1)
"""How long a run that is starting is not diagnosed again: Events about it are not watched."""


def run_of(body: Json, study_uid: str, current: Program | None, server_url: str) -> Run | None:
    """Return the run as its Job shows it; None if the Job is someone else's.

    Args:
        body: the Job.
        study_uid: the study's.
        current: what it would run if it were created now.
        server_url: the study server's.
    """
    ours = belongs_to(body, study_uid)
    if not ours and not is_of_a_study(body):
        return None
    annotations = body["metadata"].get("annotations", {})
    digest, server = annotations.get(names.ANNOTATION_PROGRAM), annotations.get(names.ANNOTATION_SERVER)
    other_program = digest is not None and current is not None and bool(digest != current.digest)
    return Run(
        job_state(body) if ours else "stopping",  # of a deleted study of this name
        outdated=other_program or server not in (None, server_url),
        stop_requested=names.ANNOTATION_STOP in annotations,
        trials_to_stop=_numbers(annotations.get(names.ANNOTATION_STOP, "")),
        trial_started=_trial_started(annotations),
    )


def with_evidence(run: Run, evidence: Evidence, now: datetime) -> Run:
    """Return the run with what its pods and Events show."""
    state = run_state(evidence)
    why = {"starting": why_not_started, "running": why_incomplete, "ended": why_ended}[state]
    diagnosis, check_at = why(evidence), None
    since = last_progress(evidence.pod or evidence.job)
    if state == "starting" and diagnosis is None and since:
        check_at = now + min(max(now - since, DIAGNOSIS_DELAY), LONGEST_DELAY)
    return replace(
        run,
        state=state,
        diagnosis=diagnosis,
        exited=None if evidence.pod and is_ending(evidence.pod) else exited_at(evidence),
        has_node=evidence.pod is not None and "nodeName" in evidence.pod["spec"],
        result=undelivered_result(evidence),
        check_at=check_at,
    )


def belongs_to(body: Json, study_uid: str) -> bool:
    """Return whether a Job is of the study with this uid."""
    return any(owner["uid"] == study_uid for owner in body["metadata"].get("ownerReferences", []))


def is_of_a_study(body: Json) -> bool:
    """Return whether a Job is of any study, also one that was deleted."""
    return any(owner["kind"] == names.KIND for owner in body["metadata"].get("ownerReferences", []))


def _numbers(text: str) -> frozenset[int]:
    """Return the numbers in the annotation that asks for the end of a worker's trials."""
    return frozenset(int(number) for number in text.split(",") if number.isascii() and number.isdecimal())


def _trial_started(annotations: Mapping[str, str]) -> datetime | None:
    with suppress(ValueError):  # a user may have changed it
        return parse_time(annotations.get(names.ANNOTATION_STARTED))
    return None
