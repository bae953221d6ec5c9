"""A result is read as by `study.tell`, and numbers that JSON lacks by the same codec on both sides."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study._tell import _tell_with_warning
from optuna.trial import TrialState
from tuning_operator.protocol import RefitRecord, TellRequest, TrialRecord
from tuning_operator.studies.study.checks import read_result
from tuning_trainer.wire.codec import number_from_wire, number_to_wire, numbers_from_wire, to_wire

METRICS = ["acc", "size"]
numbers = st.floats() | st.integers(-(2**70), 2**70) | st.booleans()
finite = st.floats(allow_nan=False, allow_infinity=False)
no_numbers = (
    st.none() | st.lists(finite, max_size=2) | st.dictionaries(st.text(max_size=2), finite, max_size=1)
)
texts = st.sampled_from(["", "high", "0x1", "one"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def study_of(objectives: int) -> optuna.Study:
    return optuna.create_study(directions=["minimize"] * objectives)


def optunas_result(
    objectives: int, values: list[Any] | None
) -> tuple[TrialState, list[float] | None, str | None]:
    """Return what `study.tell` makes of values that an objective returned."""
    study = study_of(objectives)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _tell_with_warning(study, study.ask(), values, suppress_warning=True)


@settings(deadline=None)
@given(objectives=st.integers(1, 2), values=st.none() | st.lists(numbers | no_numbers | texts, max_size=3))
def test_values_are_judged_as_by_optuna(objectives: int, values: list[Any] | None) -> None:
    state, accepted, message = optunas_result(objectives, values)
    wire = None if values is None else [to_wire(value) for value in values]
    request = TellRequest.model_validate_json(json.dumps({"state": "COMPLETE", "values": wire}))
    result = read_result(request, study_of(objectives), METRICS[:objectives])
    assert (result.state, result.values) == (state, accepted)
    assert (result.failure.message if result.failure else None) == message
    study = study_of(objectives)
    trial = study.ask()
    study.tell(trial, result.values, result.state)
    assert (study.trials[0].state, study.trials[0].values) == (state, accepted)


@pytest.mark.parametrize("value", ["0.5", "nan", "1e3", "infinity", 10**400])
def test_values_for_which_optuna_raises_fail_the_trial(value: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        optunas_result(1, [value])
    result = read_result(TellRequest(state="COMPLETE", values=[value]), study_of(1), METRICS[:1])
    assert result.state == TrialState.FAIL
    assert result.failure
    assert result.failure.message == f"The value {value!r} could not be cast to float"


@given(json_values)
def test_sent_values_are_json_and_keep_their_numbers(value: Any) -> None:
    wire = json.loads(json.dumps(to_wire(value), allow_nan=False))
    if isinstance(value, float):
        assert repr(number_from_wire(wire)) == repr(value)
    elif not isinstance(value, str):
        assert number_from_wire(wire) == wire
    record = TrialRecord(number=0, state="RUNNING", parameters={"p": value})
    assert json.loads(record.model_dump_json())["parameters"]["p"] == wire
    refit = RefitRecord(trial=0, digest="d", state="RUNNING", user_attrs={"a": value})
    assert json.loads(refit.model_dump_json(by_alias=True))["userAttrs"]["a"] == wire


@given(st.floats())
def test_a_number_is_read_as_it_was_written(value: float) -> None:
    assert repr(number_from_wire(number_to_wire(value))) == repr(value)
    assert repr(numbers_from_wire({"a": number_to_wire(value)})) == repr({"a": value})
    record = TrialRecord(number=0, state="COMPLETE", values=[value])
    read = TrialRecord.model_validate_json(record.model_dump_json())
    assert repr(read.values) == repr([value])


@pytest.mark.parametrize("text", ["nan", "inf", "Inf", "-infinity", "", "0.5", "NaN "])
def test_no_other_text_is_a_number(text: str) -> None:
    assert number_from_wire(text) == text
    assert not math.isnan(number_from_wire("Infinity"))
