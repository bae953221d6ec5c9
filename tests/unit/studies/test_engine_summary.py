"""The summary, kept trial by trial, agrees with what Optuna finds in the whole study."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from tuning_operator.protocol import Counts, Failure
from tuning_operator.studies.study.records import COPIED_FROM, failure_attrs
from tuning_operator.studies.study.scoreboard import FRONT_SIZE, Scoreboard

VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("inf"), float("-inf")])
ENDINGS = st.sampled_from(
    [TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
)
CONSTRAINTS = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5]))


@st.composite
def studies(draw: st.DrawFn) -> optuna.Study:
    """Draw a study whose trials ended in the order of their numbers."""
    count = draw(st.integers(1, 3))
    directions = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=count, max_size=count))
    study = optuna.create_study(directions=directions)
    for _ in range(draw(st.integers(0, 12))):
        constraint = draw(CONSTRAINTS)
        state = draw(ENDINGS)
        study.add_trial(
            create_trial(
                state=state,
                values=[draw(VALUES) for _ in range(count)] if state == TrialState.COMPLETE else None,
                system_attrs={} if constraint is None else {"constraints:c": constraint},
            )
        )
    return study


def no_targets(study: optuna.Study) -> list[float | None]:
    return [None] * len(study.directions)


def scoreboard(study: optuna.Study, trials: list[FrozenTrial] | None = None) -> Scoreboard:
    board = Scoreboard(study.directions)
    board.note_all(study.trials if trials is None else trials)
    return board


def best_of(study: optuna.Study) -> int | None:
    try:
        return study.best_trial.number
    except ValueError:
        return None


@given(studies())
@settings(deadline=None)
def test_the_summary_is_optunas(study: optuna.Study) -> None:
    summary = scoreboard(study).summary([], no_targets(study), exhausted=False)
    states = [trial.state for trial in study.trials]
    assert dict(summary.counts) == {"copied": 0} | {
        state.name.lower(): states.count(state) for state in TrialState
    }
    for state, seconds in dict(summary.durations).items():
        ended = [t.duration for t in study.trials if t.duration and t.state.name == state.upper()]
        assert seconds == pytest.approx(sum(duration.total_seconds() for duration in ended))
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    failed.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    assert [t.number for t in summary.recent_failures] == [t.number for t in failed[-10:]]
    front = [trial.number for trial in summary.pareto_front]
    if len(study.directions) > 1:
        assert front == [trial.number for trial in study.best_trials]
        assert summary.front_size == len(front)
        assert summary.best is None
        return
    best = best_of(study)
    assert (summary.best.number if summary.best else None) == best
    later = [t for t in study.trials if t.state == TrialState.COMPLETE and (best is None or t.number > best)]
    assert summary.trials_since_best == len(later)
    assert front == []


@given(studies())
@settings(deadline=None)
def test_trials_noted_one_by_one_make_the_same_summary(study: optuna.Study) -> None:
    one_by_one = Scoreboard(study.directions)
    for trial in study.trials:
        started = FrozenTrial(**{**vars_of(trial), "state": TrialState.RUNNING, "values": None})
        one_by_one.note(started)
        one_by_one.note(trial)
        one_by_one.note(trial)
    assert one_by_one.summary([], no_targets(study), exhausted=True) == scoreboard(study).summary(
        [], no_targets(study), exhausted=True
    )
    assert one_by_one.running == [t.number for t in study.trials if t.state == TrialState.RUNNING]


def test_the_front_is_capped() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for number in range(FRONT_SIZE + 10):
        study.add_trial(create_trial(values=[number, number]))
    summary = scoreboard(study).summary([], no_targets(study), exhausted=False)
    lowest = range(FRONT_SIZE - 1)
    front = [trial.number for trial in summary.pareto_front]
    assert front == [*lowest, FRONT_SIZE + 9], "the best in each is there"
    assert summary.front_size == FRONT_SIZE + 10


def test_a_trial_that_reaches_all_targets_is_not_cut_off() -> None:
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    for number in range(FRONT_SIZE + 10):
        study.add_trial(create_trial(values=[number, number, 0]))
    at, last = FRONT_SIZE + 5.0, FRONT_SIZE + 9
    for targets, kept in (
        ([at, at, None], [FRONT_SIZE + 5, last]),
        ([None, at, None], [FRONT_SIZE + 5, last]),
        ([at, None, None], [FRONT_SIZE - 2, last]),
        ([at - 1, at, None], [FRONT_SIZE - 2, last]),
    ):
        front = scoreboard(study).summary([], targets, exhausted=False).pareto_front
        assert [trial.number for trial in front][-2:] == kept


def test_best_is_the_first_to_complete_of_equals() -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.ask()
    study.tell(1, 1.0)
    study.tell(0, 1.0)
    summary = scoreboard(study).summary([], no_targets(study), exhausted=False)
    assert summary.best
    assert (summary.best.number, summary.trials_since_best) == (1, 1)


def test_copies_may_be_the_best_and_are_not_counted_otherwise() -> None:
    study = optuna.create_study()
    copy = {"system_attrs": {COPIED_FROM: {"study": "ml/old", "trial": 7}}}
    for value in (2.0, 1.0, 3.0):
        study.add_trial(create_trial(value=value, **copy))
    study.add_trial(create_trial(state=TrialState.PRUNED, **copy))
    board = scoreboard(study)
    summary = board.summary([], no_targets(study), exhausted=False)
    assert summary.best
    assert (summary.best.number, summary.trials_since_best) == (1, 0)
    assert summary.counts == Counts(copied=4)
    assert (board.started, board.total) == (0, 4)
    study.add_trial(create_trial(value=1.5))
    for trial in study.trials:
        board.note(trial)
    assert board.summary([], no_targets(study), exhausted=False).trials_since_best == 1
    assert board.counts == Counts(complete=1, copied=4)
    assert (board.started, board.total) == (1, 5)


def test_failures_that_the_script_catches_are_counted() -> None:
    study = optuna.create_study()
    for category in ("Caught", "Exception", "Caught"):
        attributes = failure_attrs(Failure(category=category, message="ValueError: too narrow"))
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
    study.add_trial(create_trial(state=TrialState.FAIL))
    summary = scoreboard(study).summary([], no_targets(study), exhausted=False)
    assert (summary.caught, summary.counts) == (2, Counts(fail=4))


def vars_of(trial: FrozenTrial) -> dict[str, object]:
    return {
        "number": trial.number,
        "trial_id": trial._trial_id,
        "value": None,
        "datetime_start": trial.datetime_start,
        "datetime_complete": None,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
    }


def test_records_of_running_trials_are_made_again_only_for_trials_that_changed() -> None:
    study = optuna.create_study()
    running = [study.ask() for _ in range(2)]
    board = scoreboard(study)
    first = board.summary(study.get_trials(deepcopy=False), no_targets(study), exhausted=False).running
    running[1].suggest_float("lr", 0, 1)
    study.tell(running[0], 1.0)
    trials = study.get_trials(deepcopy=False)
    ended, changed = board.summary(trials, no_targets(study), exhausted=False).running
    assert (ended.state, changed.parameters) == ("COMPLETE", running[1].params)
    kept = board.summary(trials[1:], no_targets(study), exhausted=False).running
    assert kept[0] is changed
    assert first[0].state == "RUNNING"
