"""The refit's rules: of which trial, when it begins, and what becomes of its run.

A refit is a trial's number and a digest of what the spec says of it. All refits of a study share the Job's
name, so the Job of the one before must be gone, its pods too, before the next is begun in the record: a pod's
token tells only the Job's name, and its last words would count for the wrong refit.
"""

from collections.abc import Iterator
from datetime import timedelta

from tuning_operator.kube.plan.actions import Action, BeginRefit, FailRefit, StartRefit, StopRefit
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.patience import Clock, hopeless
from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.plan.work import refit_request
from tuning_operator.protocol import Failure, RefitRecord, RefitRequest, StudySummary, TrialRecord
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy

VAGUE = frozenset({"ExitCode", "JobFailed", "Lost"})
"""What Kubernetes says of a pod that had its say at the study server: that it ended."""

REMOVED = Failure(category="RefitRemoved", message="spec.refit was removed while it ran.")


def at_its_end(study: TuningStudy, summary: StudySummary, verdict: Verdict | None) -> bool:
    """Tell whether it is time for the study's refit, if it has one."""
    completed = verdict is not None and verdict.phase == "Completed"
    return study.spec.refit is not None and completed and not summary.counts.running


def due(study: TuningStudy, summary: StudySummary, verdict: Verdict | None) -> RefitRequest | None:
    """Return the refit that the study should have or get; None before its end, or without a best trial."""
    if study.spec.refit is None or not at_its_end(study, summary, verdict):
        return None
    best = best_trial(study, summary)
    return refit_request(study.spec.refit, best.number) if best else None


def is_new(request: RefitRequest | None, record: RefitRecord | None) -> bool:
    """Tell whether the refit is another one than the record's."""
    if request is None:
        return False
    return record is None or (request.trial, request.digest) != (record.trial, record.digest)


def best_trial(study: TuningStudy, summary: StudySummary) -> TrialRecord | None:
    """Return the trial whose parameters the refit takes; of several equal ones the first."""
    objectives, refit = study.spec.objectives, study.spec.refit
    if len(objectives) == 1:
        return summary.best
    wanted = refit.metric if refit else None
    place = next((i for i, objective in enumerate(objectives) if objective.metric == wanted), 0)
    sign = -1 if objectives[place].direction == "maximize" else 1
    candidates = [((sign * t.values[place], t.number), t) for t in summary.pareto_front if t.values]
    return min(candidates, key=lambda candidate: candidate[0], default=(None, None))[1]


def refit_actions(
    study: TuningStudy, seen: Observation, wanted: RefitRequest | None, clock: Clock
) -> Iterator[Action]:
    """Yield what to do about the refit now; `wanted` is what `due` says."""
    record = seen.summary.refit if seen.summary else None
    if wanted and is_new(wanted, record) and not study.spec.suspend and not seen.problems:
        yield from _begin(wanted, seen.refit)
    elif record and record.state == "RUNNING":
        yield from _go_on(study, record, seen.refit, clock)
    elif seen.refit and seen.refit.lingering_since:
        grace = timedelta(seconds=seconds(study.spec.trial.prune_grace))
        if clock.passed(seen.refit.lingering_since + grace):
            yield from _stop(seen.refit)


def _begin(wanted: RefitRequest, run: Run | None) -> Iterator[Action]:
    if run is None or run.state == "foreign":
        yield BeginRefit(wanted.trial, wanted.digest)
    else:
        yield from _remove(run)


def _go_on(study: TuningStudy, record: RefitRecord, run: Run | None, clock: Clock) -> Iterator[Action]:
    """Look after a refit that has begun, also while its study has been resumed."""
    refit = study.spec.refit
    if run and run.digest != record.digest and run.state != "foreign":
        yield from _remove(run)
    elif run and run.state == "ended":
        yield FailRefit(why_failed(record, run))
    elif refit is None:
        yield FailRefit(REMOVED)
        yield from _stop(run)
    elif run and run.trouble and hopeless(run, clock):
        yield FailRefit(run.trouble.failure)
        yield from _stop(run)
    elif run is None and not is_new(refit_request(refit, record.trial), record):
        yield StartRefit(record.trial, record.digest)


def why_failed(record: RefitRecord, run: Run) -> Failure | None:
    """Return why the last try failed: as its pod told it, with the whole traceback, if it still could."""
    told, seen = record.failure, run.trouble.failure if run.trouble else None
    if seen is None or (told and seen.category in (told.category, *VAGUE)):
        return told
    return seen


def _stop(run: Run | None) -> Iterator[Action]:
    if run and run.state in ("starting", "running"):
        yield StopRefit()


def _remove(run: Run) -> Iterator[Action]:
    if run.state != "stopping":
        yield StopRefit()
