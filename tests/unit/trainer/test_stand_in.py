"""The stand-in for images without Optuna gives the same answers as Optuna."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from tuning_trainer.optuna_api import stand_in

from tests.unit.trainer.pod import BARE, Pod

COMPLETE, PRUNED, FAIL = (optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL"))


def both_studies(
    directions: list[str], *trials: tuple[optuna.trial.TrialState, list[float] | None, dict[str, float]]
) -> tuple[Any, optuna.Study]:
    """Return the stand-in's study and Optuna's with the same trials: state, values and constraints."""
    theirs = optuna.create_study(directions=directions)
    for state, values, constraints in trials:
        theirs.add_trial(optuna.create_trial(state=state, values=values, constraints=constraints))
    ours = stand_in.create_study(directions=directions)
    ours.trials = [
        stand_in.FrozenTrial(
            one.number, stand_in.TrialState[one.state.name], {}, one.values, system_attrs=one.system_attrs
        )
        for one in theirs.trials
    ]
    return ours, theirs


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(
    "trials",
    [
        [(PRUNED, [9.0], {}), (COMPLETE, [2.0], {}), (COMPLETE, [2.0], {}), (PRUNED, [0.0], {})],
        [(COMPLETE, [9.0], {"c": 1.0}), (COMPLETE, [0.0], {"0": 0.1}), (COMPLETE, [2.0], {"c": 0.0})],
        [(COMPLETE, [9.0], {"c": 1.0})],
        [(PRUNED, [9.0], {}), (FAIL, None, {})],
    ],
)
def test_the_best_trial_is_optunas(direction: str, trials: list[Any]) -> None:
    def best(study: Any) -> Any:
        try:
            return study.best_trial.number, study.best_value
        except ValueError as error:
            return str(error)

    ours, theirs = both_studies([direction], *trials)
    assert best(ours) == best(theirs)
    assert [one.number for one in ours.best_trials] == [one.number for one in theirs.best_trials]


def test_the_trials_that_none_dominates_are_optunas() -> None:
    ours, theirs = both_studies(
        ["maximize", "minimize"],
        (COMPLETE, [0.9, 5.0], {}),
        (COMPLETE, [0.8, 6.0], {}),
        (COMPLETE, [0.7, 1.0], {"c": -1.0}),
        (COMPLETE, [0.7, 1.0], {}),
        (COMPLETE, [1.0, 0.0], {"c": 1.0}),
        (PRUNED, None, {}),
    )
    assert [one.number for one in ours.best_trials] == [one.number for one in theirs.best_trials] == [0, 2, 3]
    for study in (ours, theirs):
        with pytest.raises(RuntimeError, match="A single best trial cannot be retrieved"):
            study.best_trial  # noqa: B018
        with pytest.raises(RuntimeError, match="A single direction cannot be retrieved"):
            study.direction  # noqa: B018


def test_trials_can_be_chosen_by_state() -> None:
    ours, _ = both_studies(["minimize"], (PRUNED, [1.0], {}), (COMPLETE, [2.0], {}))
    assert [one.number for one in ours.get_trials()] == [0, 1]
    assert [one.number for one in ours.get_trials(states=(stand_in.TrialState.COMPLETE,))] == [1]
    assert ours.get_trials(deepcopy=False)[0] is ours.trials[0]
    assert ours.get_trials()[0] is not ours.trials[0]


@pytest.mark.parametrize("thing", ["study.trials_dataframe()", "study.best_trial.duration"])
def test_what_a_study_or_trial_lacks_is_named(thing: str) -> None:
    study, _ = both_studies(["minimize"], (COMPLETE, [1.0], {}))
    with pytest.raises(AttributeError, match=r"Install optuna for it\."):
        eval(thing, {"study": study})


def test_loggers_and_levels_are_optunas(pod: Pod) -> None:
    pod.write("""
        import logging, optuna, sys

        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        optuna.logging.get_logger("optuna").addHandler(logging.StreamHandler(sys.stdout))
        optuna.logging.get_logger("optuna.mine").info("to both")
        optuna.logging.disable_default_handler()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.get_logger("optuna").info("not shown")
        optuna.logging.get_logger("optuna").warning("to one")

        def objective(trial):
            return 1.0
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert ended.out.split("\n")[:2] == ["to both", "to one"], ended
    assert "to both" in ended.err
    assert "to one" not in ended.err
