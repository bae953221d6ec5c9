"""Any calls in any order have the same results as Optuna's storage in memory, and Postgres holds them."""

import json
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from tuning_operator.studies.storage import PostgresStorage

DISTRIBUTIONS: dict[str, list[BaseDistribution]] = {
    "f": [FloatDistribution(-1, 1), FloatDistribution(0, 1, step=0.25)],
    "l": [FloatDistribution(1e-3, 1, log=True), FloatDistribution(1e-3, 1)],
    "i": [IntDistribution(0, 8, step=2), IntDistribution(0, 3)],
    "c": [CategoricalDistribution(["a", None, 0.5, True]), CategoricalDistribution(["a"])],
}
WINTER = datetime.fromisoformat("2026-01-05"), datetime.fromisoformat("2026-02-05")
"""Local times that are unambiguous, also where clocks change twice a year."""
numbers = st.floats(width=32) | st.sampled_from([0.0, 1e300, -1e-300])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from(["a", "b", "ä \N{PILE OF POO}", "x'\"\\%(s)s{}", ""])
params = st.sampled_from(
    [
        (name, distribution, value)
        for name, several in DISTRIBUTIONS.items()
        for distribution in several
        for value in (0.0, 1.0)
        if distribution != CategoricalDistribution(["a"]) or value == 0
    ]
)
states = st.sampled_from(list(TrialState))
values = st.none() | st.lists(numbers.filter(lambda x: not math.isnan(x)), min_size=1, max_size=2)


@st.composite
def templates(draw: st.DrawFn) -> FrozenTrial:
    state = draw(states)
    chosen = draw(st.lists(st.sampled_from(sorted(DISTRIBUTIONS)), unique=True))
    # Of other names than other parameters: in memory Optuna does not compare them, in its tables it does.
    inside = {f"given {name}": DISTRIBUTIONS[name][0] for name in chosen}
    trial = create_trial(
        state=state,
        values=[draw(numbers.filter(lambda x: not math.isnan(x)))] if state == TrialState.COMPLETE else None,
        params={
            name: kind.to_external_repr(1.0 if isinstance(kind, FloatDistribution) else 0)
            for name, kind in inside.items()
        },
        distributions=inside,
        user_attrs=draw(st.dictionaries(keys, json_values, max_size=2)),
        system_attrs=draw(st.dictionaries(keys, json_values, max_size=2)),
        intermediate_values=draw(st.dictionaries(st.integers(0, 3), numbers, max_size=3)),
    )
    trial.datetime_start = draw(st.none() | st.datetimes(*WINTER))
    return trial


trials = st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.none() | templates()),
        st.tuples(st.just("set_trial_param"), trials, params),
        st.tuples(st.just("set_trial_intermediate_value"), trials, st.integers(0, 4), numbers),
        st.tuples(st.just("set_trial_user_attr"), trials, keys, json_values),
        st.tuples(st.just("set_trial_system_attr"), trials, keys, json_values),
        st.tuples(st.just("set_trial_state_values"), trials, states, values),
        st.tuples(st.just("set_study_user_attr"), keys, json_values),
        st.tuples(st.just("set_study_system_attr"), keys, json_values),
    ),
    min_size=1,
    max_size=25,
)


class Side:
    """One of the storages that are compared, with a study."""

    def __init__(self, storage: BaseStorage, directions: list[StudyDirection]) -> None:
        self.storage = storage
        self.study_id = storage.create_new_study(directions)
        self.trials: list[int] = []

    def do(self, name: str, *args: Any) -> object:
        """Do a step; return its answer, or the error's class."""
        try:
            if name == "create":
                self.trials.append(self.storage.create_new_trial(self.study_id, *args))
                return None
            if name.startswith("set_study"):
                return getattr(self.storage, name)(self.study_id, *args)
            trial, *rest = args
            if name == "set_trial_param":
                ((param, distribution, value),) = rest
                rest = [param, value, distribution]
            return getattr(self.storage, name)(self.trials[trial], *rest)
        except Exception as error:  # noqa: BLE001  the error is what is compared
            return type(error)

    def picture(self) -> dict[str, Any]:
        """Everything that can be read of the study."""
        storage, study_id = self.storage, self.study_id
        everything = storage.get_all_trials(study_id)
        return {
            "trials": [described(trial) for trial in everything],
            "some": [t.number for t in storage.get_all_trials(study_id, states=(TrialState.WAITING,))],
            "more": [
                t.number
                for t in storage.get_all_trials(study_id, states=(TrialState.RUNNING, TrialState.PRUNED))
            ],
            "counts": [storage.get_n_trials(study_id, state) for state in TrialState],
            "user": text(storage.get_study_user_attrs(study_id)),
            "system": text(storage.get_study_system_attrs(study_id)),
        }

    def best(self) -> object:
        try:
            return self.storage.get_best_trial(self.study_id).values
        except (ValueError, RuntimeError):
            return None


def text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def described(trial: FrozenTrial) -> dict[str, object]:
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values or None,
        "params": {name: repr(value) for name, value in trial.params.items()},
        "distributions": {name: repr(value) for name, value in trial.distributions.items()},
        "intermediate": {step: repr(value + 0.0) for step, value in trial.intermediate_values.items()},
        "user": text(trial.user_attrs),
        "system": text(trial.system_attrs),
        "has_end": trial.datetime_complete is not None,
    }


def exact(trial: FrozenTrial) -> dict[str, object]:
    return described(trial) | {
        "start": trial.datetime_start,
        "end": trial.datetime_complete,
        "id": trial._trial_id,
        "order": list(trial.params),
    }


@pytest.fixture(scope="module")
def storages(_database: str) -> Iterator[tuple[PostgresStorage, RDBStorage, PostgresStorage]]:
    """The storage, plain Optuna's on the same database, and one that reads what the first wrote."""
    ours, reader = PostgresStorage(_database), PostgresStorage(_database, shard=1)
    plain = RDBStorage(_database, skip_table_creation=True)
    yield ours, plain, reader
    ours.close()
    reader.close()
    plain.remove_session()
    plain.engine.dispose()


@settings(max_examples=40, deadline=None)
@given(todo=steps, deferred=st.booleans(), two=st.booleans())
def test_as_in_memory_and_in_postgres(
    storages: tuple[PostgresStorage, RDBStorage, PostgresStorage],
    todo: list[tuple[Any, ...]],
    deferred: bool,
    two: bool,
) -> None:
    postgres, plain, reader = storages
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 2 if two else 1]
    ours, memory = Side(postgres, directions), Side(InMemoryStorage(), directions)
    if deferred:
        with postgres.deferred():
            _do_both(todo, ours, memory)
    else:
        _do_both(todo, ours, memory)
    assert ours.picture() == memory.picture()
    assert ours.best() == memory.best()
    written = [exact(trial) for trial in postgres.get_all_trials(ours.study_id)]
    assert [exact(trial) for trial in plain.get_all_trials(ours.study_id)] == written
    assert [exact(trial) for trial in reader.get_all_trials(ours.study_id)] == written
    assert text(reader.get_study_user_attrs(ours.study_id)) == ours.picture()["user"]


def _do_both(todo: list[tuple[Any, ...]], ours: Side, memory: Side) -> None:
    for step in todo:
        assert ours.do(*step) == memory.do(*step), step
