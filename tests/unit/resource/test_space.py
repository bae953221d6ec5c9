"""What is wrong with a search space, and the walk through it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter

LR = {"name": "lr", "type": "float", "low": 1e-5, "high": 0.1, "log": True}
LAYERS = {"name": "layers", "type": "int", "low": 1, "high": 3}
UNITS = {"name": "units", "type": "int", "low": 64, "high": 256, "step": 64}
DROPOUT = {"name": "dropout", "type": "float", "low": 0, "high": 0.5, "step": 0.1}
OPTIMIZER = {"name": "optimizer", "type": "categorical", "choices": ["Adam", "SGD"]}
NESTEROV = {"name": "nesterov", "type": "categorical", "choices": [True, False, None]}
DEEP = UNITS | {"when": {"parameter": "layers", "atLeast": 2}}
MOMENTUM = {"name": "momentum", "type": "float", "low": 0, "high": 1}
ALL = [LR, LAYERS, DEEP, DROPOUT, OPTIMIZER, NESTEROV]


def parsed(*parameters: dict[str, Any]) -> list[Parameter]:
    return [Parameter.model_validate(parameter) for parameter in parameters]


def flaws(parameters: list[dict[str, Any]], *initial: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(flaw) for flaw in space.problems(parsed(*parameters), initial)]


def when(**comparison: Any) -> dict[str, Any]:
    return MOMENTUM | {"when": comparison}


GOOD_SPACES = [
    ALL,
    [OPTIMIZER, when(parameter="optimizer", equals="SGD")],
    [LAYERS, when(parameter="layers", anyOf=[1, 3.0])],
    [DROPOUT, when(parameter="dropout", equals=0.3)],
    [LR, when(parameter="lr", atMost=1e-5)],
    [NESTEROV, when(parameter="nesterov", equals=None)],
    [NESTEROV, when(parameter="nesterov", equals=False)],
    [NESTEROV, when(parameter="nesterov", anyOf=[None, True])],
    [{"name": "one", "type": "float", "low": 1, "high": 1}],
    [{"name": "mixed", "type": "categorical", "choices": ["1", 1, None]}],
    [{"name": "third", "type": "float", "low": 0.1, "high": 0.3, "step": 0.2}],
]

BAD_SPACES = [
    ([LR, LR], "searchSpace[1].name", "already declared as searchSpace[0]: rename or remove one"),
    ([LAYERS | {"low": 4}], "searchSpace[0].low", "layers has low 4 above high 3: swap them"),
    ([LR | {"low": 0}], "searchSpace[0].low", "low must be above 0, not 0: raise low or remove log"),
    ([LR | {"step": 0.01}], "searchSpace[0].step", "both step and log"),
    ([UNITS | {"step": 0}], "searchSpace[0].step", "a step must be above 0: correct or remove it"),
    ([UNITS | {"step": 500}], "searchSpace[0].step", "larger than its range"),
    ([DROPOUT | {"step": 1e-17}], "searchSpace[0].step", "too small for the range"),
    ([LAYERS | {"low": None}], "searchSpace[0].low", "needs low: set the smallest value"),
    ([LAYERS | {"high": None}], "searchSpace[0].high", "needs high: set the largest value"),
    ([LAYERS | {"high": 3.5}], "searchSpace[0].high", "must be a whole number (at most 2^53), not 3.5"),
    ([LAYERS | {"high": 1e17}], "searchSpace[0].high", "must be a whole number"),
    ([MOMENTUM | {"high": float("inf")}], "searchSpace[0].high", "must be a finite number"),
    ([MOMENTUM | {"low": -1e308, "high": 1e308}], "searchSpace[0].high", "wider than the largest float"),
    ([LAYERS | {"choices": [1]}], "searchSpace[0].choices", "can't have choices"),
    ([OPTIMIZER | {"choices": None}], "searchSpace[0].choices", "needs choices"),
    ([OPTIMIZER | {"low": 1}], "searchSpace[0].low", "can't have low"),
    ([OPTIMIZER | {"log": True}], "searchSpace[0].log", "can't have log"),
    ([OPTIMIZER | {"choices": ["a", "b", "a"]}], "searchSpace[0].choices[2]", '"a" is listed twice'),
    (
        [OPTIMIZER | {"choices": [1, True]}],
        "searchSpace[0].choices[1]",
        "true and 1 (choices[0]) are the same value to Optuna",
    ),
    ([OPTIMIZER | {"choices": [float("nan")]}], "searchSpace[0].choices[0]", "is not a finite number"),
    ([when(parameter="lr", equals=1)], "searchSpace[0].when.parameter", "is not in searchSpace"),
    ([when(parameter="momentum", atLeast=1)], "searchSpace[0].when.parameter", "depends on itself"),
    ([DEEP, LAYERS], "searchSpace[0].when.parameter", "declared after it: move it above units"),
    ([LAYERS, when(parameter="layers")], "searchSpace[1].when", "exactly one of equals"),
    ([LAYERS, when(parameter="layers", equals=None)], "searchSpace[1].when.equals", "null is not a whole"),
    ([LAYERS, when(parameter="layers", atLeast=1, atMost=2)], "searchSpace[1].when", "exactly one of equals"),
    (
        [OPTIMIZER, when(parameter="optimizer", atLeast=1)],
        "searchSpace[1].when.atLeast",
        "use equals or anyOf",
    ),
    (
        [OPTIMIZER, when(parameter="optimizer", equals="sgd")],
        "searchSpace[1].when.equals",
        'did you mean "SGD"?',
    ),
    (
        [OPTIMIZER, when(parameter="optimizer", anyOf=["SGD", "X"])],
        "searchSpace[1].when.anyOf[1]",
        'this is never true, since "X" is not a choice of optimizer: use one of "Adam", "SGD"',
    ),
    (
        [LAYERS, when(parameter="layers", anyOf=[1, 1.0])],
        "searchSpace[1].when.anyOf[1]",
        "the same value to Optuna",
    ),
    (
        [LAYERS, when(parameter="layers", equals=4)],
        "searchSpace[1].when.equals",
        "outside the range of layers",
    ),
    ([LAYERS, when(parameter="layers", equals=True)], "searchSpace[1].when.equals", "true is not a whole"),
    ([DROPOUT, when(parameter="dropout", equals=0.25)], "searchSpace[1].when.equals", "use 0.2 or 0.3"),
    ([LR, when(parameter="lr", equals=0.01)], "searchSpace[1].when.equals", "use atLeast or atMost"),
    ([LAYERS, when(parameter="layers", atLeast=4)], "searchSpace[1].when.atLeast", "layers is at most 3"),
    ([LAYERS, when(parameter="layers", atMost=0)], "searchSpace[1].when.atMost", "layers is at least 1"),
    (
        [{"name": "even", "type": "int", "low": 0, "high": 5, "step": 2}, when(parameter="even", atLeast=5)],
        "searchSpace[1].when.atLeast",
        "even is at most 4",
    ),
]

GOOD_TRIALS = [
    {},
    {"lr": 0.01, "layers": 2, "units": 128, "dropout": 0.3, "optimizer": "SGD", "nesterov": None},
    {"layers": 2.0, "dropout": 0},
    {"units": 64},
    {"dropout": 0.1 + 2 * 0.1},
]

BAD_TRIALS = [
    ({"layer": 2}, "initialTrials[0].layer", "did you mean layers?"),
    ({"zzz": 2}, "initialTrials[0].zzz", "correct or remove it. Its parameters are lr,"),
    ({"lr": 1}, "initialTrials[0].lr", "1 is outside the range of lr: use a value from 1e-05 to 0.1"),
    ({"lr": True}, "initialTrials[0].lr", "true is not a number"),
    ({"lr": None}, "initialTrials[0].lr", "null is not a number"),
    ({"lr": "0.01"}, "initialTrials[0].lr", "write 0.01 without quotes"),
    ({"lr": float("nan")}, "initialTrials[0].lr", "outside the range"),
    ({"layers": 1.5}, "initialTrials[0].layers", "1.5 is not a whole number, but layers is an int: round it"),
    ({"layers": 2, "units": 100}, "initialTrials[0].units", "use 64 or 128"),
    ({"dropout": 0.45}, "initialTrials[0].dropout", "use 0.4 or 0.5"),
    ({"optimizer": "adam"}, "initialTrials[0].optimizer", 'did you mean "Adam"?'),
    ({"nesterov": 1}, "initialTrials[0].nesterov", "did you mean true?"),
    ({"nesterov": "null"}, "initialTrials[0].nesterov", "did you mean null?"),
    (
        {"layers": 1, "units": 64},
        "initialTrials[0].units",
        "this trial has no units, since layers is 1",
    ),
]


@pytest.mark.parametrize("parameters", GOOD_SPACES)
def test_a_good_search_space_has_no_problems(parameters: list[dict[str, Any]]) -> None:
    assert flaws(parameters) == []


@pytest.mark.parametrize(("parameters", "field", "message"), BAD_SPACES)
def test_a_bad_search_space_is_refused_with_a_fix(
    parameters: list[dict[str, Any]], field: str, message: str
) -> None:
    [(where, text)] = flaws(parameters)
    assert where == field
    assert message in text


@pytest.mark.parametrize("trial", GOOD_TRIALS)
def test_a_good_initial_trial_has_no_problems(trial: dict[str, Any]) -> None:
    assert flaws(ALL, trial) == []


@pytest.mark.parametrize(("trial", "field", "message"), BAD_TRIALS)
def test_a_bad_initial_trial_is_refused_with_a_fix(trial: dict[str, Any], field: str, message: str) -> None:
    [(where, text)] = flaws(ALL, trial)
    assert where == field
    assert message in text


def test_an_initial_trial_is_not_tried_twice() -> None:
    [(field, message)] = flaws(ALL, {"layers": 1}, {"lr": 0.01}, {"layers": 1.0})
    assert field == "initialTrials[2]"
    assert "the same as initialTrials[0]" in message


def test_a_grandparent_that_rules_a_parameter_out_is_seen() -> None:
    child = MOMENTUM | {"when": {"parameter": "units", "atLeast": 128}}
    [(field, message)] = flaws([LAYERS, DEEP, child], {"layers": 1, "momentum": 0.5})
    assert field == "initialTrials[0].momentum"
    assert "(see the when of units)" in message


def test_without_a_search_space_any_initial_trial_may_be_valid() -> None:
    assert space.problems(None, [{"anything": True}]) == ()


def test_all_problems_are_found_at_once() -> None:
    fields = [field for field, _ in flaws([LAYERS | {"low": 4}, OPTIMIZER | {"choices": None}])]
    assert fields == ["searchSpace[0].low", "searchSpace[1].choices"]


def walked(parameters: list[Parameter], answers: dict[str, Any]) -> list[str]:
    chosen: dict[str, Any] = {}
    while parameter := space.next_parameter(parameters, chosen):
        chosen[parameter.name] = answers[parameter.name]
    return list(chosen)


def test_the_walk_takes_the_parameters_that_exist_in_the_order_of_the_manifest() -> None:
    child = MOMENTUM | {"when": {"parameter": "units", "atLeast": 128}}
    parameters = parsed(LAYERS, DEEP, child, OPTIMIZER)
    answers = {"layers": 2, "units": 128, "momentum": 0.5, "optimizer": "SGD"}
    assert walked(parameters, answers) == ["layers", "units", "momentum", "optimizer"]
    assert walked(parameters, answers | {"units": 64}) == ["layers", "units", "optimizer"]
    assert walked(parameters, answers | {"layers": 1}) == ["layers", "optimizer"]


@pytest.mark.parametrize(
    ("comparison", "holding", "failing"),
    [
        ({"equals": True}, [True], [1, "true", None, False]),
        ({"equals": 1}, [1, 1.0], [True, "1", None]),
        ({"equals": None}, [None], [False, 0, "null"]),
        ({"equals": 0.3}, [0.3, 0.1 + 2 * 0.1], [0.31]),
        ({"anyOf": ["a", None]}, ["a", None], ["b", False]),
        ({"atLeast": 0.3}, [0.3, 0.1 + 2 * 0.1, 1], [0.29, -1]),
        ({"atLeast": 0.8}, [1 - 0.2, 0.7999999999999999], [0.79]),
        ({"atMost": 0.3}, [0.3, 0.1 + 2 * 0.1, -1], [0.31]),
    ],
)
def test_when_holds(comparison: dict[str, Any], holding: list[Any], failing: list[Any]) -> None:
    [parameter] = parsed(MOMENTUM | {"when": {"parameter": "x", **comparison}})
    assert all(space.exists(parameter, {"x": value}) for value in holding)
    assert not any(space.exists(parameter, {"x": value}) for value in failing)
    assert not space.exists(parameter, {})


@st.composite
def numeric(draw: st.DrawFn) -> tuple[dict[str, Any], BaseDistribution]:
    """A good range, and Optuna's distribution made from the same arguments."""
    log = draw(st.booleans())
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(*[st.integers(1, 10**6)] * 2)))
        step = None if log else draw(st.integers(1, max(1, high - low)))
        twin: BaseDistribution = IntDistribution(low, high, log=log, step=step or 1)
        kind = "int"
    else:
        low, high = sorted(draw(st.tuples(*[st.integers(1, 1000)] * 2)))
        low, high = low / 100, high / 100
        step = None if log else draw(st.none() | st.sampled_from([0.01, 0.05, 0.1, 0.25]))
        step = step if step and step <= high - low else None
        twin = FloatDistribution(low, high, log=log, step=step)
        kind = "float"
    return {"name": "x", "type": kind, "low": low, "high": high, "step": step, "log": log}, twin


@given(numeric())
@pytest.mark.filterwarnings("ignore:The distribution is specified by")
def test_distributions_are_optunas(pair: tuple[dict[str, Any], BaseDistribution]) -> None:
    manifest, twin = pair
    [parameter] = parsed(manifest)
    assert space.problems([parameter]) == ()
    ours = space.distribution(parameter)
    assert ours == json.loads(distribution_to_json(twin))
    assert json_to_distribution(json.dumps(ours)) == twin


def test_choices_are_optunas() -> None:
    choices = ["Adam", 1, 0.5, True, None]
    [parameter] = parsed(OPTIMIZER | {"choices": choices})
    assert space.distribution(parameter) == json.loads(distribution_to_json(CategoricalDistribution(choices)))


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (DROPOUT, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (UNITS, [64, 128, 192, 256]),
        (LAYERS, [1, 2, 3]),
        (OPTIMIZER, ["Adam", "SGD"]),
        (DROPOUT | {"high": 0.25}, [0.0, 0.1, 0.2]),
    ],
)
def test_values(manifest: dict[str, Any], expected: list[Any]) -> None:
    [parameter] = parsed(manifest)
    found = space.values(parameter)
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert all(space.value_flaw(parameter, value) is None for value in found)
