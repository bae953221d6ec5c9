"""The rules for a running trial: how its run, its pruner, its user and the end of its study affect it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tuning_operator.kube.plan.actions import Action, Start, Step, Stop, Tell, once
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.plan.waiting import give_up, needs_start
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.plan.workers import WorkerPlan
from tuning_operator.protocol import Failure, StudySummary, TellRequest, TrialRecord
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy


@dataclass(frozen=True)
class Context:
    """What the rules look at."""

    study: TuningStudy
    seen: Observation
    summary: StudySummary
    verdict: Verdict | None
    parallelism: int
    """How many trials may run now."""
    workers: WorkerPlan
    now: datetime

    @property
    def prune_grace(self) -> timedelta:
        """How long a run whose work should stop, or has ended, may go on."""
        return timedelta(seconds=seconds(self.study.spec.trial.prune_grace))


Rule = Callable[[Context, TrialRecord, Run | None], tuple[Step, ...]]


def trial_steps(context: Context) -> Iterator[Step]:
    """For each running trial, what the first rule that applies to it says."""
    for trial in context.summary.running:
        run = context.seen.runs.get(Trial.numbered(trial.number))
        for rule in TRIAL_RULES:
            if steps := rule(context, trial, run):
                yield from steps
                break


def _of_a_lost_trial(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """Remove the run of an earlier trial of this number, which the database has lost.

    Neither its result nor its end concerns the trial, which has other parameters.
    """
    if run is None or run.state == "stopping" or run.trial_started in (None, trial.started):
        return ()
    return (Stop(Trial(trial.number)),)


def _has_result(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """Record what the trial's pod could not send before it ended."""
    if run is None or run.result is None:
        return ()
    return (Tell(Trial(trial.number), run.result), *_stop(trial, run))


def _ended_without_result(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    if run is None or run.state != "ended":
        return ()
    if trial.prune_requested:  # it was to stop, and did; only its report of that was lost
        return (_tell(trial, "PRUNED"),)
    if run.lost:
        return ()
    return (_tell(trial, "FAIL", run.diagnosis.failure if run.diagnosis else None),)


def _study_over(context: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """Stop what still runs when the study ends.

    PRUNED, not FAIL: nothing went wrong, what the trial reported stays of use to the sampler, and it does
    not count against maxFailedTrials if the study is resumed.
    """
    if context.verdict is None:
        return ()
    return (
        _tell(trial, "PRUNED", Failure(category="StudyEnded", message=context.verdict.message)),
        *_stop(trial, run),
    )


def _stopped_by_user(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """End a trial that a user has stopped. PRUNED, as when the study ends: nothing went wrong."""
    if run is None or not run.stop_requested:
        return ()
    failure = Failure(category="StoppedByUser", message="A user stopped the trial.")
    return (_tell(trial, "PRUNED", failure), *_stop(trial, run))


def _prune_requested(context: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """End a trial that ignores its pruner, or has no run left that could obey."""
    if trial.prune_requested is None:
        return ()
    end: tuple[Action, ...] = (_tell(trial, "PRUNED"), *_stop(trial, run))
    return end if run is None else once(trial.prune_requested + context.prune_grace, context.now, *end)


def _replaced(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """Remove a run that was lost, or that has not started and is not what the spec says now.

    The trial stays as it is, and gets another run.
    """
    replaced = run and (run.lost or (run.state == "starting" and run.outdated))
    return (Stop(Trial(trial.number)),) if replaced else ()


def _cannot_start(context: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """Free the slot of a run that waits for its user to fix it, and waits too long."""
    if run is None or run.diagnosis is None:
        return ()
    tell = _tell(trial, "FAIL", run.diagnosis.failure)
    return give_up(run, context.now, tell, Stop(Trial(trial.number)))


def _without_run(_: Context, trial: TrialRecord, run: Run | None) -> tuple[Step, ...]:
    """A trial just asked for, or one whose run was deleted (a crash between the two looks the same)."""
    work = Trial(trial.number, trial.parameters, trial.started)
    return (Start(work),) if needs_start(run) else ()


TRIAL_RULES: tuple[Rule, ...] = (
    _of_a_lost_trial,
    _has_result,
    _ended_without_result,
    _study_over,
    _stopped_by_user,
    _prune_requested,
    _replaced,
    _cannot_start,
    _without_run,
)


def _tell(trial: TrialRecord, state: Literal["PRUNED", "FAIL"], failure: Failure | None = None) -> Tell:
    return Tell(Trial(trial.number), TellRequest(state=state, failure=failure))


def _stop(trial: TrialRecord, run: Run | None) -> tuple[Stop, ...]:
    return (Stop(Trial(trial.number)),) if run and run.active else ()
