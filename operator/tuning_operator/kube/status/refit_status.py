"""The refit in the study's status."""

import json
import math
from typing import Any

from tuning_trainer.wire.codec import WARNING

from tuning_operator.kube.plan.actions import Plan
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.refit import at_its_end, is_new
from tuning_operator.kube.plan.verdict import Verdict, start_over
from tuning_operator.kube.plan.work import Refit
from tuning_operator.kube.status.conditions import MESSAGE_LIMIT
from tuning_operator.protocol import RefitRecord, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import RefitStatus, TuningStudy
from tuning_operator.resource.text import sentence, shorten

ATTRIBUTES = 20
ATTRIBUTE_LIMIT = 500
"""Characters of JSON: a training history does not belong in a status."""

MORE_TRIALS = {
    "MaxTrialsReached": "For more trials, raise maxTrials.",
    "TimeoutReached": "For more trials, raise the study's timeout.",
    "SearchSpaceExhausted": "To try again, {start_over}.",
}
"""How a study that completed for a reason gets more trials."""


def refit_status(study: TuningStudy, seen: Observation, plan: Plan) -> RefitStatus | None:
    """Return the state of the refit; None where there is none yet."""
    if seen.summary is None:
        return study.status.refit
    record, job = seen.summary.refit, names.job_name(study.metadata["name"], names.REFIT)
    if plan.refit and is_new(plan.refit, record):
        return RefitStatus(
            phase="Pending", job=job, trial=plan.refit.trial, message=_why_not_yet(study, seen)
        )
    if record:
        return _of_record(record, seen.runs.get(Refit(record.trial, record.digest)), job)
    if at_its_end(study, seen.summary, plan.verdict):
        return RefitStatus(phase="Failed", job=job, message=_without_best(study, seen.summary, plan.verdict))
    return None


def _without_best(study: TuningStudy, summary: StudySummary, verdict: Verdict | None) -> str:
    why = "No trial satisfies its constraints" if summary.counts.complete else "No trial completed"
    message = f"{why}, so there are no best parameters to train with."
    remedy = MORE_TRIALS.get(verdict.reason) if verdict else None
    return f"{message} {remedy.format(start_over=start_over(study))}" if remedy else message


def _why_not_yet(study: TuningStudy, seen: Observation) -> str | None:
    if study.spec.suspend:
        return "It starts when the study is resumed (spec.suspend: false)."
    if seen.problems:
        return "It starts when the spec is valid: see the condition Accepted."
    return "It starts when the previous refit has ended." if seen.refit_run else None


def _of_record(record: RefitRecord, run: Run | None, job: str) -> RefitStatus:
    fields = dict(job=job, trial=record.trial, **_attributes(record.user_attrs))
    if record.state == "COMPLETE":
        finite = record.values and all(map(math.isfinite, record.values))
        values, warning = record.values if finite else None, record.user_attrs.get(WARNING)
        return RefitStatus(phase="Completed", values=values, message=warning, **fields)
    if record.state == "FAIL":
        why = record.failure.describe() if record.failure else f"See `kubectl logs job/{job}`."
        retry = "To retry, change spec.refit (for example, raise retries)."
        message = shorten(f"{sentence(why)} {retry}", MESSAGE_LIMIT)
        return RefitStatus(phase="Failed", message=message, **fields)
    phase = "Running" if run and run.state == "running" else "Pending"
    return RefitStatus(phase=phase, message=_obstacle(record, run), **fields)


def _obstacle(record: RefitRecord, run: Run | None) -> str | None:
    if run and run.diagnosis and run.state == "starting":
        return run.diagnosis.failure.describe()
    return f"Attempt failed, retrying: {record.failure.describe()}" if record.failure else None


def _attributes(found: dict[str, Any]) -> dict[str, Any]:
    others = {key: _plain(value) for key, value in found.items() if key not in ("model", WARNING)}
    kept = dict(list(others.items())[:ATTRIBUTES])
    model = found.get("model")
    text = model if isinstance(model, str) else json.dumps(model)
    return {"model": None if model is None else shorten(text, MESSAGE_LIMIT), "attributes": kept or None}


def _plain(value: Any) -> Any:
    """Kubernetes' JSON has no infinity and drops null; what is long is cut, as text."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return shorten(str(value), ATTRIBUTE_LIMIT)
    return value if value is not None and len(text) <= ATTRIBUTE_LIMIT else shorten(text, ATTRIBUTE_LIMIT)
