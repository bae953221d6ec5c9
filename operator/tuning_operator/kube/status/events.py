"""The story of a study as Kubernetes Events: what changed between two statuses."""

from collections.abc import Callable, Iterator

from tuning_operator.kube.plan.actions import Event
from tuning_operator.kube.plan.verdict import ENDED, last_failure
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import RefitRecord, StudySummary
from tuning_operator.resource.study import RefitStatus, TrialCounts, TuningStudyStatus


def tell_story(old: TuningStudyStatus, new: TuningStudyStatus, summary: StudySummary) -> Iterator[Event]:
    """Yield an event for each turn of the story between the two statuses.

    Trials that are pruned or fail share one event each, whose count is their number: a study of 10,000 trials
    tells its story in a page.
    """
    for teller in (_refusal, _stall, _phase, _trials, _best):
        yield from teller(old, new, summary)
    yield from _end(old, new)
    yield from _refit(old.refit, new.refit, summary.refit)


Teller = Callable[[TuningStudyStatus, TuningStudyStatus, StudySummary], Iterator[Event]]


def _refusal(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Accepted"), find(new.conditions, "Accepted")
    if after and after.status == "False" and (before is None or before.message != after.message):
        yield Event("Refused", after.message, key=str(after.observed_generation), warning=True)


def _stall(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    before, after = find(old.conditions, "Stalled"), find(new.conditions, "Stalled")
    if after and after.status == "True" and (before is None or before.reason != after.reason):
        yield Event(after.reason, after.message, key=after.last_transition_time, warning=True)


def _phase(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    if new.phase == old.phase:
        return
    if new.phase == "Running" and old.phase in (*ENDED, "Suspended"):
        yield Event("Resumed", "The study goes on.", key=str(new.start_time))
    elif new.phase == "Running" and old.start_time is None:
        yield Event("Started", "The study's trials begin.", key=str(new.start_time))
    elif new.phase == "Suspended":
        suspended = find(new.conditions, "Suspended")
        assert suspended is not None  # noqa: S101  the phase comes with its condition
        yield Event("Suspended", suspended.message, key=suspended.last_transition_time)


def _trials(old: TuningStudyStatus, new: TuningStudyStatus, summary: StudySummary) -> Iterator[Event]:
    before, after = old.trials or TrialCounts(), new.trials or TrialCounts()
    if after.pruned > before.pruned:
        message = f"{after.pruned} trials were stopped early so far."
        yield Event("TrialPruned", message, count=after.pruned)
    if after.failed > before.failed:
        message = last_failure(summary) or f"{after.failed} trials failed so far."
        yield Event("TrialFailed", message, count=after.failed, warning=True)


def _best(old: TuningStudyStatus, new: TuningStudyStatus, _: StudySummary) -> Iterator[Event]:
    if new.best and (old.best is None or old.best.number != new.best.number):
        values = ", ".join(f"{value:.6g}" for value in new.best.values)
        yield Event(
            "NewBest", f"Trial {new.best.number} is the best so far: {values}.", key=str(new.best.number)
        )


def _end(old: TuningStudyStatus, new: TuningStudyStatus) -> Iterator[Event]:
    if new.phase == old.phase or new.phase not in ENDED:
        return
    condition = find(new.conditions, "Complete" if new.phase == "Completed" else "Failed")
    assert condition is not None  # noqa: S101  the phase comes with its condition
    key = str(new.completion_time)
    yield Event(new.phase, f"{condition.reason}: {condition.message}", key=key, warning=new.phase == "Failed")


def _refit(old: RefitStatus | None, new: RefitStatus | None, record: RefitRecord | None) -> Iterator[Event]:
    if new is None or (old and (old.phase, old.trial) == (new.phase, new.trial)):
        return
    key = f"{record.digest}/{record.started}" if record else ""
    if new.phase == "Running":
        message = f"The final training runs in Job {new.job}, with the parameters of trial {new.trial}."
        yield Event("RefitStarted", message, key=key)
    elif new.phase == "Completed":
        values = f": {', '.join(f'{value:.6g}' for value in new.values)}" if new.values else ""
        model = f" The model is in {new.model}." if new.model else ""
        message = f"The final training with the parameters of trial {new.trial} has completed{values}.{model}"
        yield Event("RefitCompleted", message, key=key)
    elif new.phase == "Failed":
        yield Event("RefitFailed", new.message or "", key=key, warning=True)
