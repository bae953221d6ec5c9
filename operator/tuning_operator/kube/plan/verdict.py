"""When a study is over, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuning_trainer.failure import CAUGHT

from tuning_operator.protocol import StudySummary, TrialRecord
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import Objective, TuningStudy, TuningStudyStatus
from tuning_operator.resource.text import count, sentence
from tuning_operator.resource.times import parse_time

ENDED = ("Completed", "Failed")


@dataclass(frozen=True)
class Verdict:
    """The study is over: `phase` is Completed or Failed."""

    phase: str
    reason: str
    message: str


def judge(study: TuningStudy, summary: StudySummary, gpu_seconds: float, now: datetime) -> Verdict | None:
    """Return why the study is over; None while it is not.

    Judged from scratch each time, so that a study resumes as soon as the reason for its end is gone, for
    example when maxTrials is raised.

    Args:
        study: the study.
        summary: its record.
        gpu_seconds: the GPU time that its trials have used until now.
        now: the time.
    """
    found = next((verdict for rule in RULES if (verdict := rule(study, summary, now))), None)
    return found or _gpu_hours(study, gpu_seconds)


def finished(summary: StudySummary) -> int:
    """Return how many trials have ended, whatever their end."""
    return summary.counts.complete + summary.counts.pruned + summary.counts.fail


def start_over(study: TuningStudy) -> str:
    """Return what to do about a study whose sampler has nothing more to propose."""
    how = "delete the TuningStudy and apply it again with existingRecord: Replace"
    if study.metadata["namespace"] == names.LOCAL_NAMESPACE:
        how = f"delete the study (tuning rm {study.metadata['name']}) and run it again"
    return f"{how}, because the sampler has tried the whole search space"


def resumes(before: str | None, phase: str | None) -> bool:
    """Return whether a study that was suspended, or had ended, goes on, though it may have to wait."""
    return before in (*ENDED, "Suspended") and phase in ("Running", "Pending")


def is_over(status: TuningStudyStatus) -> bool:
    """Return whether nothing of a study waits for anything."""
    return status.phase in ENDED and (status.refit is None or status.refit.phase in ENDED)


def elapsed(status: TuningStudyStatus, now: datetime) -> timedelta:
    """Return how long the study has run since its start or last resumption; if it has ended, until then.

    Suspension resets the time, as it does for a Job.
    """
    start, end = parse_time(status.start_time), parse_time(status.completion_time)
    if start is None or status.phase == "Suspended":
        return timedelta()
    return (end if end and status.phase in ENDED else now) - start


def _too_many_failures(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    allowed, failed = study.spec.max_failed_trials, summary.counts.fail - summary.caught
    if failed <= allowed:
        return None
    message = f"{count(failed, 'trial')} failed, maxFailedTrials allows {allowed}."
    unexpected = [t for t in summary.recent_failures if t.failure is None or t.failure.category != CAUGHT]
    remedy = "Fix the cause, then raise maxFailedTrials to continue."
    return Verdict("Failed", "TooManyFailedTrials", _sentences(message, _failures(unexpected), remedy))


def _nothing_but_failures(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    over = finished(summary) >= study.spec.max_trials or _is_exhausted(summary)
    if not over or summary.counts.fail < finished(summary) or not finished(summary):
        return None
    failed = summary.counts.fail
    message = "The only trial failed." if failed == 1 else f"All {failed} trials failed."
    remedy = start_over(study) if _is_exhausted(summary) else "raise maxTrials to continue"
    remedy = f"Fix the cause, then {remedy}."
    return Verdict(
        "Failed", "AllTrialsFailed", _sentences(message, _failures(summary.recent_failures), remedy)
    )


def _target_reached(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    objectives = study.spec.objectives
    candidates = summary.pareto_front if len(objectives) > 1 else [summary.best]
    winner = next((trial for trial in candidates if trial and _reaches(objectives, trial)), None)
    if winner is None:
        return None
    goals = ", ".join(f"{o.metric} {v}" for o, v in zip(objectives, winner.values or [], strict=True))
    return Verdict("Completed", "TargetReached", f"Trial {winner.number} reached the target: {goals}.")


def _reaches(objectives: list[Objective], trial: TrialRecord) -> bool:
    goals = [
        (o, value) for o, value in zip(objectives, trial.values or [], strict=False) if o.target is not None
    ]
    return bool(goals) and all(
        value >= (o.target or 0) if o.direction == "maximize" else value <= (o.target or 0)
        for o, value in goals
    )


def _max_trials(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    if finished(summary) < study.spec.max_trials:
        return None
    counts = summary.counts
    return Verdict(
        "Completed",
        "MaxTrialsReached",
        f"{count(finished(summary), 'trial')} finished: {counts.complete} complete, {counts.pruned} pruned, "
        f"{counts.fail} failed.",
    )


def _no_improvement(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    patience = study.spec.max_trials_without_improvement
    if patience is None or summary.trials_since_best < patience:
        return None
    return Verdict(
        "Completed",
        "NoImprovement",
        f"The best value has not improved for {count(summary.trials_since_best, 'completed trial')} "
        f"(maxTrialsWithoutImprovement: {patience}).",
    )


def _exhausted(study: TuningStudy, summary: StudySummary, _: datetime) -> Verdict | None:
    if not _is_exhausted(summary):
        return None
    tried = count(finished(summary), "trial")
    message = f"{study.spec.sampler.name} has tried the whole search space, in {tried}."
    return Verdict("Completed", "SearchSpaceExhausted", message)


def _is_exhausted(summary: StudySummary) -> bool:
    return summary.exhausted and not summary.counts.running and not summary.counts.waiting


def _timeout(study: TuningStudy, _: StudySummary, now: datetime) -> Verdict | None:
    timeout = study.spec.timeout
    if (
        timeout is None
        or (study.spec.suspend and study.status.phase not in ENDED)
        or elapsed(study.status, now) < timedelta(seconds=seconds(timeout))
    ):
        return None
    return Verdict("Completed", "TimeoutReached", f"The study's timeout ({timeout}) elapsed.")


def _gpu_hours(study: TuningStudy, used: float) -> Verdict | None:
    """Once reported, the end holds until maxGpuHours changes.

    The time of running trials is measured here, that of ended ones at the study server, whose clock may be
    behind: once the last trials have ended, they may all have used less than the limit.
    """
    allowed = study.spec.max_gpu_hours
    if allowed is None:
        return None
    message = f"The trials have used the {allowed:g} GPU hours that maxGpuHours allows."
    verdict = Verdict("Completed", "GpuHoursUsed", message)
    reached = used >= allowed * 3600 or _is_reported(study.status, verdict)
    return verdict if reached else None


def _is_reported(status: TuningStudyStatus, verdict: Verdict) -> bool:
    return any(
        (c.type, c.status, c.reason, c.message) == ("Complete", "True", verdict.reason, verdict.message)
        for c in status.conditions
    )


RULES: tuple[Callable[[TuningStudy, StudySummary, datetime], Verdict | None], ...] = (
    _too_many_failures,
    _nothing_but_failures,
    _target_reached,
    _max_trials,
    _no_improvement,
    _exhausted,
    _timeout,
)


def describe_failure(trial: TrialRecord) -> str:
    """Return which trial failed and why, and how to fix it."""
    if trial.failure is None:
        return f"Trial {trial.number} failed."
    return f"Trial {trial.number} ({trial.failure.category}): {trial.failure.describe()}"


def _failures(trials: Sequence[TrialRecord]) -> str:
    """Return why the last trial failed, and which trials failed before it."""
    if not trials:
        return ""
    *before, last = trials
    numbers: dict[str, list[int]] = {}
    for trial in before:
        category = trial.failure.category if trial.failure else "Unknown"
        numbers.setdefault(category, []).append(trial.number)
    earlier = ", ".join(
        f"{category} ({'trial' if len(found) == 1 else 'trials'} {', '.join(map(str, sorted(found)))})"
        for category, found in numbers.items()
    )
    return f"{sentence(describe_failure(last))} Before it: {earlier}." if earlier else describe_failure(last)


def _sentences(*texts: str) -> str:
    return " ".join(sentence(text) for text in texts if text)
