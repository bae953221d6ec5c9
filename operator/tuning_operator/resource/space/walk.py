"""Which parameters a trial has: those whose `when` holds, in the order of the manifest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuning_operator.resource.space.values import is_number, same
from tuning_operator.resource.study import Parameter, Scalar, When


def exists(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether a trial has the parameter, by the values of the parameters before it."""
    when = parameter.when
    return when is None or (when.parameter in chosen and holds(when, chosen[when.parameter]))


def next_parameter(search_space: Sequence[Parameter], chosen: Mapping[str, Any]) -> Parameter | None:
    """Return the parameter to choose next; None: the trial has all."""
    waiting = (p for p in search_space if p.name not in chosen and exists(p, chosen))
    return next(waiting, None)


def holds(when: When, value: Scalar) -> bool:
    """Whether the condition holds for its parameter's value."""
    if when.at_least is not None:
        return is_number(value) and (value >= when.at_least or _close(value, when.at_least))
    if when.at_most is not None:
        return is_number(value) and (value <= when.at_most or _close(value, when.at_most))
    return any(same(value, wanted) for wanted in accepted(when))


def accepted(when: When) -> list[Scalar]:
    """Return the values of `equals` or `anyOf`."""
    return [when.equals] if when.any_of is None else when.any_of


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
