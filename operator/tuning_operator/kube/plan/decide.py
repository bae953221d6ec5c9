"""Every rule of the operator, as a pure function: what to do about a study, given what is seen of it.

A plan holds what these rules say; the next decision sees its outcome and continues from there.
Nothing is remembered between decisions but the record (study server), the runs and the study's status.
"""

from collections.abc import Iterator
from datetime import datetime

from tuning_operator.kube.plan.actions import Ask, Finish, Plan, Start, Step, Stop, Wait, once
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.parallelism import allowed_trials, wanted_trials
from tuning_operator.kube.plan.refit import due, refit_steps
from tuning_operator.kube.plan.trial_rules import Context, trial_steps
from tuning_operator.kube.plan.usage import gpu_seconds
from tuning_operator.kube.plan.verdict import judge
from tuning_operator.kube.plan.waiting import waiting
from tuning_operator.kube.plan.wake import waits
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.plan.workers import WorkerPlan, plan_workers
from tuning_operator.protocol import AskRequest, StudySummary
from tuning_operator.resource.study import TuningStudy


def decide(study: TuningStudy, seen: Observation, now: datetime) -> Plan:
    """Return what to do now about a study, and when to decide again."""
    summary = seen.summary or StudySummary()
    parallelism = allowed_trials(study, seen)
    if seen.limit is not None:
        parallelism = min(parallelism, seen.limit)
    verdict = judge(study, summary, gpu_seconds(study, seen, now), now)
    workers = plan_workers(study, seen, verdict, parallelism, now) if seen.per_worker else WorkerPlan()
    context = Context(study, seen, summary, verdict, parallelism, workers, now)
    refit = due(study, summary, verdict)
    found = waiting(seen, now)
    steps = [
        *trial_steps(context),
        *_lingering(context),
        *_exited(context),
        *_ask(context),
        *refit_steps(study, seen, refit, now),
        *waits(study, seen, verdict, now),
        *found.waits,
    ]
    if seen.per_worker:
        steps = [step for step in steps if not _concerns_the_run_of_a_trial(step)]
        steps += workers.steps
    actions = tuple(step for step in steps if not isinstance(step, Wait))
    wake = min((step.until for step in steps if isinstance(step, Wait)), default=None)
    allowed = parallelism if study.spec.min_parallelism is not None and not verdict else None
    return Plan(actions, verdict, refit, found.blocked, found.queued, wake, allowed)


def _concerns_the_run_of_a_trial(step: Step) -> bool:
    """With workers, a trial has no run of its own that could be started or stopped."""
    return isinstance(step, Start | Stop) and isinstance(step.work, Trial)


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
