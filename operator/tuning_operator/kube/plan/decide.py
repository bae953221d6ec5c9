"""Every rule of the operator, as a pure function: what to do about a study, given what is seen of it.

A plan holds what the rules below say; the next decision sees its outcome and continues from there.
Nothing is remembered between decisions but the record (study server), the runs and the study's status.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tuning_operator.kube.plan.actions import Action, Ask, Finish, Plan, Start, Step, Stop, Tell, Wait, once
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.parallelism import allowed_trials, wanted_trials
from tuning_operator.kube.plan.refit import due, refit_steps
from tuning_operator.kube.plan.usage import gpu_seconds, gpus, trials_with_gpus
from tuning_operator.kube.plan.verdict import Verdict, elapsed, judge
from tuning_operator.kube.plan.waiting import give_up, needs_start, waiting
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.plan.workers import WorkerPlan, plan_workers
from tuning_operator.protocol import AskRequest, Failure, StudySummary, TellRequest, TrialRecord
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy

ELASTIC_CHECK = timedelta(seconds=10)
"""How soon an elastic study looks again whether others wait for GPUs: their pods are not watched."""
LIMIT_CHECK = timedelta(seconds=5)
"""How soon a study that its namespace's limit holds back looks again whether others run fewer trials."""
LONGEST_WAIT = 365 * 86_400.0
"""Seconds: dates that are too far away can't be computed."""
REFUSED_RETRY = timedelta(seconds=30)
"""How soon a refused spec is checked again: for example, the study of warmStart may exist by then."""


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


def decide(study: TuningStudy, seen: Observation, now: datetime) -> Plan:
    """Return what to do now about a study, and when to decide again."""
    summary = seen.summary or StudySummary()
    parallelism = allowed_trials(study, seen)
    if seen.limit is not None:
        parallelism = min(parallelism, seen.limit)
    verdict = judge(study, summary, gpu_seconds(study, seen, now), now)
    workers = plan_workers(study, seen, verdict, parallelism, now) if seen.per_worker else WorkerPlan()
    context = Context(study, seen, summary, verdict, parallelism, workers, now)
    refit = due(study, summary, context.verdict)
    found = waiting(seen, now)
    steps = [
        *_trials(context),
        *_lingering(context),
        *_exited(context),
        *_ask(context),
        *refit_steps(study, seen, refit, now),
        *_timeout(context),
        *_gpu_hours(context),
        *_shared(context),
        *_refused(context),
        *(Wait(run.check_at) for run in seen.runs.values() if run.check_at),
        *found.waits,
    ]
    if seen.per_worker:
        steps = [step for step in steps if not _concerns_the_run_of_a_trial(step)]
        steps += workers.steps
    actions = tuple(step for step in steps if not isinstance(step, Wait))
    wake = min((step.until for step in steps if isinstance(step, Wait)), default=None)
    allowed = parallelism if study.spec.min_parallelism is not None and not context.verdict else None
    return Plan(actions, context.verdict, refit, found.blocked, found.queued, wake, allowed)


def _concerns_the_run_of_a_trial(step: Step) -> bool:
    """With workers, a trial has no run of its own that could be started or stopped."""
    return isinstance(step, Start | Stop) and isinstance(step.work, Trial)


Rule = Callable[[Context, TrialRecord, Run | None], tuple[Step, ...]]


def _trials(context: Context) -> Iterator[Step]:
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


def _lingering(context: Context) -> Iterator[Step]:
    """The run of finished work may take a while to exit, but not hold its GPU forever."""
    wanted = context.seen.unfinished
    for work, run in context.seen.runs.items():
        if run.lingering_since and run.active and work not in wanted:
            yield from once(run.lingering_since + context.prune_grace, context.now, Stop(work))


def _exited(context: Context) -> Iterator[Step]:
    """A service mesh's proxy or a log shipper may run on when the program has exited; it gets some time."""
    for work, run in context.seen.runs.items():
        if run.exited and run.state != "stopping":
            finish = Finish(work, again=run.state == "starting")
            yield from once(run.exited + context.prune_grace, context.now, finish)


def _ask(context: Context) -> Iterator[Ask]:
    """Ask for trials, and name the workers that get none of them.

    While a trial waits for a worker, the study server has to know these even if no other trial is asked for.
    """
    if context.verdict:
        return
    most, summary = context.study.spec.max_trials, context.summary
    leaving = [] if summary.leaving is None else list(context.workers.leaving)
    if wanted_trials(context.study, context.seen, context.parallelism) > summary.counts.running:
        yield Ask(AskRequest(parallelism=context.parallelism, max_trials=most, leaving=leaving))
    elif summary.leaving not in (None, leaving) and any(trial.worker is None for trial in summary.running):
        yield Ask(AskRequest(parallelism=0, max_trials=most, leaving=leaving))


def _timeout(context: Context) -> Iterator[Wait]:
    spec = context.study.spec
    if spec.timeout and not spec.suspend and not context.verdict:
        left = timedelta(seconds=seconds(spec.timeout)) - elapsed(context.study.status, context.now)
        yield Wait(context.now + left)


def _gpu_hours(context: Context) -> Iterator[Wait]:
    """Decide again when the running trials will have used the rest of maxGpuHours."""
    allowed, study = context.study.spec.max_gpu_hours, context.study
    rate = gpus(study) * len(trials_with_gpus(context.seen))
    if allowed is not None and rate and not context.verdict:
        left = allowed * 3600 - gpu_seconds(study, context.seen, context.now)
        yield Wait(context.now + timedelta(seconds=min(left / rate, LONGEST_WAIT)))


def _shared(context: Context) -> Iterator[Wait]:
    """Look again whether others need less or more of what the study shares with them."""
    spec = context.study.spec
    if context.verdict or spec.suspend:
        return
    if spec.min_parallelism is not None:
        yield Wait(context.now + ELASTIC_CHECK)
    if context.seen.limit is not None:
        yield Wait(context.now + LIMIT_CHECK)


def _refused(context: Context) -> Iterator[Wait]:
    if context.seen.problems:
        yield Wait(context.now + REFUSED_RETRY)
