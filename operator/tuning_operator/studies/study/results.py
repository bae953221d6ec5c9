"""How a trial's telling is read: the rules and messages are those of `optuna/study/_tell.py`."""

import math
from typing import Any, NamedTuple

from optuna.trial import TrialState

from tuning_operator.protocol import Failure, Problem, TellRequest
from tuning_operator.studies.errors import Refused

_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers."""


class Result(NamedTuple):
    """A trial's end as Optuna's `study.tell` takes it, and why it is a FAIL."""

    state: TrialState
    values: list[float] | None = None
    failure: Failure | None = None


def read_result(request: TellRequest, metrics: list[str]) -> Result:
    """Return the end that a request tells; values that Optuna would not accept make it a FAIL, as there.

    Raises:
        Refused: the request contradicts itself.
    """
    if request.state == "COMPLETE":
        return _complete(request.values, metrics)
    if request.values is not None:
        message = f"only a COMPLETE trial has values: leave them out of a {request.state} one"
        raise Refused(Problem(field="values", message=message))
    if request.state == "PRUNED":
        return Result(TrialState.PRUNED)
    untold = Failure(category="Unknown", message="The trial failed; no reason was told.")
    return Result(TrialState.FAIL, failure=request.failure or untold)


def _complete(values: list[Any] | None, metrics: list[str]) -> Result:
    if values is None:
        return _bad("The value None could not be cast to float.", metrics)
    numbers = [_SPELLED.get(value, value) if isinstance(value, str) else value for value in values]
    if problems := [problem for problem in map(_problem, numbers) if problem]:
        return _bad("; ".join(problems), metrics)
    if len(numbers) != len(metrics):
        told = f"The number of the values {len(numbers)} did not match"
        return _bad(f"{told} the number of the objectives {len(metrics)}", metrics)
    return Result(TrialState.COMPLETE, [float(number) for number in numbers])


def _problem(value: Any) -> str | None:
    if not isinstance(value, (int, float)):
        return f"The value {value!r} could not be cast to float"
    return f"The value {value} is not acceptable" if math.isnan(value) else None


def _bad(message: str, metrics: list[str]) -> Result:
    several = f"{', '.join(metrics)} as a list of numbers in this order"
    wanted = f"{metrics[0]} as a number" if len(metrics) == 1 else several
    remedy = f"Return {wanted} (spec.objectives); NaN is no value."
    return Result(TrialState.FAIL, failure=Failure(category="BadValue", message=message, remedy=remedy))
