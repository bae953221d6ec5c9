"""The refit in the study's status."""

import json
import math
from typing import Any

from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.refit import at_its_end, is_new
from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.status.conditions import as_sentence, shorten, told
from tuning_operator.protocol import RefitRecord, RefitRequest
from tuning_operator.resource import names
from tuning_operator.resource.study import RefitStatus, TuningStudy

ATTRIBUTES = 20
ATTRIBUTE_LIMIT = 500
"""Characters of JSON: a status is no place for a training history."""

NO_BEST = (
    "No trial is complete, so there are no best parameters to train with. Raise maxTrials for more trials."
)


def refit_status(
    study: TuningStudy, seen: Observation, wanted: RefitRequest | None, verdict: Verdict | None
) -> RefitStatus | None:
    """Return how the refit stands; None where there is none yet. `wanted` is what `refit.due` says."""
    if seen.summary is None:
        return study.status.refit
    record, job = seen.summary.refit, names.job_name(study.metadata["name"], names.REFIT)
    if wanted and is_new(wanted, record):
        return RefitStatus(phase="Pending", job=job, trial=wanted.trial, message=_why_not_yet(study, seen))
    if record:
        return _of_record(record, seen.refit, job)
    if at_its_end(study, seen.summary, verdict):
        return RefitStatus(phase="Failed", job=job, message=NO_BEST)
    return None


def _why_not_yet(study: TuningStudy, seen: Observation) -> str | None:
    if study.spec.suspend:
        return "It begins when the study is resumed (spec.suspend: false)."
    if seen.problems:
        return "It begins when the spec is mended: see the condition Accepted."
    return "It begins when the pods of the refit before it have ended." if seen.refit else None


def _of_record(record: RefitRecord, run: Run | None, job: str) -> RefitStatus:
    fields = dict(job=job, trial=record.trial, **_attributes(record.user_attrs))
    if record.state == "COMPLETE":
        finite = record.values and all(map(math.isfinite, record.values))
        return RefitStatus(phase="Completed", values=record.values if finite else None, **fields)
    if record.state == "FAIL":
        why = told(record.failure) if record.failure else f"kubectl logs job/{job} may tell why."
        message = shorten(f"{as_sentence(why)} It is tried anew when spec.refit changes: raise retries, say.")
        return RefitStatus(phase="Failed", message=message, **fields)
    runs = run is not None and run.state == "running" and run.digest == record.digest
    return RefitStatus(phase="Running" if runs else "Pending", message=_obstacle(record, run), **fields)


def _obstacle(record: RefitRecord, run: Run | None) -> str | None:
    if run and run.trouble and run.state in ("starting", "foreign"):
        return told(run.trouble.failure)
    return f"A try failed, and there is another: {told(record.failure)}" if record.failure else None


def _attributes(found: dict[str, Any]) -> dict[str, Any]:
    others = {key: _plain(value) for key, value in found.items() if key != "model"}
    kept = dict(list(others.items())[:ATTRIBUTES])
    model = found.get("model")
    return {
        "model": None if model is None else shorten(model if isinstance(model, str) else json.dumps(model)),
        "attributes": kept or None,
    }


def _plain(value: Any) -> Any:
    """Kubernetes' JSON has no infinity and drops null; what is long is cut, as text."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return shorten(str(value), ATTRIBUTE_LIMIT)
    return value if value is not None and len(text) <= ATTRIBUTE_LIMIT else shorten(text, ATTRIBUTE_LIMIT)
