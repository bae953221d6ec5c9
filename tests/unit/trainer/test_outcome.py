"""What an objective returns is judged as by Optuna's own `tell`, with the same messages."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study._tell import _tell_with_warning
from tuning_trainer.outcome import outcome_of_value

METRICS = ["acc", "size"]
nan, inf = math.nan, math.inf
RETURNED: list[Any] = [
    None, 0.5, 3, True, -0.0, inf, -inf, nan, 2**70, 1j, {}, set(), object, Decimal("0.5"), Decimal("nan"),
    Fraction(1, 3), [], (), [0.5], (0.5,), (0.5, 3), [0.5, nan], [nan, None], [inf, -inf], [0.5, "good"],
    ["", {}], [[0.5], 0.5], [1, 2, 3], range(1), range(2), {0.5, 1.5}, {"acc": 0.5}, np.float32(0.1),
    np.float64(nan), np.int64(3), np.bool_(True), np.array(0.5), np.array([0.5, 1.5]),
    [np.float32(0.1), np.array(0.5)], (value for value in (0.5,)),
]  # fmt: skip


def optunas(returned: Any, objectives: int) -> tuple[str, list[float] | None, str | None]:
    study = optuna.create_study(directions=["minimize"] * objectives)
    state, values, message = _tell_with_warning(study, study.ask(), returned, suppress_warning=True)
    return state.name, values, message


def ours(returned: Any, objectives: int) -> tuple[str, list[float] | None, str | None]:
    outcome = outcome_of_value(returned, METRICS[:objectives])
    return outcome.state, outcome.values, outcome.failure.message if outcome.failure else None


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("returned", RETURNED)
def test_what_is_returned(returned: Any, objectives: int) -> None:
    assert ours(returned, objectives) == optunas(returned, objectives)


@given(returned=st.lists(st.floats() | st.integers(-(2**70), 2**70) | st.booleans() | st.none()))
def test_any_numbers(returned: list[Any]) -> None:
    assert ours(returned, 2) == optunas(returned, 2)


@pytest.mark.parametrize("returned", ["", "5", "0.5", "good", b"0.5", ["0.5"], 10**400, [10**400]], ids=repr)
def test_what_breaks_optuna_or_is_read_letter_by_letter(returned: Any) -> None:
    """Optuna raises an error of its own, or reports each letter of a text."""
    value = returned[0] if isinstance(returned, list) else returned
    assert ours(returned, 1) == ("FAIL", None, f"The value {value!r} could not be cast to float")


@pytest.mark.parametrize(("metrics", "wanted"), [(METRICS[:1], "acc as a number"), (METRICS, "acc, size as")])
def test_the_remedy_names_the_metrics(metrics: list[str], wanted: str) -> None:
    failure = outcome_of_value(nan, metrics).failure
    assert failure
    assert f"Return {wanted}" in (failure.remedy or "")
