"""Which requests about a trial are refused, and how a result is read."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.samplers import BaseSampler, BruteForceSampler, PartialFixedSampler
from optuna.study._tell import _check_values_are_feasible
from optuna.trial import FrozenTrial, TrialState
from tuning_trainer.failure import BAD_VALUE, remedy_of_bad_value
from tuning_trainer.wire.codec import number_from_wire

from tuning_operator.protocol import (
    AttributesRequest,
    Failure,
    Problem,
    StudyDefinition,
    SuggestRequest,
    TellRequest,
)
from tuning_operator.studies.definition.sampler_space import LARGEST_GRID
from tuning_operator.studies.errors import Conflict, Refused
from tuning_operator.studies.storage.schema import KEY_CHARACTERS, checked_key, checked_step

STEPS = 100_000
"""Steps that a trial may report: each report copies and compares the values of all before it."""
CHOICES = 1_000
"""Choices of a parameter, as in a search space: TPESampler keeps a number for each choice and trial."""
ATTRIBUTES_BYTES = 256 * 1024
"""The largest size of a trial's user attributes, or of a study's, as JSON: they are kept in memory."""
CONSTRAINT = "constraints:"
"""The system attributes in which Optuna 5.0's `trial.set_constraint` keeps its values."""


class Result(NamedTuple):
    """A trial's end as Optuna's `study.tell` takes it, and the reason of a FAIL or PRUNED."""

    state: TrialState
    values: list[float] | None = None
    failure: Failure | None = None


def read_result(request: TellRequest, study: optuna.Study, metrics: Sequence[str]) -> Result:
    """Return the end that a request reports.

    Values that `study.tell` does not accept make it a FAIL with Optuna's own message, as `study.tell` does.

    Raises:
        Refused: the request contradicts itself.
    """
    if request.state == "COMPLETE":
        return _complete(request.values, study, metrics)
    if request.values is not None:
        raise refused("values", f"only a COMPLETE trial has values: leave them out of a {request.state} one")
    if request.state == "PRUNED":
        return Result(TrialState.PRUNED, failure=request.failure)
    unknown = Failure(category="Unknown", message="The trial failed; no reason was reported.")
    return Result(TrialState.FAIL, failure=request.failure or unknown)


def _complete(values: list[Any] | None, study: optuna.Study, metrics: Sequence[str]) -> Result:
    if values is None:
        message: str | None = "The value None could not be cast to float."
    else:
        numbers = [number_from_wire(value) for value in values]
        message = _check_values_are_feasible(study, [_as_optuna_checks(number) for number in numbers])
        if message is None:
            return Result(TrialState.COMPLETE, [float(number) for number in numbers])
    remedy = remedy_of_bad_value(metrics)
    return Result(TrialState.FAIL, failure=Failure(category=BAD_VALUE, message=str(message), remedy=remedy))


class _NotANumber:
    """A value for which Optuna's check finds that it can't be cast to float, and names it."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


def _as_optuna_checks(value: Any) -> Any:
    """Return a value for Optuna's check, which raises for texts such as "0.5" and huge integers."""
    try:
        float(value)
    except (OverflowError, TypeError, ValueError):
        return _NotANumber(value)
    return _NotANumber(value) if isinstance(value, str) else value


def started(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial, if it is running or has ended. Raises Conflict."""
    if trial.state == TrialState.WAITING:
        message = f"trial {trial.number} is waiting in the queue and has not been started"
        raise Conflict(Problem(field="trial", message=message))
    return trial


def distribution_of(request: SuggestRequest) -> BaseDistribution:
    """Return the distribution of a request. Raises Refused."""
    try:
        checked_key(request.name)
    except ValueError as error:
        raise refused("name", str(error)) from None
    try:
        distribution = json_to_distribution(json.dumps(request.distribution))
        _check_range(distribution)
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise refused("distribution", f"is not a distribution in Optuna's JSON form: {error!r}") from None
    if isinstance(distribution, CategoricalDistribution) and len(distribution.choices) > CHOICES:
        message = (
            f"a categorical parameter has at most {CHOICES:,} choices, and {request.name} has "
            f"{len(distribution.choices):,}: suggest an index with suggest_int instead"
        )
        raise refused("distribution", message)
    return distribution


def _check_range(distribution: BaseDistribution) -> None:
    """Check that the ends of a range are numbers that can be stored. Raises ValueError, OverflowError."""
    if isinstance(distribution, FloatDistribution | IntDistribution):
        ends = (distribution.low, distribution.high, distribution.step or 0)
        if not all(math.isfinite(float(end)) for end in ends):
            raise ValueError("low, high and step must be finite numbers")
        if not math.isfinite(float(distribution.high) - float(distribution.low)):
            raise ValueError("the range is wider than the largest float, 1.8e308")


def check_enumerable(sampler: BaseSampler, name: str, distribution: BaseDistribution) -> None:
    """Check that BruteForceSampler can list a parameter's values. Raises Refused."""
    while isinstance(sampler, PartialFixedSampler):
        sampler = sampler._base_sampler  # noqa: SLF001
    if not isinstance(sampler, BruteForceSampler):
        return
    if isinstance(distribution, FloatDistribution | IntDistribution) and distribution.step:
        values = (distribution.high - distribution.low) // distribution.step + 1
        if values > LARGEST_GRID:
            message = (
                f"BruteForceSampler tries every value, and {name} has {values:,.0f}; the limit is "
                f"{LARGEST_GRID:,}: use a larger step, or another sampler"
            )
            raise refused(name, message)


def check_suggestible(trial: FrozenTrial, name: str, definition: StudyDefinition) -> None:
    """Check that a trial has a parameter, or may get it. Raises StudyError."""
    if name in trial.params:
        return
    if trial.state.is_finished():
        message = f"trial {trial.number} has already ended ({trial.state.name})"
        raise Conflict(Problem(field="trial", message=message))
    if definition.search_space is not None:
        raise refused(
            name,
            f"trial {trial.number} has no parameter {name} in spec.searchSpace: declare it there, or remove "
            "searchSpace so that the objective suggests its own parameters",
        )


def check_reportable(definition: StudyDefinition, values: Sequence[tuple[int, float]]) -> None:
    """Check that a trial may report intermediate values. Raises Refused."""
    if len(definition.objectives) > 1:
        message = "Optuna does not support intermediate values in a study with several objectives"
        raise refused("values", message)
    for step, _ in values:
        if step < 0:
            raise refused("values", "a step must not be negative: count from 0")
        try:
            checked_step(step)
        except ValueError as error:
            raise refused("values", str(error)) from None


def check_attributes(
    request: AttributesRequest, of_trial: Mapping[str, Any], of_study: Mapping[str, Any]
) -> None:
    """Check that attributes and constraints can be kept, with those that there are. Raises Refused."""
    for field, attrs, known in (
        ("userAttrs", request.user_attrs, of_trial),
        ("studyAttrs", request.study_attrs, of_study),
    ):
        for key in attrs:
            _check_key(field, key)
        if attrs:
            _check_size(field, attrs, known)
    for key, value in request.constraints.items():
        _check_key("constraints", key, longest=KEY_CHARACTERS - len(CONSTRAINT))
        if math.isnan(value):
            raise refused(f"constraints.{key}", "NaN is neither feasible nor infeasible: set a number")


def _check_key(field: str, key: str, longest: int = KEY_CHARACTERS) -> None:
    try:
        checked_key(key, longest)
    except ValueError as error:
        raise refused(f"{field}.{key[:40]}", str(error)) from None


def _check_size(field: str, new: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    sizes = {key: len(json.dumps(value)) for key, value in new.items()}
    total = sum(sizes.values()) + sum(
        len(json.dumps(value)) for key, value in known.items() if key not in new
    )
    if total > ATTRIBUTES_BYTES:
        largest = max(sizes, key=lambda key: sizes[key])
        message = (
            f"takes {sizes[largest]:,} bytes as JSON; all attributes take {total:,}, and the limit is "
            f"{ATTRIBUTES_BYTES:,}. Save it to a file, and set the file's path as the attribute"
        )
        raise refused(f"{field}.{largest}", message)


def refused(field: str, message: str) -> Refused:
    """Return the error for something that can never work."""
    return Refused(Problem(field=field, message=message))
