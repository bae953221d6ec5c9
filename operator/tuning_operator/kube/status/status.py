"""A study's status, computed from what was seen and decided: phase, conditions, counts, best trial, refit."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.plan.actions import Plan
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.usage import usage
from tuning_operator.kube.plan.verdict import ENDED, finished, resumes
from tuning_operator.kube.plan.work import Refit, Trial, Work
from tuning_operator.kube.status.conditions import (
    CONTINUED,
    IGNORED,
    MESSAGE_LIMIT,
    YIELDING,
    Finding,
    Type,
    apply,
    find,
    last_transition,
)
from tuning_operator.kube.status.refit_status import refit_status
from tuning_operator.protocol import Failure, Problem, StudySummary, TrialRecord
from tuning_operator.resource.study import (
    BestTrial,
    Condition,
    Scalar,
    TrialCounts,
    TuningStudy,
    TuningStudyStatus,
)
from tuning_operator.resource.text import count, shorten
from tuning_operator.resource.times import parse_time, rfc3339

CONTESTED_FOR = timedelta(hours=1)
FRONT_BYTES = 256 * 1024
"""Bytes of the Pareto front in the status: etcd stores no object of more than 1.5 MiB."""


def new_status(study: TuningStudy, seen: Observation, plan: Plan, now: datetime) -> TuningStudyStatus:
    """Return the status that shows what was seen and decided."""
    summary, old = seen.summary, study.status
    phase = _phase(study, seen, plan)
    generation = study.metadata["generation"]
    done = finished(summary) if summary else 0
    conditions = apply(_lasting(old.conditions, now), _findings(study, seen, plan), generation, now)
    best = _best(summary.best) if summary else old.best
    front = old.pareto_front
    if summary:
        front = _front(study, summary.pareto_front) or None
    return TuningStudyStatus(
        phase=phase,
        conditions=conditions,
        last_transition_time=last_transition(conditions),
        observed_generation=generation,
        start_time=_start_time(old, phase, now),
        completion_time=(old.completion_time or rfc3339(now)) if phase in ENDED else None,
        progress=f"{done}/{study.spec.max_trials}",
        trials=_counts(study, summary, seen) if summary else old.trials,
        best=best,
        best_value=_best_value(best, front, summary.front_size) if summary else old.best_value,
        pareto_front=front,
        parallelism=plan.parallelism,
        usage=usage(study, summary) if summary else old.usage,
        refit=refit_status(study, seen, plan),
        installation=old.installation,
    )


def with_failure(
    status: TuningStudyStatus, generation: int, failure: Failure, now: datetime, work: Work | None = None
) -> TuningStudyStatus:
    """Return the status with the condition Stalled; a failure of the refit is shown with the refit, too."""
    message = failure.describe()
    finding = Finding("Stalled", True, failure.category, message)
    refit = status.refit
    if refit and isinstance(work, Refit):
        refit = refit.model_copy(update={"message": shorten(message, MESSAGE_LIMIT)})
    conditions = apply(status.conditions, [finding], generation, now)
    update = {
        "conditions": conditions,
        "last_transition_time": last_transition(conditions),
        "phase": status.phase or "Pending",
        "refit": refit,
    }
    return status.model_copy(update=update)


def with_ignored(status: TuningStudyStatus, fields: Sequence[str], now: datetime) -> TuningStudyStatus:
    """Return the status of a study with these fields in its spec, which the operator doesn't know."""
    accepted = find(status.conditions, "Accepted")
    if not fields or accepted is None or accepted.status == "False":
        return status
    message = (
        f"This operator is older than the CRD and ignores what it does not know: "
        f"{', '.join(f'spec.{field}' for field in fields)}. Upgrade the operator."
    )
    finding = Finding("Accepted", True, IGNORED, message)
    generation = accepted.observed_generation or 0
    return status.model_copy(update={"conditions": apply(status.conditions, [finding], generation, now)})


def contested(
    status: TuningStudyStatus, metadata: Mapping[str, Any], owner: str, other: str, now: datetime
) -> TuningStudyStatus:
    """Return the status of a study that one installation serves and another one watches, too."""
    hand_over = json.dumps({"spec": {"installation": other}})
    message = (
        f"The installation {other} watches this namespace, too. It leaves this study to the installation "
        f"{owner}. Let only one of them watch the namespace (watchNamespaces of the chart). If {owner} no "
        f"longer exists, hand the study over with `kubectl patch tuningstudy {metadata['name']} --type=merge "
        f"-p '{hand_over}'`. It then continues from the database of {other}."
    )
    finding = Finding("Contested", True, "ServedByAnother", message)
    conditions = apply(status.conditions, [finding], metadata["generation"], now)
    update = {
        "conditions": conditions,
        "last_transition_time": last_transition(conditions),
        "phase": status.phase or "Pending",
    }
    return status.model_copy(update=update)


def _lasting(conditions: Sequence[Condition], now: datetime) -> list[Condition]:
    """Drop Contested after a while: while it is true, the other installation sets it again."""
    return [c for c in conditions if c.type != "Contested" or _age(c, now) < CONTESTED_FOR]


def _age(condition: Condition, now: datetime) -> timedelta:
    return now - (parse_time(condition.last_transition_time) or now)


def refused(
    status: TuningStudyStatus, generation: int, problems: tuple[Problem, ...], now: datetime
) -> TuningStudyStatus:
    """Return the status of a study whose spec could not even be read."""
    conditions = apply(status.conditions, [_accepted(problems, None)], generation, now)
    update = {
        "conditions": conditions,
        "last_transition_time": last_transition(conditions),
        "phase": status.phase or "Pending",
        "observed_generation": generation,
    }
    return status.model_copy(update=update)


def accepted(study: TuningStudy) -> bool:
    """Return whether the study server has accepted this generation of the spec."""
    condition, generation = find(study.status.conditions, "Accepted"), study.metadata["generation"]
    return (
        condition is not None and condition.status == "True" and condition.observed_generation == generation
    )


def _phase(study: TuningStudy, seen: Observation, plan: Plan) -> str:
    if plan.verdict:
        return plan.verdict.phase
    if study.spec.suspend:
        return "Suspended"
    wanted = seen.unfinished
    nothing_starts = wanted and wanted <= set(plan.blocked) and not (seen.summary and finished(seen.summary))
    return "Pending" if seen.problems or nothing_starts else "Running"


def _start_time(old: TuningStudyStatus, phase: str, now: datetime) -> str | None:
    """A study that resumes gets a new start time, as a Job does."""
    begins = resumes(old.phase, phase) if old.start_time else phase == "Running"
    return rfc3339(now) if begins else old.start_time


def _findings(study: TuningStudy, seen: Observation, plan: Plan) -> Iterator[Finding]:
    yield _accepted(seen.problems, seen.summary)
    yield _stalled(study, seen, plan)
    old, verdict = study.status, plan.verdict
    if study.spec.suspend and not verdict:
        yield Finding("Suspended", True, "Suspended", "No new trials are started; running trials finish.")
    elif find(old.conditions, "Suspended"):
        yield Finding("Suspended", False, "NotSuspended", "The study is not suspended.")
    outcomes: tuple[tuple[Type, str], ...] = (("Complete", "Completed"), ("Failed", "Failed"))
    for type_, phase in outcomes:
        if verdict and verdict.phase == phase:
            yield Finding(type_, True, verdict.reason, verdict.message)
        elif find(old.conditions, type_):
            yield Finding(type_, False, "Resumed", "The study was resumed.")


def _accepted(problems: tuple[Problem, ...], summary: StudySummary | None) -> Finding:
    if not problems and summary and summary.continued:
        message = (
            "The spec is valid. The study continues the record of an earlier TuningStudy of this name, whose "
            f"{count(summary.continued, 'trial')} count towards maxTrials and maxFailedTrials. To start from "
            "scratch instead, delete this TuningStudy and apply it again with existingRecord: Replace, which "
            "deletes the record, or under another name."
        )
        return Finding("Accepted", True, CONTINUED, message)
    if not problems:
        return Finding("Accepted", True, "Valid", "The spec is valid.")
    paths = (p.field if p.field.startswith("metadata.") else f"spec.{p.field}" for p in problems)
    message = "; ".join(f"{path}: {p.message}" for path, p in zip(paths, problems, strict=True))
    return Finding("Accepted", False, "Invalid", message)


def _stalled(study: TuningStudy, seen: Observation, plan: Plan) -> Finding:
    if seen.problems:
        message = "No trial is started until the spec is valid: see the condition Accepted."
        return Finding("Stalled", False, "NotAccepted", message)
    if found := _first(seen, plan.blocked):
        who, failure = found
        return Finding("Stalled", True, failure.category, f"{who} cannot start: {failure.describe()}")
    if found := _first(seen, plan.queued):
        who, failure = found
        message = f"No trial is blocked. {who} waits while others run: {failure.describe()}"
        return Finding("Stalled", False, failure.category, message)
    if seen.limit is not None and not plan.verdict and not study.spec.suspend:
        message = (
            f"No trial is blocked. At most {count(seen.limit, 'trial')} of this study may run at present: "
            "the operator limits the number of trials in a namespace, and shares it among the studies there."
        )
        return Finding("Stalled", False, "NamespaceLimit", message)
    if seen.others_wait and plan.parallelism is not None:
        namespace, _, pod = seen.others_wait.partition("/")
        own = namespace == study.metadata["namespace"]  # tenants must not see each other's names
        who = f"The pod {pod}" if own else "A pod of another namespace"
        message = (
            f"No trial is blocked. {who} waits for GPUs, so trials start only while fewer "
            f"than {study.spec.min_parallelism} run (minParallelism)."
        )
        return Finding("Stalled", False, YIELDING, message)
    return _incomplete(seen) or Finding("Stalled", False, "Progressing", "No trial is blocked.")


def _first(seen: Observation, works: Sequence[Work]) -> tuple[str, Failure] | None:
    """Return the first of this work, with the number of others for the same reason, and the reason."""
    failures = [(work, run.diagnosis.failure) for work in works if (run := seen.runs[work]).diagnosis]
    if not failures:
        return None
    first, failure = failures[0]
    if not isinstance(first, Trial):
        return "The refit", failure
    others = sum(isinstance(w, Trial) and f.category == failure.category for w, f in failures[1:])
    return f"Trial {first.number}" + (f" (and {others} more)" if others else ""), failure


def _incomplete(seen: Observation) -> Finding | None:
    """A trial may run though another container of its pod does not."""
    for work, run in seen.runs.items():
        if run.state == "running" and run.diagnosis:
            message = f"No trial is blocked, but in {work}, {run.diagnosis.failure.describe()}"
            return Finding("Stalled", False, run.diagnosis.failure.category, message)
    return None


def _counts(study: TuningStudy, summary: StudySummary, seen: Observation) -> TrialCounts:
    counts = summary.counts
    runs = (seen.runs.get(Trial.numbered(trial.number)) for trial in summary.running)
    running = sum(run is not None and run.state != "starting" for run in runs)
    return TrialCounts(
        total=counts.running + finished(summary),
        pending=counts.running - running,
        running=running,
        complete=counts.complete,
        pruned=counts.pruned,
        failed=counts.fail,
        copied=counts.copied if study.spec.warm_start else None,
    )


def _best(trial: TrialRecord | None) -> BestTrial | None:
    """JSON has no infinity, and nobody needs the parameters of a trial whose value is infinite."""
    if trial is None or not trial.values or not all(math.isfinite(value) for value in trial.values):
        return None
    parameters = {name: _scalar(value) for name, value in trial.parameters.items()}
    return BestTrial(number=trial.number, values=trial.values, parameters=parameters)


def _front(study: TuningStudy, trials: Sequence[TrialRecord]) -> list[BestTrial]:
    """Return the trials of the Pareto front that fit into the status, the best in each objective first."""
    found = [best for trial in trials if (best := _best(trial))]
    left, fitting = FRONT_BYTES, set[int]()
    for trial in [*_bests(study, found), *found]:
        if trial.number not in fitting:
            left -= len(trial.model_dump_json())
            if left < 0:
                break
            fitting.add(trial.number)
    return [trial for trial in found if trial.number in fitting]


def _bests(study: TuningStudy, front: Sequence[BestTrial]) -> Iterator[BestTrial]:
    for place, objective in enumerate(study.spec.objectives if front else ()):
        sign = -1 if objective.direction == "maximize" else 1
        _, _, best = min((sign * trial.values[place], trial.number, trial) for trial in front)
        yield best


def _best_value(
    best: BestTrial | None, front: Sequence[BestTrial] | None, front_size: int | None
) -> str | None:
    """Return what `kubectl get` shows: a rounded value, or the size of the Pareto front."""
    if front:
        return f"front of {front_size or len(front)}"
    return f"{best.values[0]:.6g}" if best else None


def _scalar(value: Any) -> Scalar:
    """A define-by-run objective may choose None or a list; the status has those as JSON text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
