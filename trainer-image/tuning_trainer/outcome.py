"""How a trial ended: what an objective returned or raised, read as Optuna reads it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tuning_trainer import TrialPruned
from tuning_trainer.failure import Failure, failure_of
from tuning_trainer.wire.codec import number_to_wire


class Outcome(NamedTuple):
    """A trial's end, in Optuna's words."""

    state: str  # COMPLETE, PRUNED or FAIL
    values: list[float] | None = None
    failure: Failure | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the protocol's TellRequest."""
        told: dict[str, Any] = {"state": self.state}
        if self.values is not None:
            told["values"] = [number_to_wire(value) for value in self.values]
        if self.failure is not None:
            told["failure"] = self.failure.to_wire()
        return told


def outcome_of_value(returned: Any, metrics: list[str]) -> Outcome:
    """Return the outcome of an objective that returned; one value for each of the study's metrics is right.

    The rules and messages are those of optuna/study/_tell.py, and each comes with its mend.
    """
    if returned is None:
        return _bad("The value None could not be cast to float.", metrics)
    many = isinstance(returned, Sequence) and not isinstance(returned, (str, bytes))
    values = list(returned) if many else [returned]
    problems = [problem for problem in map(_problem, values) if problem]
    if problems:
        return _bad("; ".join(problems), metrics)
    if len(values) != len(metrics):
        numbers = f"The number of the values {len(values)} did not match"
        return _bad(f"{numbers} the number of the objectives {len(metrics)}", metrics)
    return Outcome("COMPLETE", [float(value) for value in values])


def outcome_of_refit(returned: Any, metrics: list[str]) -> Outcome:
    """Return the outcome of a final training that returned: a success, with values if it returned some."""
    judged = outcome_of_value(returned, metrics)
    return judged if judged.failure is None else Outcome("COMPLETE")


def outcome_of_exception(error: BaseException) -> Outcome:
    """Return the outcome of an objective that raised: PRUNED for either TrialPruned, else FAIL."""
    if is_pruned(error):
        return Outcome("PRUNED")
    return Outcome("FAIL", failure=failure_of(error))


def is_pruned(error: BaseException) -> bool:
    """Return whether the exception is a TrialPruned, Optuna's or ours."""
    optuna = sys.modules.get("optuna.exceptions")
    return isinstance(error, (TrialPruned, getattr(optuna, "TrialPruned", TrialPruned)))


def _problem(value: Any) -> str | None:
    try:
        number = float(value) if not isinstance(value, (str, bytes)) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several elements
        number = None
    if number is None:
        return f"The value {value!r} could not be cast to float"
    return f"The value {value} is not acceptable" if math.isnan(number) else None


def _bad(message: str, metrics: list[str]) -> Outcome:
    wanted = f"{metrics[0]} as a float" if len(metrics) == 1 else f"{', '.join(metrics)} as a tuple of floats"
    remedy = f"Return {wanted} (spec.objectives), or raise optuna.TrialPruned; NaN is no value."
    return Outcome("FAIL", failure=Failure("BadValue", message, remedy))
