# ruff: noqa: E501  a table reads best with few lines a row
"""decide, as a table: a study, what is seen of it, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from tuning_operator.kube.plan.actions import Action, Ask, Start, Stop, Tell
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.patience import START_GRACE
from tuning_operator.kube.status.conditions import find, rfc3339
from tuning_operator.protocol import Problem, TrialRecord
from tuning_operator.resource.study import BestTrial, Condition, TuningStudy, TuningStudyStatus

from tests.unit.kube.builders import NOW, ago, running_status, seen, study, summary, trial, trouble

ASK = Ask(2, 10)
LATE = ago(START_GRACE.total_seconds() + 1)


@dataclass
class Row:
    study: TuningStudy
    seen: Observation
    actions: list[Action]
    phase: str = "Running"
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By type: (status, reason)."""
    requeue_after: float | None = None


def started(number: int, **fields: Any) -> Run:
    return Run(number, "running", **fields)


def winner(number: int = 3, value: float = 0.99) -> TrialRecord:
    return trial(number, "COMPLETE", values=[value])


TABLE: dict[str, Row] = {
    "a new study asks for trials": Row(
        study(status=TuningStudyStatus()), seen(summary()), [ASK],
        conditions={"Accepted": ("True", "Valid"), "Stalled": ("False", "Progressing")}, requeue_after=0),
    "a trial just asked for is started": Row(
        study(), seen(summary(0, 1), started(0)), [Start(1)], requeue_after=0),
    "all slots taken: nothing to do": Row(
        study(), seen(summary(0, 1), started(0), started(1)), []),
    "a free slot is filled": Row(
        study(), seen(summary(1, complete=1), started(1)), [ASK], requeue_after=0),
    "the last trials run: none is asked for": Row(
        study(), seen(summary(9, complete=9), started(9)), []),
    "parallelism lowered: running ones finish": Row(
        study(parallelism=1), seen(summary(0, 1), started(0), started(1)), []),
    "a Job that ended without a result is a failure": Row(
        study(), seen(summary(0, 1), Run(0, "ended", trouble("OutOfMemory")), started(1)),
        [Tell(0, "FAIL", trouble("OutOfMemory").failure)], requeue_after=0),
    "a Job that is being deleted is waited for": Row(
        study(), seen(summary(0, 1), Run(0, "stopping"), started(1)), []),
    "a trial told to stop has its grace": Row(
        study(), seen(summary(trial(0, prune_requested=ago(10)), 1), started(0), started(1)), [], requeue_after=20),
    "a trial that ignores its pruner is ended": Row(
        study(), seen(summary(trial(0, prune_requested=ago(30)), 1), started(0), started(1)),
        [Tell(0, "PRUNED"), Stop(0)], requeue_after=0),
    "a trial told to stop whose pod died is pruned": Row(
        study(), seen(summary(trial(0, prune_requested=ago(1)), 1), Run(0, "ended", trouble("ExitCode")), started(1)),
        [Tell(0, "PRUNED")], requeue_after=0),
    "a trial told to stop gets no new Job": Row(
        study(), seen(summary(trial(0, prune_requested=ago(1)), 1), started(1)), [Tell(0, "PRUNED")], requeue_after=0),
    "an unpullable image is told at once": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("ImagePull", ago(1))), started(1)), [],
        conditions={"Stalled": ("True", "ImagePull")}, requeue_after=START_GRACE.total_seconds() - 1),
    "an unpullable image frees its slot after a while": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("ImagePull", LATE)), started(1)),
        [Tell(0, "FAIL", trouble("ImagePull").failure), Stop(0)],
        conditions={"Stalled": ("True", "ImagePull")}, requeue_after=0),
    "an impossible request waits for an autoscaler": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("Unschedulable", LATE)), started(1)), [],
        conditions={"Stalled": ("True", "Unschedulable")}),
    "a pod that waits for its GPU while others run is no news": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("Capacity", LATE)), started(1)), [],
        conditions={"Stalled": ("False", "Progressing")}),
    "a GPU that is freed in a moment is no news": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("Capacity", ago(10))), Run(1, "starting")), [],
        conditions={"Stalled": ("False", "Progressing")}, requeue_after=20),
    "no free GPU at all is news": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("Capacity", ago(60))), Run(1, "starting")), [],
        conditions={"Stalled": ("True", "Capacity")}),
    "a quota is waited for": Row(
        study(), seen(summary(0, 1), Run(0, "starting", trouble("Quota", LATE)), started(1)), [],
        conditions={"Stalled": ("True", "Quota")}),
    "a name taken by another's Job is told": Row(
        study(), seen(summary(0, 1), Run(0, "foreign", trouble("NameTaken")), started(1)), [],
        conditions={"Stalled": ("True", "NameTaken")}),
    "a finished trial's Job may say goodbye": Row(
        study(), seen(summary(1, 2, complete=1), started(0, lingering_since=ago(5)), started(1), started(2)), [],
        requeue_after=25),
    "a finished trial's Job must not linger": Row(
        study(), seen(summary(1, 2, complete=1), started(0, lingering_since=ago(30)), started(1), started(2)),
        [Stop(0)], requeue_after=0),
    "suspended: running ones finish, none is asked for": Row(
        study(suspend=True), seen(summary(0, complete=3), started(0)), [], phase="Suspended",
        conditions={"Suspended": ("True", "Suspended")}),
    "suspended between ask and start: the trial gets its Job": Row(
        study(suspend=True), seen(summary(0, complete=3)), [Start(0)], phase="Suspended", requeue_after=0),
    "suspended: the timeout does not run": Row(
        study(suspend=True, timeout="1m", status=running_status(3600)), seen(summary()), [], phase="Suspended"),
    "refused: nothing is asked for, what runs is looked after": Row(
        study(), seen(summary(0, 1), Run(0, "ended", trouble("ExitCode")), problems=(Problem(field="x", message="y"),)),
        [Tell(0, "FAIL", trouble("ExitCode").failure), Start(1)], phase="Pending",
        conditions={"Accepted": ("False", "Invalid")}, requeue_after=0),
    "refused from the first: nothing happens": Row(
        study(status=TuningStudyStatus()), seen(None, problems=(Problem(field="sampler.args.sede", message="no such"),)),
        [], phase="Pending", conditions={"Accepted": ("False", "Invalid")}),
    "refused for a study that is not there yet": Row(
        study(warmStart={"study": "earlier"}), seen(None, problems=(Problem(field="warmStart.study", message="none"),)),
        [], phase="Pending", conditions={"Accepted": ("False", "Invalid")}, requeue_after=30),
    "maxTrials finished": Row(
        study(), seen(summary(complete=7, pruned=2, fail=1)), [], phase="Completed",
        conditions={"Complete": ("True", "MaxTrialsReached")}),
    "maxTrials lowered below what has finished: the rest is stopped": Row(
        study(maxTrials=3), seen(summary(3, complete=3), started(3)), [], phase="Completed", requeue_after=0),
    "too many failures": Row(
        study(maxFailedTrials=1), seen(summary(2, fail=2, last_failure=trial(1, "FAIL", failure=trouble("A").failure)),
        started(2)), [], phase="Failed", conditions={"Failed": ("True", "TooManyFailedTrials")}, requeue_after=0),
    "as many failures as are allowed": Row(
        study(maxFailedTrials=2), seen(summary(2, 3, fail=2), started(2), started(3)), []),
    "nothing but failures is no success": Row(
        study(maxTrials=3), seen(summary(fail=3)), [], phase="Failed", conditions={"Failed": ("True", "AllTrialsFailed")}),
    "target reached": Row(
        study(objectives=[{"metric": "accuracy", "direction": "maximize", "target": 0.99}]),
        seen(summary(4, complete=1, best=winner()), started(4)), [], phase="Completed",
        conditions={"Complete": ("True", "TargetReached")}, requeue_after=0),
    "target not reached": Row(
        study(objectives=[{"metric": "accuracy", "direction": "maximize", "target": 0.991}]),
        seen(summary(4, 5, complete=1, best=winner()), started(4), started(5)), []),
    "target of 0, minimized": Row(
        study(objectives=[{"metric": "loss", "direction": "minimize", "target": 0}]),
        seen(summary(4, 5, complete=1, best=winner(value=0.1)), started(4), started(5)), []),
    "no improvement": Row(
        study(maxTrialsWithoutImprovement=3), seen(summary(complete=4, best=winner(0), trials_since_best=3)), [],
        phase="Completed", conditions={"Complete": ("True", "NoImprovement")}),
    "a sampler that has tried all there is: the last trial is waited for": Row(
        study(), seen(summary(3, complete=3, exhausted=True), started(3)), []),
    "a sampler that has tried all there is": Row(
        study(), seen(summary(complete=4, exhausted=True)), [], phase="Completed",
        conditions={"Complete": ("True", "SearchSpaceExhausted")}),
    "timeout": Row(
        study(timeout="1m", status=running_status(60)), seen(summary(0, complete=1), started(0)), [], phase="Completed",
        conditions={"Complete": ("True", "TimeoutReached")}, requeue_after=0),
    "before the timeout": Row(
        study(timeout="1m", status=running_status(50)), seen(summary(0, 1), started(0), started(1)), [], requeue_after=10),
}  # fmt: skip

ENDS_RUNNING = {
    "maxTrials lowered below what has finished: the rest is stopped": 3,
    "too many failures": 2,
    "target reached": 4,
    "timeout": 0,
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    plan = decide(row.study, row.seen, NOW)
    actions = list(plan.actions)
    if name in ENDS_RUNNING:  # the message is told elsewhere
        number = ENDS_RUNNING[name]
        assert [type(a) for a in actions] == [Tell, Stop]
        assert isinstance(actions[0], Tell)
        assert (actions[0].trial, actions[0].state) == (number, "PRUNED")
        assert actions[0].failure is not None
        assert actions[0].failure.category == "StudyEnded"
        assert actions[1] == Stop(number)
    else:
        assert actions == row.actions
    assert plan.status.phase == row.phase
    assert plan.requeue_after == row.requeue_after
    for kind, expected in row.conditions.items():
        condition = find(plan.status.conditions, kind)
        assert condition is not None, kind
        assert (condition.status, condition.reason) == expected


def after(old: TuningStudy, standing: Observation, seconds: float = 0, **spec: Any) -> TuningStudyStatus:
    """The status after another pass over a study with the same status and another spec."""
    changed = study(status=old.status, generation=2, **spec)
    return decide(changed, standing, NOW + timedelta(seconds=seconds)).status


def ended(reason: str = "MaxTrialsReached", **fields: Any) -> TuningStudyStatus:
    condition = Condition(type="Complete", status="True", reason=reason, message="", last_transition_time="")
    times = {"start_time": rfc3339(ago(7200)), "completion_time": rfc3339(ago(3600))}
    return TuningStudyStatus(phase="Completed", conditions=[condition], **times, **fields)


def test_a_raised_max_trials_resumes_with_a_new_start() -> None:
    done = study(status=ended(), maxTrials=12, timeout="2h")
    plan = decide(done, seen(summary(complete=10)), NOW)
    assert plan.actions == (Ask(2, 12),)
    assert plan.status.phase == "Running"
    assert plan.status.start_time == rfc3339(NOW)
    assert plan.status.completion_time is None
    assert find(plan.status.conditions, "Complete").status == "False"  # type: ignore[union-attr]
    assert [event.reason for event in plan.events if event.reason in ("Resumed", "Started")] == ["Resumed"]


def test_an_ended_study_stays_as_it_is() -> None:
    first = decide(study(maxTrials=3), seen(summary(complete=3)), NOW).status
    again = decide(study(maxTrials=3, status=first), seen(summary(complete=3)), NOW + timedelta(hours=9))
    assert again.status == first
    assert again.actions == ()
    assert again.events == ()


def test_a_timeout_holds_until_it_is_raised_above_what_the_study_ran() -> None:
    status = ended("TimeoutReached")
    for spec, phase in ((("1h", 10), "Completed"), (("1h", 99), "Completed"), (("61m", 10), "Running")):
        timeout, max_trials = spec
        again = decide(
            study(status=status, timeout=timeout, maxTrials=max_trials), seen(summary(complete=1)), NOW
        )
        assert again.status.phase == phase, spec


def test_suspension_sets_the_clock_back() -> None:
    suspended = running_status(7200, phase="Suspended")
    plan = decide(study(status=suspended, timeout="1h"), seen(summary(complete=1)), NOW)
    assert plan.status.phase == "Running"
    assert plan.status.start_time == rfc3339(NOW)
    assert [event.reason for event in plan.events] == ["Resumed"]


def test_a_refused_edit_leaves_the_clock_alone() -> None:
    running = study(status=running_status(100))
    refused = seen(summary(complete=1), problems=(Problem(field="sampler.args", message="no"),))
    start = running.status.start_time
    pending = decide(running, refused, NOW).status
    assert pending.phase == "Pending"
    assert decide(study(status=pending), seen(summary(complete=1)), NOW).status.start_time == start


def test_status_tells_counts_and_the_best() -> None:
    best = trial(3, "COMPLETE", values=[0.98], parameters={"x": 0.5, "kind": "relu", "layers": [8, 4]})
    status = decide(study(), seen(summary(7, complete=4, pruned=2, fail=1, best=best)), NOW).status
    assert status.progress == "7/10"
    assert status.trials is not None
    counts = {"total": 8, "running": 1, "complete": 4, "pruned": 2, "failed": 1}
    assert status.trials.model_dump(exclude_none=True) == counts
    assert status.best == BestTrial(
        number=3, values=[0.98], parameters={"x": 0.5, "kind": "relu", "layers": "[8, 4]"}
    )


def test_an_infinite_best_value_does_not_break_the_status() -> None:
    best = trial(0, "COMPLETE", values=[float("inf")])
    assert decide(study(), seen(summary(complete=1, best=best)), NOW).status.best is None


def test_condition_times_change_with_their_status_only() -> None:
    stuck = seen(summary(0), Run(0, "starting", trouble("ImagePull", ago(1))))
    first = decide(study(), stuck, NOW).status
    later = decide(study(status=first), stuck, NOW + timedelta(seconds=60)).status
    assert later.conditions == first.conditions
    freed = decide(
        study(status=later), seen(summary(0), Run(0, "running")), NOW + timedelta(seconds=90)
    ).status
    assert find(freed.conditions, "Stalled").last_transition_time == rfc3339(NOW + timedelta(seconds=90))  # type: ignore[union-attr]


def test_several_objectives_reach_their_targets_together() -> None:
    goals = [
        {"metric": "accuracy", "direction": "maximize", "target": 0.9},
        {"metric": "latency", "direction": "minimize", "target": 10},
        {"metric": "size", "direction": "minimize"},
    ]
    half, whole = (
        trial(n, "COMPLETE", values=values) for n, values in ((1, [0.95, 11, 5]), (2, [0.91, 9, 900]))
    )
    assert (
        decide(study(objectives=goals), seen(summary(complete=1, pareto_front=[half])), NOW).status.phase
        == "Running"
    )
    both = decide(study(objectives=goals), seen(summary(complete=2, pareto_front=[half, whole])), NOW)
    assert both.status.phase == "Completed"
    assert [best.number for best in both.status.pareto_front or []] == [1, 2]


def test_the_story() -> None:
    """Events of a whole study, each turn told once."""
    told: list[tuple[str, int]] = []
    status = TuningStudyStatus()

    def turn(standing: Any, **spec: Any) -> None:
        nonlocal status
        plan = decide(study(status=status, **spec), standing, NOW)
        told.extend((event.reason, event.count) for event in plan.events)
        status = plan.status

    failed = trial(2, "FAIL", failure=trouble("OutOfMemory").failure)
    best = trial(0, "COMPLETE", values=[0.5])
    turn(seen(summary()))
    turn(seen(summary(0, 1), Run(0, "starting", trouble("ImagePull", ago(1)))))
    turn(seen(summary(1, complete=1, best=best)))
    turn(seen(summary(1, complete=1, pruned=3, best=best)))
    turn(seen(summary(1, complete=1, pruned=3, fail=1, best=best, last_failure=failed)), suspend=True)
    turn(seen(summary(1, complete=1, pruned=3, fail=1, best=best, last_failure=failed)))
    turn(seen(summary(complete=6, pruned=3, fail=1, best=best, last_failure=failed)))
    assert told == [
        ("Started", 1), ("ImagePull", 1), ("NewBest", 1), ("TrialPruned", 3), ("Suspended", 1), ("TrialFailed", 1),
        ("Resumed", 1), ("Completed", 1),
    ]  # fmt: skip
