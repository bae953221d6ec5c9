"""The same calls on Optuna's own trial and on ours: same values, types, errors, messages and warnings."""

from __future__ import annotations

import copy
import datetime as dt
import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_trainer.failure import TrialFailure
from tuning_trainer.optuna_api import distributions as dists
from tuning_trainer.optuna_api.trial import Trial
from tuning_trainer.wire.client import Client
from tuning_trainer.wire.outbox import Outbox

from tests.unit.trainer.pod import BARE, Pod
from tests.unit.trainer.twin import Twin, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Call = Callable[[Any], Any]


@pytest.fixture
def ours(twin: Twin, tmp_path: Path) -> Iterator[Callable[[], Trial]]:
    """Make our trial from the twin's record as it is then."""
    (tmp_path / "token").write_text("token-1")
    with serving(twin) as url:
        client = Client(url, str(tmp_path / "token"))
        yield lambda: Trial(client, Outbox(client), "ml/mnist", client.call("GET", "", patience=0))
        client.close()


@pytest.fixture
def theirs() -> optuna.Trial:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1)).ask()


def observe(call: Call, trial: Any) -> tuple[Any, ...]:
    """Return all that a caller can see of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = call(trial)
            seen: tuple[Any, ...] = ("value", type(value).__name__, repr(value))
        except Exception as error:  # noqa: BLE001
            seen = ("error", type(error).__name__, str(error))
    given = [(warning.category, str(warning.message)) for warning in caught]
    return (
        *seen,
        [entry for entry in given if not entry[1].endswith("of type list.")],
    )  # the twin's, as lists


def twice(*calls: Call) -> Call:
    def run(trial: Any) -> Any:
        return [call(trial) for call in calls]

    return run


CALLS: dict[str, Call] = {
    "float": lambda t: t.suggest_float("x", 0, 1),
    "float of integers": lambda t: t.suggest_float("x", 2, 2),
    "float log": lambda t: t.suggest_float("x", 1e-5, 1e-1, log=True),
    "float step": lambda t: t.suggest_float("x", 0.1, 0.9, step=0.2),
    "float step that does not divide": lambda t: t.suggest_float("x", 0.0, 1.0, step=0.3),
    "float low > high": lambda t: t.suggest_float("x", 1, 0),
    "float log with low 0": lambda t: t.suggest_float("x", 0, 1, log=True),
    "float log and step": lambda t: t.suggest_float("x", 1, 2, step=0.1, log=True),
    "float step 0": lambda t: t.suggest_float("x", 1, 2, step=0),
    "float of text": lambda t: t.suggest_float("x", "0", 1),
    "float step by position": lambda t: t.suggest_float("x", 0, 1, 0.1),
    "int": lambda t: t.suggest_int("n", 1, 10),
    "int of floats": lambda t: t.suggest_int("n", 1.0, 10.0),
    "int log": lambda t: t.suggest_int("n", 1, 1000, log=True),
    "int step": lambda t: t.suggest_int("n", 64, 256, step=64),
    "int step that does not divide": lambda t: t.suggest_int("n", 1, 10, step=4),
    "int low > high": lambda t: t.suggest_int("n", 2, 1),
    "int log with low 0": lambda t: t.suggest_int("n", 0, 2, log=True),
    "int log and step": lambda t: t.suggest_int("n", 1, 20, step=2, log=True),
    "int step -1": lambda t: t.suggest_int("n", 1, 2, step=-1),
    "categorical text": lambda t: t.suggest_categorical("c", ["a", "b", "c"]),
    "categorical bool": lambda t: t.suggest_categorical("c", [True, False]),
    "categorical int": lambda t: t.suggest_categorical("c", (16, 32, 64)),
    "categorical float": lambda t: t.suggest_categorical("c", [0.1, 1.0, 10.0]),
    "categorical None": lambda t: t.suggest_categorical("c", [None]),
    "categorical mixed": lambda t: t.suggest_categorical("c", [None, "1", 1.5, True, 7]),
    "categorical one float": lambda t: t.suggest_categorical("c", [1.0]),
    "categorical infinite": lambda t: t.suggest_categorical("c", [math.inf]),
    "categorical NaN": lambda t: t.suggest_categorical("c", [math.nan]),
    "categorical empty": lambda t: t.suggest_categorical("c", []),
    "categorical numbers of NumPy": lambda t: (
        t.suggest_categorical("i", [np.int64(3), np.int64(4)]),
        t.suggest_categorical("b", [np.bool_(False)]),
        t.suggest_categorical("f", [np.float32(0.1)]),
        t.suggest_categorical("n", [np.float32("nan")]),
        t.suggest_categorical("i", list(np.array([3, 4]))),
    ),
    "categorical tuples": lambda t: t.suggest_categorical("c", [(64,), (128, 64)]),
    "uniform": lambda t: t.suggest_uniform("x", 0, 1),
    "loguniform": lambda t: t.suggest_loguniform("x", 1e-3, 1),
    "discrete_uniform": lambda t: t.suggest_discrete_uniform("x", 0, 1, 0.25),
    "same again": twice(lambda t: t.suggest_float("x", 0, 1), lambda t: t.suggest_float("x", 0, 1)),
    "same name, other range": twice(
        lambda t: t.suggest_float("x", 0, 1), lambda t: t.suggest_float("x", 0, 2)
    ),
    "same name, other int range": twice(
        lambda t: t.suggest_int("x", 0, 1), lambda t: t.suggest_int("x", 0, 2)
    ),
    "same name, other kind": twice(lambda t: t.suggest_float("x", 1, 2), lambda t: t.suggest_int("x", 1, 2)),
    "same name, other scale": twice(
        lambda t: t.suggest_float("x", 1, 2), lambda t: t.suggest_float("x", 1, 2, log=True)
    ),
    "same name, other choices": twice(
        lambda t: t.suggest_categorical("c", ["a"]), lambda t: t.suggest_categorical("c", ["b"])
    ),
    "same name, fewer choices": twice(
        lambda t: t.suggest_categorical("c", ["a", "b"]), lambda t: t.suggest_categorical("c", ["a"])
    ),
    "params": lambda t: (t.suggest_int("n", 1, 3), t.suggest_categorical("c", [True]), t.params)[-1],
    "distributions": lambda t: (
        t.suggest_int("n", 1, 3),
        t.suggest_float("x", 0, 1, step=0.5),
        t.suggest_categorical("c", ["a", 1]),
        t.distributions,
    )[-1],
    "report": lambda t: t.report(0.5, 1),
    "report twice": twice(lambda t: t.report(0.5, 1), lambda t: t.report(0.7, 1)),
    "report NaN": lambda t: t.report(float("nan"), 1),
    "report text": lambda t: t.report("much", 1),
    "report number as text": lambda t: t.report("0.5", 1),
    "report None": lambda t: t.report(None, 1),
    "report at -1": lambda t: t.report(0.5, -1),
    "report at text": lambda t: t.report(0.5, "first"),
    "report at 1.5": lambda t: t.report(0.5, 1.5),
    "report without step": lambda t: t.report(0.5),
    "should_prune with no report": lambda t: t.should_prune(),
    "should_prune": twice(lambda t: t.report(0.5, 1), lambda t: t.should_prune()),
    "number": lambda t: t.number,
    "user attributes": lambda t: (t.set_user_attr("a", {"b": [1, None]}), t.user_attrs)[-1],
    "constraint": lambda t: (t.set_constraint("c", -1), t.constraints)[-1],
    "constraint twice": lambda t: (t.set_constraint("c", -1), t.set_constraint("c", 1), t.constraints)[-1],
    "constraint NaN": lambda t: t.set_constraint("c", float("nan")),
    "constraint text": lambda t: t.set_constraint("c", "low"),
    "isinstance": lambda t: (isinstance(t, optuna.trial.BaseTrial), isinstance(t, optuna.Trial)),
    "direction": lambda t: (t.study.direction, t.study.directions),
    "isinstance of the study": lambda t: isinstance(t.study, optuna.Study),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_the_same(name: str, ours: Callable[[], Trial], theirs: optuna.Trial) -> None:
    assert observe(CALLS[name], ours()) == observe(CALLS[name], theirs)


numbers = st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-1000, 1000)
steps = st.none() | st.floats(1e-3, 1e3) | st.integers(-1, 50)
choices = st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), max_size=5)


@given(low=numbers, high=numbers, step=steps, log=st.booleans())
def test_float_distributions_are_alike(low: float, high: float, step: float | None, log: bool) -> None:
    both = [
        observe(lambda kind: vars(kind(low, high, log=log, step=step)), kind)
        for kind in (dists.FloatDistribution, optuna.distributions.FloatDistribution)
    ]
    assert both[0] == both[1]


@given(low=numbers, high=numbers, step=st.integers(-1, 50), log=st.booleans())
def test_int_distributions_are_alike(low: float, high: float, step: int, log: bool) -> None:
    both = [
        observe(lambda kind: vars(kind(int(low), int(high), log=log, step=step)), kind)
        for kind in (dists.IntDistribution, optuna.distributions.IntDistribution)
    ]
    assert both[0] == both[1]


@given(choices)
def test_a_choice_survives_the_wire_as_itself(options: list[Any]) -> None:
    if not options:
        return
    distribution = dists.CategoricalDistribution(options)
    form = dists.from_wire(dists.to_wire(distribution))
    assert form == distribution
    for choice in options:
        found = distribution.external(choice)
        assert type(found) is type(choice)
        assert found == choice or math.isnan(choice)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=15)
@given(seed=st.integers(0, 1000))
def test_a_space_that_branches_is_sampled_alike(seed: int, tmp_path: Path) -> None:
    def objective(trial: Any) -> list[Any]:
        layers = trial.suggest_int("n_layers", 1, 3)
        units = [trial.suggest_int(f"units_{i}", 64, 256, step=64) for i in range(layers)]
        kind = trial.suggest_categorical("optimizer", ["Adam", "SGD", None, True, 2])
        rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True) if kind == "Adam" else 0
        return [
            units,
            kind,
            type(kind),
            rate,
            trial.suggest_float("dropout", 0.1, 0.5, step=0.1),
            trial.params,
        ]

    def study() -> optuna.Study:
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    (tmp_path / "token").write_text("token-1")
    twin = Twin(study())
    with serving(twin) as url:
        client = Client(url, str(tmp_path / "token"))
        mine = objective(Trial(client, Outbox(client), "s", client.call("GET", "", patience=0)))
        client.close()
    assert mine == objective(study().ask())


@pytest.mark.filterwarnings("ignore:Choices for a categorical", "ignore:set_system_attr has been deprecated")
def test_what_an_earlier_pod_did_is_there(ours: Callable[[], Trial]) -> None:
    first = ours()
    value = first.suggest_categorical("c", [(1,), (2,)])
    first.set_user_attr("a", 1)
    first.set_system_attr("s", 2)
    first.set_constraint("k", 0.5)
    first.report(0.5, 3)
    second = ours()
    assert second.user_attrs == {"a": 1}
    assert second.system_attrs == {"s": 2}
    assert second.constraints == {"k": 0.5}
    assert second.params == {"c": list(value)}
    assert second.suggest_categorical("c", [(1,), (2,)]) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.report(0.9, 3)


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
@pytest.mark.parametrize("choice", [math.inf, math.nan, "NaN", [1, -math.inf]])
def test_a_choice_that_json_lacks_is_the_same_in_the_next_pod(
    ours: Callable[[], Trial], choice: object
) -> None:
    first = ours()
    assert first.suggest_categorical("c", [choice]) is choice
    second = ours()
    assert repr(second.params) == repr({"c": choice})
    assert repr(second.distributions["c"].choices) == repr((choice,))
    assert second.suggest_categorical("c", [choice]) is choice


def test_a_declared_parameter_is_there_and_a_mismatch_names_the_manifest(
    twin: Twin, ours: Callable[[], Trial]
) -> None:
    twin.fixed = True
    twin.trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    trial = ours()
    assert trial.params == trial.relative_params == twin.trial.params
    assert trial.suggest_float("lr", 1e-5, 1e-1, log=True) == trial.params["lr"]
    assert twin.of("/suggest") == []
    with pytest.raises(ValueError, match=r"spec\.searchSpace declares lr as FloatDistribution"):
        trial.suggest_int("lr", 1, 2)
    with pytest.warns(RuntimeWarning, match="Inconsistent parameter values"):
        trial.suggest_float("lr", 1e-6, 1e-1, log=True)
    with pytest.raises(ValueError, match=r"suggests lr from .*low=1\.0.* spec\.searchSpace declares it as"):
        trial.suggest_float("lr", 1.0, 2.0, log=True)


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
@pytest.mark.parametrize("choice", [complex, "caf\udce9"])
def test_a_choice_that_is_not_json_is_an_error_with_advice(
    ours: Callable[[], Trial], twin: Twin, choice: Any
) -> None:
    says = re.escape(f"'activation' can't be recorded: its choice {choice!r}")
    with pytest.raises(TrialFailure, match=says) as no:
        ours().suggest_categorical("activation", ["relu", choice])
    assert "Choose by name" in (no.value.failure.remedy or "")
    assert twin.of("/suggest") == []


def test_an_attribute_that_is_not_json_is_an_error_with_advice(ours: Callable[[], Trial]) -> None:
    with pytest.raises(TypeError, match="Save it to a file"):
        ours().set_user_attr("model", object())


def test_the_start_is_local_time_as_in_optuna(ours: Callable[[], Trial], twin: Twin) -> None:
    started = ours().datetime_start
    assert started is not None
    assert started.tzinfo is None
    assert twin.trial.datetime_start
    assert abs(started - twin.trial.datetime_start) < dt.timedelta(milliseconds=1)


def test_frameworks_may_copy_the_trial_or_send_it_to_another_process(
    ours: Callable[[], Trial], twin: Twin
) -> None:
    trial = ours()
    assert copy.deepcopy({"trial": trial})["trial"] is trial
    x = trial.suggest_float("x", 0, 1)
    sent = pickle.loads(pickle.dumps(trial))
    assert sent is not trial
    assert sent.params == {"x": x}
    sent.report(0.5, 1)
    assert twin.study.trials[0].intermediate_values == {1: 0.5}


def test_its_storage_passes_for_a_database_that_several_processes_share(ours: Callable[[], Trial]) -> None:
    """What PyTorchLightningPruningCallback checks and does in distributed training."""
    trial = ours()
    storage = trial.study._storage
    assert isinstance(storage, optuna.storages._cached_storage._CachedStorage)
    assert isinstance(storage._backend, optuna.storages.RDBStorage)
    other = pickle.loads(pickle.dumps(trial))
    other.storage.set_trial_system_attr(other._trial_id, "ddp_pl:intermediate_value", {3: 0.5})
    other.storage.set_trial_system_attr(other._trial_id, "ddp_pl:pruned", True)
    assert other.study._storage.get_trial_system_attrs(0)["ddp_pl:intermediate_value"] == {3: 0.5}
    assert storage.get_trial_system_attrs(0) == {}
    assert storage._backend.get_trial_system_attrs(0) == {
        "ddp_pl:intermediate_value": {"3": 0.5},
        "ddp_pl:pruned": True,
    }


def test_what_belongs_to_the_whole_study_is_an_error_that_names_the_place(ours: Callable[[], Trial]) -> None:
    study = ours().study
    assert study.study_name == "ml/mnist"
    study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}
    assert not hasattr(study, "best_value")
    with pytest.raises(AttributeError, match="load_study"):
        study.best_trial  # noqa: B018


def test_warnings_point_at_the_users_line(pod: Pod, twin: Twin) -> None:
    pod.write("""
        def objective(trial):
            return trial.suggest_uniform("x", 0, 1)
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0
    assert "train.py:3: FutureWarning: suggest_uniform has been deprecated" in ended.err


def test_without_optuna_the_same_without_its_types(pod: Pod, twin: Twin) -> None:
    pod.write("""
        def objective(trial):
            trial.suggest_int("n", 1, 3)
            assert str(trial.distributions) == "{'n': IntDistribution(high=3, log=False, low=1, step=1)}"
            assert trial.study.direction.name == "MAXIMIZE"
            assert type(trial).__name__ == trial.__class__.__name__ == "Trial"
            return 1.0
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
