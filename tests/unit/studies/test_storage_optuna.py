"""Plain Optuna opens what we write, and we open what plain Optuna writes."""

import math
from collections.abc import Callable

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from tuning_operator.studies.storage import PostgresStorage

NewStorage = Callable[..., PostgresStorage]


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 1e-5, 1.0, log=True)
    n = trial.suggest_int("n", 1, 9, step=2)
    kind = trial.suggest_categorical("kind", ["a", None, 3, 0.5, True])
    trial.set_user_attr("note", {"tags": ["ä", 1, None], "nan": math.nan})
    trial.set_constraint("size", n - 5.0)
    for step, value in enumerate([x, math.nan, math.inf, -math.inf, -0.0]):
        trial.report(value, step)
    if trial.number == 3:
        raise optuna.TrialPruned
    if trial.number == 4:
        raise ArithmeticError
    return math.inf if trial.number == 2 else x * n + (kind is None)


def run(storage: BaseStorage, name: str) -> None:
    study = optuna.create_study(storage=storage, study_name=name, sampler=optuna.samplers.TPESampler(seed=1))
    study.set_user_attr("owner", ["me"])
    study.set_metric_names(["loss"])
    study.enqueue_trial({"x": 0.5, "n": 3}, user_attrs={"from": "user"})
    study.optimize(objective, n_trials=14, catch=(ArithmeticError,))
    study.enqueue_trial({"x": 0.25})
    study.ask()


def described(trial: FrozenTrial) -> dict[str, object]:
    """Everything about a trial; as repr, since NaN equals nothing. The tables order only parameters."""
    unordered = ("intermediate_values", "_user_attrs", "_system_attrs")
    return {
        name: repr(sorted(value.items()) if name in unordered else value)
        for name, value in vars(trial).items()
    }


def assert_same_study(one: BaseStorage, other: BaseStorage, name: str) -> None:
    first, second = (optuna.load_study(study_name=name, storage=storage) for storage in (one, other))
    for ours, theirs in zip(first.trials, second.trials, strict=True):
        assert described(ours) == described(theirs)
    assert {trial.state for trial in first.trials} > {TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING}
    assert first.best_trial.number == second.best_trial.number
    assert first.user_attrs == second.user_attrs == {"owner": ["me"]}
    assert first.metric_names == second.metric_names == ["loss"]
    assert first.directions == second.directions


def test_plain_optuna_opens_our_study(storage: PostgresStorage, plain: RDBStorage) -> None:
    run(storage, "ours")
    assert_same_study(storage, plain, "ours")


def test_we_open_plain_optunas_study(storage: PostgresStorage, plain: RDBStorage) -> None:
    run(plain, "theirs")
    assert_same_study(storage, plain, "theirs")


def test_a_restart_reads_everything_that_was_in_memory(new_storage: NewStorage) -> None:
    before = new_storage()
    run(before, "again")
    optuna.load_study(study_name="again", storage=before).ask()
    before.close()
    assert_same_study(before, new_storage(), "again")


def test_same_trials_as_in_memory(storage: PostgresStorage) -> None:
    """The storage does not change what a seeded sampler proposes."""
    run(storage, "seeded")
    memory = optuna.storages.InMemoryStorage()
    run(memory, "seeded")
    ours, theirs = (optuna.load_study(study_name="seeded", storage=each).trials for each in (storage, memory))
    assert [trial.params for trial in ours] == [trial.params for trial in theirs]


def test_several_objectives(storage: PostgresStorage, plain: RDBStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.number), n_trials=5)
    theirs = optuna.load_study(study_name="two", storage=plain)
    assert [trial.values for trial in theirs.trials] == [trial.values for trial in study.trials]
    assert [t.number for t in theirs.best_trials] == [t.number for t in study.best_trials]


def test_the_database_is_current_for_optunas_own_tools(database_url: str, storage: PostgresStorage) -> None:
    storage.wait_for_lock(240)
    plain = RDBStorage(database_url)  # checks the version, and would make tables
    assert plain.get_current_version() == plain.get_head_version()
    plain.engine.dispose()


def test_numpy_numbers_are_stored_as_numbers(storage: PostgresStorage, plain: RDBStorage) -> None:
    numpy = pytest.importorskip("numpy")
    study = optuna.create_study(storage=storage, study_name="numpy")
    trial = study.ask()
    storage.set_trial_intermediate_value(trial._trial_id, numpy.int64(3), numpy.float64(0.1))
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [numpy.float32(0.5)])
    stored = plain.get_all_trials(study._study_id)[0]
    assert stored.intermediate_values == {3: 0.1}
    assert stored.values == [0.5]
