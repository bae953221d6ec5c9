"""How a trial ended: what the objective returned or raised, interpreted as Optuna does."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tuning_trainer import TrialPruned
from tuning_trainer.exceptions import failure_of
from tuning_trainer.failure import BAD_VALUE, Failure, remedy_of_bad_value
from tuning_trainer.wire.codec import number_to_wire


class Outcome(NamedTuple):
    """The final state of a trial, and its values or the failure."""

    state: str  # COMPLETE, PRUNED or FAIL
    values: list[float] | None = None
    failure: Failure | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the protocol's TellRequest."""
        request: dict[str, Any] = {"state": self.state}
        if self.values is not None:
            request["values"] = [number_to_wire(value) for value in self.values]
        if self.failure is not None:
            request["failure"] = self.failure.to_wire()
        return request


def outcome_of_value(returned: Any, metrics: list[str]) -> Outcome:
    """Return the outcome of an objective that returned; it should return one value for each metric.

    The rules and messages are those of optuna/study/_tell.py; the remedy is added.
    """
    if returned is None:
        return _invalid("The value None could not be cast to float.", metrics)
    many = isinstance(returned, Sequence) and not isinstance(returned, (str, bytes))
    values = list(returned) if many else [returned]
    problems = [problem for problem in map(_problem, values) if problem]
    if problems:
        return _invalid("; ".join(problems), metrics)
    if len(values) != len(metrics):
        numbers = f"The number of the values {len(values)} did not match"
        return _invalid(f"{numbers} the number of the objectives {len(metrics)}", metrics)
    return Outcome("COMPLETE", [float(value) for value in values])


def outcome_of_refit(returned: Any, metrics: list[str]) -> Outcome:
    """Return the outcome of a refit that returned: COMPLETE, with values if it returned valid ones."""
    outcome = outcome_of_value(returned, metrics)
    return outcome if outcome.failure is None else Outcome("COMPLETE")


def outcome_of_exception(error: BaseException) -> Outcome:
    """Return the outcome of an objective that raised: PRUNED for either TrialPruned, FAIL otherwise."""
    if is_pruned(error):
        return Outcome("PRUNED")
    return Outcome("FAIL", failure=failure_of(error))


def is_pruned(error: BaseException) -> bool:
    """Return whether the exception is a TrialPruned, Optuna's or ours."""
    optuna = sys.modules.get("optuna.exceptions")
    return isinstance(error, (TrialPruned, getattr(optuna, "TrialPruned", TrialPruned)))


def exceptions(catch: Any) -> tuple[type[BaseException], ...]:
    """Return the exceptions in the argument `catch` of optimize: one class, or an iterable of them."""
    return (catch,) if isinstance(catch, type) else tuple(catch or ())


def trial_pruned(message: str) -> Exception:
    """Return Optuna's TrialPruned where Optuna is loaded, so that plain Optuna knows it; else ours."""
    optuna = sys.modules.get("optuna.exceptions")
    kind: type[Exception] = getattr(optuna, "TrialPruned", TrialPruned)
    return kind(message)


def _problem(value: Any) -> str | None:
    try:
        number = float(value) if not isinstance(value, (str, bytes)) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several elements
        number = None
    if number is None:
        return f"The value {value!r} could not be cast to float"
    return f"The value {value} is not acceptable" if math.isnan(number) else None


def _invalid(message: str, metrics: list[str]) -> Outcome:
    return Outcome("FAIL", failure=Failure(BAD_VALUE, message, remedy_of_bad_value(metrics)))
