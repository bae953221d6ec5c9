"""The refit's rules: which trial it takes, when it begins, and what happens to its run.

All refits of a study share one Job name. The Job of the one before must be gone, its pods too, before the
next is begun in the record: a pod's token names only the Job, so a late report would count for the wrong one.
"""

from collections.abc import Iterator
from datetime import datetime

from tuning_operator.kube.plan.actions import Begin, Start, Step, Stop, Tell
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.plan.waiting import give_up, needs_start
from tuning_operator.kube.plan.work import Refit
from tuning_operator.protocol import Failure, RefitRecord, StudySummary, TellRequest, TrialRecord
from tuning_operator.resource.study import TuningStudy

VAGUE = frozenset({"ExitCode", "JobFailed", "Lost"})
"""What Kubernetes says about a pod that reported to the study server itself: only that it ended."""

REMOVED = Failure(category="RefitRemoved", message="spec.refit was removed while it ran.")


def at_its_end(study: TuningStudy, summary: StudySummary, verdict: Verdict | None) -> bool:
    """Return whether it is time for the study's refit, if it has one."""
    completed = verdict is not None and verdict.phase == "Completed"
    return study.spec.refit is not None and completed and not summary.counts.running


def due(study: TuningStudy, summary: StudySummary, verdict: Verdict | None) -> Refit | None:
    """Return the refit that the study should have or get; None before its end, or without a best trial."""
    if study.spec.refit is None or not at_its_end(study, summary, verdict):
        return None
    best = best_trial(study, summary)
    return Refit.of(study.spec.refit, best.number) if best else None


def is_new(wanted: Refit, record: RefitRecord | None) -> bool:
    """Return whether the refit is another one than the record's."""
    return record is None or wanted != Refit(record.trial, record.digest)


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


def refit_steps(study: TuningStudy, seen: Observation, wanted: Refit | None, now: datetime) -> Iterator[Step]:
    """Yield what to do about the refit; `wanted` is what `due` returned."""
    record = seen.summary.refit if seen.summary else None
    if wanted and is_new(wanted, record) and not study.spec.suspend and not seen.problems:
        yield from _remove(seen) if seen.refit_run else (Begin(wanted.request),)
    elif record and record.state == "RUNNING":
        yield from _continue(study, seen, record, now)


def _continue(study: TuningStudy, seen: Observation, record: RefitRecord, now: datetime) -> Iterator[Step]:
    """Decide on a refit that has started, even if its study has been resumed since."""
    begun, spec = Refit(record.trial, record.digest), study.spec.refit
    run = seen.runs.get(begun)
    if run is None and seen.refit_run:
        yield from _remove(seen)
    elif run and (result := _result(record, run)):
        yield Tell(begun, result)
        if run.active:
            yield Stop(begun)
    elif spec is None:
        yield _fail(begun, REMOVED)
        if run and run.active:
            yield Stop(begun)
    elif run and (run.lost or (run.state == "starting" and run.outdated)):
        yield Stop(begun)
    elif needs_start(run):
        if Refit.of(spec, record.trial) == begun:
            yield Start(begun)
    elif run and run.diagnosis:
        yield from give_up(run, now, _fail(begun, run.diagnosis.failure), Stop(begun))


def _result(record: RefitRecord, run: Run) -> TellRequest | None:
    """Return how the refit has ended; None if it has not, or will have another run."""
    if run.result or run.state != "ended" or run.lost:
        return run.result
    return TellRequest(state="FAIL", failure=why_failed(record, run))


def why_failed(record: RefitRecord, run: Run) -> Failure | None:
    """Return why the last attempt failed: as its pod reported it, with the whole traceback, if it could."""
    reported, seen = record.failure, run.diagnosis.failure if run.diagnosis else None
    if seen is None or (reported and seen.category in (reported.category, *VAGUE)):
        return reported
    return seen


def _fail(work: Refit, failure: Failure | None) -> Tell:
    return Tell(work, TellRequest(state="FAIL", failure=failure))


def _remove(seen: Observation) -> Iterator[Stop]:
    """The pods of the refit before must be gone first."""
    if seen.refit_run and seen.refit_run[1].state != "stopping":
        yield Stop(seen.refit_run[0])
