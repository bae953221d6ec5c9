"""Which requests about a trial are refused, and how a result is read."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.study._tell import _check_values_are_feasible
from optuna.trial import FrozenTrial, TrialState
from tuning_trainer.wire.codec import number_from_wire

from tuning_operator.protocol import (
    AttributesRequest,
    Failure,
    Problem,
    StudyDefinition,
    SuggestRequest,
    TellRequest,
)
from tuning_operator.studies.errors import Conflict, Refused


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
    several = f"{', '.join(metrics)} as a list of numbers in this order"
    wanted = f"{metrics[0]} as a number" if len(metrics) == 1 else several
    remedy = f"Return {wanted} (spec.objectives). NaN is not a valid value."
    return Result(TrialState.FAIL, failure=Failure(category="BadValue", message=str(message), remedy=remedy))


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
        return json_to_distribution(json.dumps(request.distribution))
    except (ValueError, KeyError, TypeError) as error:
        raise refused("distribution", f"is not a distribution in Optuna's JSON form: {error!r}") from None


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
    if any(step < 0 for step, _ in values):
        raise refused("values", "a step must not be negative: count from 0")


def check_constraints(request: AttributesRequest) -> None:
    """Check that constraint values are numbers. Raises Refused."""
    for key, value in request.constraints.items():
        if math.isnan(value):
            raise refused(f"constraints.{key}", "NaN is neither feasible nor infeasible: set a number")


def refused(field: str, message: str) -> Refused:
    """Return the error for something that can never work."""
    return Refused(Problem(field=field, message=message))
