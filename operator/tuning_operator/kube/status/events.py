"""Kubernetes Events of a study: what changed between two statuses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tuning_operator.kube.plan.verdict import ENDED, describe_failure, resumes
from tuning_operator.kube.status.conditions import CONTINUED, IGNORED, YIELDING, find
from tuning_operator.protocol import RefitRecord, StudySummary
from tuning_operator.resource.study import RefitStatus, TrialCounts, TuningStudyStatus
from tuning_operator.resource.text import count


@dataclass(frozen=True)
class Event:
    """A line in `kubectl describe`.

    Events of the same reason and key are one: posting it again raises `count` and replaces the message.
    """

    reason: str
    message: str
    key: str = ""
    count: int = 1
    warning: bool = False


def new_events(old: TuningStudyStatus, new: TuningStudyStatus, summary: StudySummary) -> tuple[Event, ...]:
    """Return an Event for each change between the two statuses that users care about.

    Pruned trials share one Event, whose count is their number. Each failed trial has its own, for the last 10
    since the status was written: the Events of a study of 10,000 trials fit on a page.
    """
    return tuple(event for source in SOURCES for event in source(old, new, summary))


def _refusal(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Accepted"), find(new.conditions, "Accepted")
    if after and after.status == "False" and (before is None or before.message != after.message):
        yield Event("Refused", after.message, key=str(after.observed_generation), warning=True)


def _noted(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Accepted"), find(new.conditions, "Accepted")
    if after and after.reason in (CONTINUED, IGNORED) and (before is None or before.message != after.message):
        yield Event(
            after.reason, after.message, key=after.last_transition_time, warning=after.reason == IGNORED
        )


def _stall(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Stalled"), find(new.conditions, "Stalled")
    reported = after and (after.status == "True" or after.reason in ("SidecarNotRunning", "Node", YIELDING))
    if after and reported and (before is None or before.reason != after.reason):
        warning = after.reason != YIELDING
        yield Event(after.reason, after.message, key=after.last_transition_time, warning=warning)


def _contested(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Contested"), find(new.conditions, "Contested")
    if after and before is None:
        yield Event(after.reason, after.message, key=after.message, warning=True)


def _phase(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    if new.phase == old.phase:
        return
    if resumes(old.phase, new.phase):
        yield Event("Resumed", "Study resumed.", key=str(new.start_time))
    elif new.phase == "Running" and old.start_time is None:
        yield Event("Started", "Study started.", key=str(new.start_time))
    elif new.phase == "Suspended" and (suspended := find(new.conditions, "Suspended")):
        yield Event("Suspended", suspended.message, key=suspended.last_transition_time)


def _trials(old: TuningStudyStatus, new: TuningStudyStatus, summary: StudySummary) -> Iterator[Event]:
    before, after = old.trials or TrialCounts(), new.trials or TrialCounts()
    if after.pruned > before.pruned:
        yield Event("TrialPruned", f"{count(after.pruned, 'trial')} pruned so far.", count=after.pruned)
    if after.failed > before.failed:
        for trial in summary.recent_failures[before.failed - after.failed :]:
            yield Event("TrialFailed", describe_failure(trial), key=str(trial.number), warning=True)


def _lost_trials(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    """The record never loses a trial by itself."""
    before, after = old.trials or TrialCounts(), new.trials or TrialCounts()
    if after.total < before.total:
        message = (
            f"The record has lost {count(before.total - after.total, 'trial')}: the database was restored "
            "from a backup, or replaced. Those still running are stopped; as many new trials start, with "
            "other parameters."
        )
        yield Event("TrialsLost", message, key=f"{before.total}/{after.total}", warning=True)


def _best(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    if new.best and (old.best is None or old.best.number != new.best.number):
        values = ", ".join(f"{value:.6g}" for value in new.best.values)
        message = f"Trial {new.best.number} is the best so far: {values}."
        yield Event("NewBest", message, key=str(new.best.number))


def _end(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    condition = find(new.conditions, "Complete" if new.phase == "Completed" else "Failed")
    if new.phase in ENDED and new.phase != old.phase and condition:
        message, warning = f"{condition.reason}: {condition.message}", new.phase == "Failed"
        yield Event(str(new.phase), message, key=str(new.completion_time), warning=warning)


def _refit(old: TuningStudyStatus, new: TuningStudyStatus, summary: StudySummary) -> Iterator[Event]:
    before, after = old.refit, new.refit
    if after and (before is None or (before.phase, before.trial) != (after.phase, after.trial)):
        yield from _refit_change(after, summary.refit)


def _refit_change(refit: RefitStatus, record: RefitRecord | None) -> Iterator[Event]:
    key = f"{record.digest}/{record.started}" if record else ""
    if refit.phase == "Running":
        message = f"Refit with the parameters of trial {refit.trial} started."
        yield Event("RefitStarted", message, key=key)
    elif refit.phase == "Completed":
        values = f": {', '.join(f'{value:.6g}' for value in refit.values)}" if refit.values else ""
        model = f" The model is in {refit.model}." if refit.model else ""
        message = f"Refit with the parameters of trial {refit.trial} completed{values}.{model}"
        if refit.message:
            message += f" {refit.message}"
        yield Event("RefitCompleted", message, key=key)
    elif refit.phase == "Failed":
        yield Event("RefitFailed", refit.message or "", key=key, warning=True)


SOURCES: tuple[Callable[[TuningStudyStatus, TuningStudyStatus, StudySummary], Iterator[Event]], ...] = (
    _refusal,
    _noted,
    _stall,
    _contested,
    _phase,
    _trials,
    _lost_trials,
    _best,
    _end,
    _refit,
)
