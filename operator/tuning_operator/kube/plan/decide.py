"""Every rule of the operator, as a pure function: what to do about a study, given what is seen of it.

A pass changes at most what the rules below say; the next pass sees the outcome and goes on from there.
Nothing is remembered between passes but the record (study server), the runs (cluster) and the study's status.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuning_operator.kube.plan.actions import Action, Ask, Plan, Start, Stop, Tell
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.patience import ABSENT_RETRY, Clock, hopeless
from tuning_operator.kube.plan.refit import due, refit_actions
from tuning_operator.kube.plan.verdict import Verdict, elapsed, judge
from tuning_operator.kube.status.events import tell_story
from tuning_operator.kube.status.status import new_status
from tuning_operator.protocol import Failure, StudySummary, TrialRecord
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy


@dataclass(frozen=True)
class Case:
    """What the rules look at."""

    study: TuningStudy
    summary: StudySummary
    runs: dict[int, Run]
    verdict: Verdict | None
    clock: Clock

    @property
    def prune_grace(self) -> timedelta:
        """How long a trial that should stop may go on."""
        return timedelta(seconds=seconds(self.study.spec.trial.prune_grace))


def decide(study: TuningStudy, seen: Observation, now: datetime) -> Plan:
    """Return what to do now about a study, what its status should say, and when to look again."""
    clock = Clock(now)
    summary = seen.summary or StudySummary()
    verdict = judge(study, summary, now)
    case = Case(study, summary, dict(seen.runs), verdict, clock)
    refit = due(study, summary, verdict)
    actions = [*_trials(case), *_lingering(case)]
    if not seen.problems:
        actions += _ask(case)
    actions += refit_actions(study, seen, refit, clock)
    _wake_at_timeout(case)
    if any(problem.field.startswith("warmStart") for problem in seen.problems):
        clock.passed(now + ABSENT_RETRY)
    status = new_status(study, seen, verdict, refit, clock.passed, now)
    return Plan(
        actions=tuple(actions),
        status=status,
        events=tuple(tell_story(study.status, status, summary)),
        requeue_after=0 if actions else clock.until_next(),
    )


def _trials(case: Case) -> Iterator[Action]:
    """For each running trial, what the first rule that applies to it says."""
    for trial in case.summary.running:
        run = case.runs.get(trial.number)
        yield from next((actions for rule in TRIAL_RULES if (actions := rule(case, trial, run))), ())


def _ended_without_result(_: Case, trial: TrialRecord, run: Run | None) -> tuple[Action, ...]:
    if run is None or run.state != "ended":
        return ()
    if trial.prune_requested:  # it was to stop, and did; only its last word got lost
        return (Tell(trial.number, "PRUNED"),)
    return (Tell(trial.number, "FAIL", run.trouble.failure if run.trouble else None),)


def _study_over(case: Case, trial: TrialRecord, run: Run | None) -> tuple[Action, ...]:
    """Stop what runs on when the study ends.

    PRUNED, not FAIL: nothing went wrong, what the trial reported stays of use to the sampler, and it does
    not count against maxFailedTrials if the study is resumed.
    """
    if case.verdict is None:
        return ()
    why = Failure(category="StudyEnded", message=case.verdict.message)
    return (Tell(trial.number, "PRUNED", why), *_stop(run, trial.number))


def _told_to_stop(case: Case, trial: TrialRecord, run: Run | None) -> tuple[Action, ...]:
    """End a trial that ignores its pruner, or has no run left that could obey."""
    if trial.prune_requested is None:
        return ()
    if run is not None and not case.clock.passed(trial.prune_requested + case.prune_grace):
        return ()
    return (Tell(trial.number, "PRUNED"), *_stop(run, trial.number))


def _cannot_start(case: Case, trial: TrialRecord, run: Run | None) -> tuple[Action, ...]:
    """Free the slot of a run that waits for a mend that does not come."""
    if run is None or run.trouble is None or not hopeless(run, case.clock):
        return ()
    return (Tell(trial.number, "FAIL", run.trouble.failure), Stop(trial.number))


def _without_run(_: Case, trial: TrialRecord, run: Run | None) -> tuple[Action, ...]:
    """A trial just asked for, or one whose run was deleted (a crash between the two looks the same)."""
    return (Start(trial.number),) if run is None else ()


TRIAL_RULES: tuple[Callable[[Case, TrialRecord, Run | None], tuple[Action, ...]], ...] = (
    _ended_without_result,
    _study_over,
    _told_to_stop,
    _cannot_start,
    _without_run,
)


def _stop(run: Run | None, trial: int) -> tuple[Action, ...]:
    return (Stop(trial),) if run and run.state in ("starting", "running") else ()


def _lingering(case: Case) -> Iterator[Action]:
    """A finished trial's run may say goodbye, but not hold its GPU for ever."""
    running = {trial.number for trial in case.summary.running}
    for run in case.runs.values():
        if run.trial in running or run.lingering_since is None:
            continue
        if case.clock.passed(run.lingering_since + case.prune_grace):
            yield from _stop(run, run.trial)


def _ask(case: Case) -> Iterator[Action]:
    spec, counts = case.study.spec, case.summary.counts
    started = counts.running + counts.complete + counts.pruned + counts.fail
    if case.verdict or spec.suspend or (case.summary.exhausted and not counts.waiting):
        return
    if counts.running < spec.parallelism and started < spec.max_trials:
        yield Ask(spec.parallelism, spec.max_trials)


def _wake_at_timeout(case: Case) -> None:
    spec = case.study.spec
    if spec.timeout and not spec.suspend and not case.verdict:
        left = timedelta(seconds=seconds(spec.timeout)) - elapsed(case.study.status, case.clock.now)
        case.clock.passed(case.clock.now + left)
