# ruff: noqa: E501  a table reads best with few lines a row
"""decide, as a table: a study, what is seen of it, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from tuning_operator.kube.plan.actions import Action, Start, Stop, Tell
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.waiting import START_GRACE
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import Failure, Problem, TrialRecord
from tuning_operator.resource.study import BestTrial, Condition, TuningStudy, TuningStudyStatus
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import (
    NOW,
    ago,
    ask,
    decision,
    diagnosis,
    running_status,
    seen,
    study,
    summary,
    tell,
    trial,
)

ASK = ask(2, 10)
STOPPED = Failure(category="StoppedByUser", message="A user stopped the trial.")
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


def started(**fields: Any) -> Run:
    return Run("running", **fields)


def winner(number: int = 3, value: float = 0.99) -> TrialRecord:
    return trial(number, "COMPLETE", values=[value])


TABLE: dict[str, Row] = {
    "a new study asks for trials": Row(
        study(status=TuningStudyStatus()), seen(summary()), [ASK],
        conditions={"Accepted": ("True", "Valid"), "Stalled": ("False", "Progressing")}, requeue_after=0),
    "a trial just asked for is started": Row(
        study(), seen(summary(0, 1), {0: started()}), [Start(Trial(1))], requeue_after=0),
    "all slots taken: nothing to do": Row(
        study(), seen(summary(0, 1), {0: started(), 1: started()}), []),
    "a free slot is filled": Row(
        study(), seen(summary(1, complete=1), {1: started()}), [ASK], requeue_after=0),
    "the last trials run: none is asked for": Row(
        study(), seen(summary(9, complete=9), {9: started()}), []),
    "parallelism lowered: running ones finish": Row(
        study(parallelism=1), seen(summary(0, 1), {0: started(), 1: started()}), []),
    "a Job that ended without a result is a failure": Row(
        study(), seen(summary(0, 1), {0: Run("ended", diagnosis("OutOfMemory")), 1: started()}),
        [tell(0, "FAIL", diagnosis("OutOfMemory").failure)], requeue_after=0),
    "a deleted ConfigMap of the trainer is brought back by a start": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("TrainerMissing", LATE)), 1: started()}),
        [Start(Trial(0))], conditions={"Stalled": ("True", "TrainerMissing")}, requeue_after=0),
    "a Job that is being deleted is waited for": Row(
        study(), seen(summary(0, 1), {0: Run("stopping"), 1: started()}), []),
    "a pruned trial has its grace": Row(
        study(), seen(summary(trial(0, prune_requested=ago(10)), 1), {0: started(), 1: started()}), [], requeue_after=20),
    "a trial that ignores its pruner is ended": Row(
        study(), seen(summary(trial(0, prune_requested=ago(30)), 1), {0: started(), 1: started()}),
        [tell(0, "PRUNED"), Stop(Trial(0))], requeue_after=0),
    "a trial asked to stop whose pod died is pruned": Row(
        study(), seen(summary(trial(0, prune_requested=ago(1)), 1), {0: Run("ended", diagnosis("ExitCode")), 1: started()}),
        [tell(0, "PRUNED")], requeue_after=0),
    "a trial asked to stop gets no new Job": Row(
        study(), seen(summary(trial(0, prune_requested=ago(1)), 1), {1: started()}), [tell(0, "PRUNED")], requeue_after=0),
    "an unpullable image is reported at once": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("ImagePull", ago(1))), 1: started()}), [],
        conditions={"Stalled": ("True", "ImagePull")}, requeue_after=START_GRACE.total_seconds() - 1),
    "an unpullable image frees its slot after a while": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("ImagePull", LATE)), 1: started()}),
        [tell(0, "FAIL", diagnosis("ImagePull").failure), Stop(Trial(0))],
        conditions={"Stalled": ("True", "ImagePull")}, requeue_after=0),
    "an impossible request waits for an autoscaler": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Unschedulable", LATE)), 1: started()}), [],
        conditions={"Stalled": ("True", "Unschedulable")}),
    "a pod that waits for its GPU while others run does not stall the study": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Capacity", LATE)), 1: started()}), [],
        conditions={"Stalled": ("False", "Capacity")}),
    "a GPU that is freed in a moment is not reported": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Capacity", ago(10))), 1: Run("starting")}), [],
        conditions={"Stalled": ("False", "Progressing")}, requeue_after=20),
    "no free GPU at all is reported": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Capacity", ago(60))), 1: Run("starting")}), [],
        conditions={"Stalled": ("True", "Capacity")}),
    "a Job in a queue is reported when nothing else runs": Row(
        study(), seen(summary(0), {0: Run("starting", diagnosis("Queued", ago(60)))}), [ASK], phase="Pending",
        conditions={"Stalled": ("True", "Queued")}, requeue_after=0),
    "a Job in a queue while others run does not stall the study": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Queued", LATE)), 1: started()}), [],
        conditions={"Stalled": ("False", "Queued")}),
    "a run that has not started and is not what the spec says now is replaced": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Quota", LATE), outdated=True), 1: started()}),
        [Stop(Trial(0))], conditions={"Stalled": ("True", "Quota")}, requeue_after=0),
    "a run that has started is left alone when the spec changes": Row(
        study(), seen(summary(0, 1), {0: started(outdated=True), 1: started()}), []),
    "a trial that a user has stopped ends": Row(
        study(), seen(summary(0, 1), {0: started(stop_requested=True), 1: started()}),
        [tell(0, "PRUNED", STOPPED), Stop(Trial(0))], requeue_after=0),
    "a trial that a user has stopped before it started ends": Row(
        study(), seen(summary(0, 1), {0: Run("starting", stop_requested=True), 1: started()}),
        [tell(0, "PRUNED", STOPPED), Stop(Trial(0))], requeue_after=0),
    "a stopped trial whose run is going already only ends": Row(
        study(), seen(summary(0, 1), {0: Run("stopping", stop_requested=True), 1: started()}),
        [tell(0, "PRUNED", STOPPED)], requeue_after=0),
    "no trial can start": Row(
        study(), seen(summary(0, 1), {n: Run("starting", diagnosis("Unschedulable", LATE)) for n in (0, 1)}), [],
        phase="Pending", conditions={"Stalled": ("True", "Unschedulable")}),
    "no trial can start any more": Row(
        study(), seen(summary(2, 3, complete=2), {n: Run("starting", diagnosis("Quota", LATE)) for n in (2, 3)}), [],
        conditions={"Stalled": ("True", "Quota")}),
    "a quota is waited for": Row(
        study(), seen(summary(0, 1), {0: Run("starting", diagnosis("Quota", LATE)), 1: started()}), [],
        conditions={"Stalled": ("True", "Quota")}),
    "a finished trial's Job may take a while to exit": Row(
        study(), seen(summary(1, 2, complete=1), {0: started(lingering_since=ago(5)), 1: started(), 2: started()}), [],
        requeue_after=25),
    "a finished trial's Job must not linger": Row(
        study(), seen(summary(1, 2, complete=1), {0: started(lingering_since=ago(30)), 1: started(), 2: started()}),
        [Stop(Trial(0))], requeue_after=0),
    "suspended: running ones finish, none is asked for": Row(
        study(suspend=True), seen(summary(0, complete=3), {0: started()}), [], phase="Suspended",
        conditions={"Suspended": ("True", "Suspended")}),
    "suspended between ask and start: the trial gets its Job": Row(
        study(suspend=True), seen(summary(0, complete=3)), [Start(Trial(0))], phase="Suspended", requeue_after=0),
    "suspended: the timeout does not run": Row(
        study(suspend=True, timeout="1m", status=running_status(3600)), seen(summary()), [], phase="Suspended"),
    "refused: nothing is asked for, running trials are looked after": Row(
        study(), seen(summary(0, 1), {0: Run("ended", diagnosis("ExitCode"))}, problems=(Problem(field="x", message="y"),)),
        [tell(0, "FAIL", diagnosis("ExitCode").failure), Start(Trial(1))], phase="Pending",
        conditions={"Accepted": ("False", "Invalid")}, requeue_after=0),
    "refused from the first: nothing happens": Row(
        study(status=TuningStudyStatus()), seen(None, problems=(Problem(field="sampler.args.sede", message="no such"),)),
        [], phase="Pending", conditions={"Accepted": ("False", "Invalid"), "Stalled": ("False", "NotAccepted")},
        requeue_after=30),
    "refused for a study that is not there yet": Row(
        study(warmStart={"study": "earlier"}), seen(None, problems=(Problem(field="warmStart.study", message="none"),)),
        [], phase="Pending", conditions={"Accepted": ("False", "Invalid")}, requeue_after=30),
    "maxTrials finished": Row(
        study(), seen(summary(complete=7, pruned=2, fail=1)), [], phase="Completed",
        conditions={"Complete": ("True", "MaxTrialsReached")}),
    "maxTrials lowered below what has finished: the rest is stopped": Row(
        study(maxTrials=3), seen(summary(3, complete=3), {3: started()}), [], phase="Completed", requeue_after=0),
    "too many failures": Row(
        study(maxFailedTrials=1), seen(summary(2, fail=2, recent_failures=[trial(1, "FAIL", failure=diagnosis("A").failure)]), {2: started()}), [], phase="Failed", conditions={"Failed": ("True", "TooManyFailedTrials")}, requeue_after=0),
    "as many failures as are allowed": Row(
        study(maxFailedTrials=2), seen(summary(2, 3, fail=2), {2: started(), 3: started()}), []),
    "nothing but failures is no success": Row(
        study(maxTrials=3), seen(summary(fail=3)), [], phase="Failed", conditions={"Failed": ("True", "AllTrialsFailed")}),
    "target reached": Row(
        study(objectives=[{"metric": "accuracy", "direction": "maximize", "target": 0.99}]),
        seen(summary(4, complete=1, best=winner()), {4: started()}), [], phase="Completed",
        conditions={"Complete": ("True", "TargetReached")}, requeue_after=0),
    "target not reached": Row(
        study(objectives=[{"metric": "accuracy", "direction": "maximize", "target": 0.991}]),
        seen(summary(4, 5, complete=1, best=winner()), {4: started(), 5: started()}), []),
    "target of 0, minimized": Row(
        study(objectives=[{"metric": "loss", "direction": "minimize", "target": 0}]),
        seen(summary(4, 5, complete=1, best=winner(value=0.1)), {4: started(), 5: started()}), []),
    "no improvement": Row(
        study(maxTrialsWithoutImprovement=3), seen(summary(complete=4, best=winner(0), trials_since_best=3)), [],
        phase="Completed", conditions={"Complete": ("True", "NoImprovement")}),
    "a sampler that has tried all there is: the last trial is waited for": Row(
        study(), seen(summary(3, complete=3, exhausted=True), {3: started()}), []),
    "a sampler whose trials have all failed": Row(
        study(), seen(summary(fail=4, exhausted=True)), [], phase="Failed",
        conditions={"Failed": ("True", "AllTrialsFailed")}),
    "a sampler that has tried all there is": Row(
        study(), seen(summary(complete=4, exhausted=True)), [], phase="Completed",
        conditions={"Complete": ("True", "SearchSpaceExhausted")}),
    "timeout": Row(
        study(timeout="1m", status=running_status(60)), seen(summary(0, complete=1), {0: started()}), [], phase="Completed",
        conditions={"Complete": ("True", "TimeoutReached")}, requeue_after=0),
    "maxGpuHours, with what the running trial has used": Row(
        study(maxGpuHours=2),
        seen(summary(trial(0, started=ago(1800)), complete=1, durations={"complete": 5400}), {0: started()}), [],
        phase="Completed", conditions={"Complete": ("True", "GpuHoursUsed")}, requeue_after=0),
    "before maxGpuHours: two trials of one GPU use the rest in half the time": Row(
        study(maxGpuHours=2),
        seen(summary(trial(0, started=ago(60)), trial(1, started=ago(60)), complete=1, pruned=1, fail=1,
                     durations={"complete": 3600, "pruned": 1800, "fail": 600}), {0: started(), 1: started()}),
        [], requeue_after=(7200 - 6000 - 120) / 2),
    "before the timeout": Row(
        study(timeout="1m", status=running_status(50)), seen(summary(0, 1), {0: started(), 1: started()}), [], requeue_after=10),
}  # fmt: skip

ENDS_RUNNING = {
    "maxTrials lowered below what has finished: the rest is stopped": 3,
    "too many failures": 2,
    "target reached": 4,
    "timeout": 0,
    "maxGpuHours, with what the running trial has used": 0,
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    plan = decision(row.study, row.seen, NOW)
    actions = list(plan.actions)
    if name in ENDS_RUNNING:  # the message is another test's
        number = ENDS_RUNNING[name]
        assert [type(a) for a in actions] == [Tell, Stop]
        assert isinstance(actions[0], Tell)
        assert (actions[0].work, actions[0].request.state) == (Trial(number), "PRUNED")
        assert actions[0].request.failure is not None
        assert actions[0].request.failure.category == "StudyEnded"
        assert actions[1] == Stop(Trial(number))
    else:
        assert actions == row.actions
    assert plan.status.phase == row.phase
    assert plan.requeue_after == row.requeue_after
    for kind, expected in row.conditions.items():
        condition = find(plan.status.conditions, kind)
        assert condition is not None, kind
        assert (condition.status, condition.reason) == expected


def after(old: TuningStudy, observed: Observation, seconds: float = 0, **spec: Any) -> TuningStudyStatus:
    """The status after another pass over a study with the same status and another spec."""
    changed = study(status=old.status, generation=2, **spec)
    return decision(changed, observed, NOW + timedelta(seconds=seconds)).status


def ended(reason: str = "MaxTrialsReached", **fields: Any) -> TuningStudyStatus:
    condition = Condition(type="Complete", status="True", reason=reason, message="", last_transition_time="")
    times = {"start_time": rfc3339(ago(7200)), "completion_time": rfc3339(ago(3600))}
    return TuningStudyStatus(phase="Completed", conditions=[condition], **times, **fields)


def test_a_raised_max_trials_resumes_with_a_new_start() -> None:
    done = study(status=ended(), maxTrials=12, timeout="2h")
    plan = decision(done, seen(summary(complete=10)), NOW)
    assert plan.actions == (ask(2, 12),)
    assert plan.status.phase == "Running"
    assert plan.status.start_time == rfc3339(NOW)
    assert plan.status.completion_time is None
    assert find(plan.status.conditions, "Complete").status == "False"  # type: ignore[union-attr]
    assert [event.reason for event in plan.events if event.reason in ("Resumed", "Started")] == ["Resumed"]


def test_an_ended_study_stays_as_it_is() -> None:
    first = decision(study(maxTrials=3), seen(summary(complete=3)), NOW).status
    again = decision(study(maxTrials=3, status=first), seen(summary(complete=3)), NOW + timedelta(hours=9))
    assert again.status == first
    assert again.actions == ()
    assert again.events == ()


def test_a_timeout_holds_until_it_is_raised_above_what_the_study_ran() -> None:
    status = ended("TimeoutReached")
    for spec, phase in ((("1h", 10), "Completed"), (("1h", 99), "Completed"), (("61m", 10), "Running")):
        timeout, max_trials = spec
        again = decision(
            study(status=status, timeout=timeout, maxTrials=max_trials), seen(summary(complete=1)), NOW
        )
        assert again.status.phase == phase, spec


def test_a_study_that_timed_out_stays_completed_when_it_is_suspended() -> None:
    """Until its timeout is raised, as without `suspend`."""
    for timeout, phase in (("1h", "Completed"), ("61m", "Suspended")):
        spec = study(status=ended("TimeoutReached"), timeout=timeout, suspend=True)
        again = decision(spec, seen(summary(complete=1)), NOW)
        assert (again.status.phase, again.actions) == (phase, ()), timeout


def test_trials_that_wait_for_their_gpus_use_none() -> None:
    """In a queue, or until the cluster has another node; one whose node pulls its image has its GPU."""
    record = summary(*(trial(n, started=ago(1200)) for n in range(8)))
    waits = {n: Run("starting", diagnosis("Queued", ago(1190))) for n in range(8)}
    queued = decision(study(maxGpuHours=1, parallelism=8), seen(record, waits), NOW)
    assert (queued.plan.verdict, queued.actions, queued.requeue_after) == (None, (), None)
    stopping = decision(
        study(maxGpuHours=1, parallelism=8), seen(record, {n: Run("stopping") for n in range(8)}), NOW
    )
    assert stopping.plan.verdict is None, "Jobs that wait are replaced if the template changes"
    two = {**waits, 0: started(), 1: Run("starting", has_node=True)}
    running = decision(study(maxGpuHours=1, parallelism=8), seen(record, two), NOW)
    assert (running.plan.verdict, running.actions, running.requeue_after) == (None, (), (3600 - 2400) / 2)


def test_max_gpu_hours_stay_reached_until_they_are_raised() -> None:
    """The study server measures the time of a trial when it ends; its clock may be behind the operator's."""

    def spent(hours: float) -> Observation:
        return seen(summary(complete=1, durations={"complete": 3600 * hours}))

    over = decision(study(maxGpuHours=2), spent(2), NOW).status
    for allowed, hours, phase in ((2, 1.99, "Completed"), (2.5, 1.99, "Running"), (1.5, 1.99, "Completed")):
        again = decision(study(status=over, maxGpuHours=allowed), spent(hours), NOW)
        assert again.status.phase == phase, allowed
    resumed = decision(study(status=over, maxGpuHours=3), spent(1.99), NOW).status
    lowered = decision(study(status=resumed, maxGpuHours=2), spent(1.99), NOW).status
    assert lowered.phase == "Running"
    without = decision(study(status=over), spent(1.99), NOW).status
    assert without.phase == "Running"


def test_suspension_sets_the_clock_back() -> None:
    suspended = running_status(7200, phase="Suspended")
    plan = decision(study(status=suspended, timeout="1h"), seen(summary(complete=1)), NOW)
    assert plan.status.phase == "Running"
    assert plan.status.start_time == rfc3339(NOW)
    assert [event.reason for event in plan.events] == ["Resumed"]


NO_ROOM = seen(summary(0), {0: Run("starting", diagnosis("Capacity", LATE))})
REFUSED = seen(summary(complete=1), problems=(Problem(field="sampler.args", message="no"),))


@pytest.mark.parametrize("observed", [NO_ROOM, REFUSED], ids=["no free GPUs", "refused"])
@pytest.mark.parametrize(
    ("status", "timeout"), [(running_status(7200, phase="Suspended"), "1h"), (ended("TimeoutReached"), "2h")]
)
def test_a_study_that_resumes_but_cannot_start_yet_has_a_new_start(
    observed: Observation, status: TuningStudyStatus, timeout: str
) -> None:
    first = decision(study(status=status, timeout=timeout), observed, NOW)
    assert first.status.phase == "Pending"
    assert first.status.start_time == rfc3339(NOW)
    assert "Resumed" in [event.reason for event in first.events]
    later = NOW + timedelta(minutes=30)
    again = decision(study(status=first.status, timeout=timeout), observed, later)
    assert again.plan.verdict is None
    freed = seen(summary(0, complete=1), {0: started()})
    running = decision(study(status=again.status, timeout=timeout), freed, later)
    assert (running.status.phase, running.status.start_time) == ("Running", rfc3339(NOW))
    assert running.events == ()


def test_a_study_that_never_started_has_no_start_until_it_does() -> None:
    """It was created suspended, and its spec is refused when it is resumed."""
    pending = decision(study(status=TuningStudyStatus(phase="Suspended")), REFUSED, NOW).status
    assert (pending.phase, pending.start_time) == ("Pending", None)
    begun = decision(study(status=pending), seen(summary(complete=1)), NOW)
    assert begun.status.start_time == rfc3339(NOW)
    assert [event.reason for event in begun.events] == ["Started"]


def test_a_refused_edit_leaves_the_clock_alone() -> None:
    running = study(status=running_status(100))
    refused = seen(summary(complete=1), problems=(Problem(field="sampler.args", message="no"),))
    start = running.status.start_time
    pending = decision(running, refused, NOW).status
    assert pending.phase == "Pending"
    assert decision(study(status=pending), seen(summary(complete=1)), NOW).status.start_time == start


def test_status_has_counts_and_the_best() -> None:
    best = trial(3, "COMPLETE", values=[0.98], parameters={"x": 0.5, "kind": "relu", "layers": [8, 4]})
    runs = {6: Run("running"), 7: Run("running"), 8: Run("starting")}
    status = decision(
        study(), seen(summary(6, 7, 8, 9, complete=4, pruned=2, fail=1, best=best), runs), NOW
    ).status
    assert status.progress == "7/10"
    assert status.trials is not None
    counts = {"total": 11, "pending": 2, "running": 2, "complete": 4, "pruned": 2, "failed": 1}
    assert status.trials.model_dump(exclude_none=True) == counts
    assert status.best == BestTrial(
        number=3, values=[0.98], parameters={"x": 0.5, "kind": "relu", "layers": "[8, 4]"}
    )


def test_status_has_a_short_best_value_for_kubectl_get() -> None:
    best = winner(value=0.9822221994400024)
    assert decision(study(), seen(summary(complete=1, best=best)), NOW).status.best_value == "0.982222"
    two = [{"metric": metric, "direction": "maximize"} for metric in "ab"]
    front = [trial(number, "COMPLETE", values=[1, number]) for number in range(3)]
    found = decision(study(objectives=two), seen(summary(complete=3, pareto_front=front)), NOW).status
    assert found.best_value == "front of 3", "of a study server that does not send the size"
    large = decision(
        study(objectives=two), seen(summary(complete=90, pareto_front=front, front_size=80)), NOW
    ).status
    assert large.best_value == "front of 80"
    away = decision(study(objectives=two, status=large), seen(None), NOW).status
    assert away.best_value == "front of 80"
    assert decision(study(), seen(summary()), NOW).status.best_value is None


def test_a_large_front_leaves_room_in_the_object() -> None:
    """A define-by-run study may have hundreds of parameters; etcd refuses objects of more than 1.5 MiB."""
    two = [{"metric": "a", "direction": "maximize"}, {"metric": "b", "direction": "minimize"}]
    parameters = {f"layer_{number:03}_activation_function": "relu_with_some_name" for number in range(600)}
    front = [
        trial(number, "COMPLETE", values=[number, number], parameters=parameters) for number in range(50)
    ]
    many = summary(complete=60, pareto_front=front, front_size=55)
    found = decision(study(objectives=two, searchSpace=None), seen(many), NOW).status
    assert len(found.model_dump_json()) < 300_000
    numbers = [best.number for best in found.pareto_front or []]
    assert len(numbers) > 5
    assert numbers == [*range(len(numbers) - 1), 49], "the best in each objective, and the first ones"
    assert found.best_value == "front of 55"


def test_status_has_the_last_transition() -> None:
    before = decision(study(), seen(summary()), NOW).status
    assert before.last_transition_time == rfc3339(NOW)
    later = NOW + timedelta(minutes=1)
    same = decision(study(status=before), seen(summary()), later).status
    assert same.last_transition_time == rfc3339(NOW)
    suspended = decision(study(status=before, suspend=True), seen(summary()), later).status
    assert suspended.last_transition_time == rfc3339(later)


def test_an_infinite_best_value_does_not_break_the_status() -> None:
    best = trial(0, "COMPLETE", values=[float("inf")])
    assert decision(study(), seen(summary(complete=1, best=best)), NOW).status.best is None


def test_too_many_failures_names_the_last_ones() -> None:
    categories = {1: "OutOfMemory", 0: "OutOfMemory", 3: "ExitCode", 2: "Exception"}
    failures = [trial(n, "FAIL", failure=diagnosis(c).failure) for n, c in categories.items()]
    failed = decision(study(maxFailedTrials=3), seen(summary(fail=4, recent_failures=failures)), NOW)
    condition = find(failed.status.conditions, "Failed")
    assert condition
    assert condition.message == (
        "4 trials failed, maxFailedTrials allows 3. Trial 2 (Exception): it is so. Fix it. Before it: "
        "OutOfMemory (trials 0, 1), ExitCode (trial 3). Fix the cause, then raise maxFailedTrials to continue."
    )


def test_failures_that_the_script_catches_do_not_count_as_too_many() -> None:
    caught = trial(3, "FAIL", failure=diagnosis("Caught").failure)
    failures = [trial(2, "FAIL", failure=diagnosis("OutOfMemory").failure), caught]
    many = summary(fail=12, caught=11, complete=1, recent_failures=failures)
    assert decision(study(maxFailedTrials=1, maxTrials=20), seen(many), NOW).status.phase == "Running"
    failed = decision(study(maxFailedTrials=0, maxTrials=20), seen(many), NOW)
    condition = find(failed.status.conditions, "Failed")
    assert condition
    assert condition.message == (
        "1 trial failed, maxFailedTrials allows 0. Trial 2 (OutOfMemory): it is so. Fix it. "
        "Fix the cause, then raise maxFailedTrials to continue."
    )


def test_a_search_space_whose_trials_have_all_failed_can_only_be_tried_from_scratch() -> None:
    failed = decision(study(), seen(summary(fail=4, exhausted=True)), NOW)
    condition = find(failed.status.conditions, "Failed")
    assert condition
    assert "raise maxTrials" not in condition.message
    assert "apply it again with existingRecord: Replace" in condition.message
    local = study()
    local.metadata["namespace"] = "local"
    condition = find(decision(local, seen(summary(fail=4, exhausted=True)), NOW).status.conditions, "Failed")
    assert condition
    assert "delete the study (tuning rm mnist) and run it again" in condition.message
    assert "existingRecord" not in condition.message


def test_each_failed_trial_has_its_own_event() -> None:
    def events(before: int, *numbers: int) -> list[tuple[str, str]]:
        status = decision(study(), seen(summary(fail=before)), NOW).status
        failures = [
            trial(n, "FAIL", failure=diagnosis("Exception", message=f"boom {n}").failure) for n in numbers
        ]
        after = seen(summary(fail=before + len(numbers), recent_failures=failures[-10:]))
        found = decision(study(status=status, maxFailedTrials=100), after, NOW).events
        return [(event.key, event.message) for event in found if event.reason == "TrialFailed"]

    assert events(0) == []
    assert events(1, 3) == [("3", "Trial 3 (Exception): boom 3. Fix it.")]
    assert [key for key, _ in events(1, 3, 2)] == ["3", "2"]
    assert [key for key, _ in events(0, *range(30))] == [str(n) for n in range(20, 30)], (
        "as many as are known"
    )


def test_condition_times_change_with_their_status_only() -> None:
    stuck = seen(summary(0), {0: Run("starting", diagnosis("ImagePull", ago(1)))})
    first = decision(study(), stuck, NOW).status
    later = decision(study(status=first), stuck, NOW + timedelta(seconds=60)).status
    assert later.conditions == first.conditions
    freed = decision(
        study(status=later), seen(summary(0), {0: Run("running")}), NOW + timedelta(seconds=90)
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
        decision(study(objectives=goals), seen(summary(complete=1, pareto_front=[half])), NOW).status.phase
        == "Running"
    )
    both = decision(study(objectives=goals), seen(summary(complete=2, pareto_front=[half, whole])), NOW)
    assert both.status.phase == "Completed"
    assert [best.number for best in both.status.pareto_front or []] == [1, 2]


def test_the_events() -> None:
    """Events of a whole study, each change recorded once."""
    recorded: list[tuple[str, int, bool]] = []
    status = TuningStudyStatus()

    def turn(observed: Any, **spec: Any) -> None:
        nonlocal status
        plan = decision(study(status=status, **spec), observed, NOW)
        recorded.extend((event.reason, event.count, event.warning) for event in plan.events)
        status = plan.status

    failed = trial(2, "FAIL", failure=diagnosis("OutOfMemory").failure)
    best = trial(0, "COMPLETE", values=[0.5])
    turn(seen(summary()))
    turn(seen(summary(0, 1), {0: Run("starting", diagnosis("ImagePull", ago(1)))}))
    turn(seen(summary(1, complete=1, best=best)))
    turn(seen(summary(1, complete=1, pruned=3, best=best)))
    turn(seen(summary(1, complete=1, pruned=3, fail=1, best=best, recent_failures=[failed])), suspend=True)
    turn(seen(summary(1, complete=1, pruned=3, fail=1, best=best, recent_failures=[failed])))
    turn(seen(summary(complete=6, pruned=3, fail=1, best=best, recent_failures=[failed])))
    refused = (Problem(field="sampler.args", message="no"),)
    turn(seen(summary(complete=6, pruned=3, fail=1, best=best, recent_failures=[failed]), problems=refused))
    turn(
        seen(summary(complete=6, pruned=3, fail=2, best=best, recent_failures=[failed])),
        maxTrials=20,
        maxFailedTrials=1,
    )
    normal, warning = False, True
    assert recorded == [
        ("Started", 1, normal), ("ImagePull", 1, warning), ("NewBest", 1, normal), ("TrialPruned", 3, normal),
        ("Suspended", 1, normal), ("TrialFailed", 1, warning), ("Resumed", 1, normal), ("Completed", 1, normal),
        ("Refused", 1, warning), ("TrialFailed", 1, warning), ("Failed", 1, warning),
    ]  # fmt: skip
