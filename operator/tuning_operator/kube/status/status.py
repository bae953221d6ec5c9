"""A study's status: phase, conditions, counts, best trial."""

import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.verdict import ENDED, Verdict, finished
from tuning_operator.kube.status.conditions import Finding, Type, apply, find, holds, rfc3339, shorten, told
from tuning_operator.kube.status.refit_status import refit_status
from tuning_operator.protocol import Failure, Problem, RefitRequest, StudySummary, TrialRecord
from tuning_operator.resource.study import BestTrial, Scalar, TrialCounts, TuningStudy, TuningStudyStatus

CAPACITY_GRACE = timedelta(seconds=30)
"""A pod that waits for another's GPU is no news before this: the scheduler needs two seconds to free one."""

ELSEWHERE = frozenset({"Capacity"})
"""Troubles that are plain queueing while other trials of the study run."""


def new_status(
    study: TuningStudy,
    seen: Observation,
    verdict: Verdict | None,
    refit: RefitRequest | None,
    passed: Callable[[datetime], bool],
    now: datetime,
) -> TuningStudyStatus:
    """Return the status that tells what is seen and judged; `refit` is the one that is due."""
    summary, old = seen.summary, study.status
    phase = _phase(study, seen, verdict)
    generation = study.metadata.get("generation", 1)
    findings = _findings(study, seen, verdict, passed)
    done = finished(summary) if summary else 0
    return TuningStudyStatus(
        phase=phase,
        conditions=apply(old.conditions, findings, generation, now),
        observed_generation=generation,
        start_time=_start_time(old, phase, now),
        completion_time=(old.completion_time or rfc3339(now)) if phase in ENDED else None,
        progress=f"{done}/{study.spec.max_trials}",
        trials=_counts(study, summary) if summary else old.trials,
        best=_best(summary.best) if summary else old.best,
        pareto_front=[best for trial in summary.pareto_front if (best := _best(trial))] or None
        if summary
        else old.pareto_front,
        refit=refit_status(study, seen, refit, verdict),
    )


def with_trouble(
    status: TuningStudyStatus, generation: int, trouble: Failure, now: datetime, of_refit: bool = False
) -> TuningStudyStatus:
    """Return the status with the condition Stalled; the refit's own trouble is told with the refit, too."""
    finding = Finding("Stalled", True, trouble.category, told(trouble))
    conditions = apply(status.conditions, [finding], generation, now)
    refit = status.refit
    if refit and of_refit:
        refit = refit.model_copy(update={"message": shorten(told(trouble))})
    return status.model_copy(
        update={"conditions": conditions, "phase": status.phase or "Pending", "refit": refit}
    )


def refused(
    status: TuningStudyStatus, generation: int, problems: tuple[Problem, ...], now: datetime
) -> TuningStudyStatus:
    """Return the status of a study whose spec could not even be read."""
    conditions = apply(status.conditions, [_accepted(problems)], generation, now)
    update = {"conditions": conditions, "phase": status.phase or "Pending", "observed_generation": generation}
    return status.model_copy(update=update)


def accepted(study: TuningStudy) -> bool:
    """Tell whether the study server has taken this generation of the spec."""
    condition = find(study.status.conditions, "Accepted")
    generation = study.metadata.get("generation", 1)
    return (
        holds(study.status, "Accepted")
        and condition is not None
        and condition.observed_generation == generation
    )


def _phase(study: TuningStudy, seen: Observation, verdict: Verdict | None) -> str:
    if verdict:
        return verdict.phase
    if study.spec.suspend:
        return "Suspended"
    return "Pending" if seen.problems else "Running"


def _start_time(old: TuningStudyStatus, phase: str, now: datetime) -> str | None:
    """A study that resumes starts anew, as a Job does."""
    resumes = old.phase in (*ENDED, "Suspended")
    if phase == "Running" and (resumes or old.start_time is None):
        return rfc3339(now)
    return old.start_time


def _findings(
    study: TuningStudy, seen: Observation, verdict: Verdict | None, passed: Callable[[datetime], bool]
) -> Iterator[Finding]:
    yield _accepted(seen.problems)
    yield _stalled(seen, passed)
    old = study.status
    if study.spec.suspend and not verdict:
        yield Finding("Suspended", True, "Suspended", "No new trials are started; running ones finish.")
    elif find(old.conditions, "Suspended"):
        yield Finding("Suspended", False, "NotSuspended", "The study is not suspended.")
    outcomes: tuple[tuple[Type, str], ...] = (("Complete", "Completed"), ("Failed", "Failed"))
    for type_, phase in outcomes:
        if verdict and verdict.phase == phase:
            yield Finding(type_, True, verdict.reason, verdict.message)
        elif find(old.conditions, type_):
            yield Finding(type_, False, "Resumed", "The study goes on.")


def _accepted(problems: tuple[Problem, ...]) -> Finding:
    if not problems:
        return Finding("Accepted", True, "Valid", "The study can run as it is written.")
    message = "; ".join(f"{_path(problem.field)}: {problem.message}" for problem in problems)
    return Finding("Accepted", False, "Invalid", message)


def _path(field: str) -> str:
    return field if field.startswith("metadata.") else f"spec.{field}"


def _stalled(seen: Observation, passed: Callable[[datetime], bool]) -> Finding:
    running = {trial.number for trial in seen.summary.running} if seen.summary else set()
    mine = [run for run in seen.runs.values() if run.trial in running]
    troubled = sorted((run for run in mine if _is_news(run, mine, passed)), key=lambda run: run.trial)
    if not troubled:
        return _stalled_refit(seen, passed)
    first = troubled[0]
    alike = sum(1 for run in troubled if _category(run) == _category(first))
    who = f"Trial {first.trial}" + (f" (and {alike - 1} more)" if alike > 1 else "")
    return Finding("Stalled", True, _category(first), f"{who} cannot start: {_told(first)}")


def _stalled_refit(seen: Observation, passed: Callable[[datetime], bool]) -> Finding:
    record, run = seen.summary.refit if seen.summary else None, seen.refit
    if record and record.state == "RUNNING" and run and _is_news(run, [], passed):
        return Finding("Stalled", True, _category(run), f"The refit cannot start: {_told(run)}")
    return Finding("Stalled", False, "Progressing", "Nothing stands in the way of the trials.")


def _is_news(run: Run, others: list[Run], passed: Callable[[datetime], bool]) -> bool:
    if run.trouble is None or run.state not in ("starting", "foreign"):
        return False
    if run.trouble.failure.category not in ELSEWHERE:
        return True
    if any(other.state == "running" for other in others):
        return False
    return run.trouble.since is None or passed(run.trouble.since + CAPACITY_GRACE)


def _category(run: Run) -> str:
    return run.trouble.failure.category if run.trouble else ""


def _told(run: Run) -> str:
    return told(run.trouble.failure) if run.trouble else ""


def _counts(study: TuningStudy, summary: StudySummary) -> TrialCounts:
    counts = summary.counts
    return TrialCounts(
        total=counts.running + finished(summary),
        running=counts.running,
        complete=counts.complete,
        pruned=counts.pruned,
        failed=counts.fail,
        copied=counts.copied if study.spec.warm_start else None,
    )


def _best(trial: TrialRecord | None) -> BestTrial | None:
    """JSON has no infinity, and a trial whose value is infinite is no help to anyone."""
    if trial is None or not trial.values or not all(math.isfinite(value) for value in trial.values):
        return None
    parameters = {name: _scalar(value) for name, value in trial.parameters.items()}
    return BestTrial(number=trial.number, values=trial.values, parameters=parameters)


def _scalar(value: Any) -> Scalar:
    """A define-by-run objective may choose None or a list; the status has those as JSON text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
