"""Conditions (`when`): which parameters a trial has, and whether a condition can be true at all."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuning_operator.resource.space.parameters import duplicate_flaws
from tuning_operator.resource.space.values import Flaw, bounds, is_number, same, shown, size, value_flaw
from tuning_operator.resource.study import Parameter, Scalar, When


def exists(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Return whether a trial has the parameter, given the values of the parameters before it."""
    when = parameter.when
    return when is None or (when.parameter in chosen and is_met(when, chosen[when.parameter]))


def next_parameter(search_space: Sequence[Parameter], chosen: Mapping[str, Any]) -> Parameter | None:
    """Return the parameter to choose next; None if the trial has all."""
    waiting = (p for p in search_space if p.name not in chosen and exists(p, chosen))
    return next(waiting, None)


def is_met(when: When, value: Scalar) -> bool:
    """Return whether the condition is true for a value of its parameter."""
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


def condition_flaws(search_space: Sequence[Parameter]) -> Iterator[Flaw]:
    """Yield what is wrong with the conditions of a search space whose parameters are valid otherwise."""
    for index, parameter in enumerate(search_space):
        if parameter.when is not None:
            for flaw in _when_flaws(parameter.name, parameter.when, search_space, index):
                yield Flaw(f"searchSpace[{index}].when{flaw.field}", flaw.message)


def _when_flaws(name: str, when: When, search_space: Sequence[Parameter], index: int) -> Iterator[Flaw]:
    position = {parameter.name: place for place, parameter in enumerate(search_space)}.get(when.parameter)
    if position is None:
        message = (
            f"{name} depends on {when.parameter}, which is not in searchSpace: declare it earlier, or "
            "correct "
            "the name"
        )
        yield Flaw(".parameter", message)
    elif position == index:
        yield Flaw(".parameter", f"{name} depends on itself: use another parameter, or remove when")
    elif position > index:
        message = f"{name} depends on {when.parameter}, which is declared after it: move it above {name}"
        yield Flaw(".parameter", message)
    else:
        yield from _comparison_flaws(when, search_space[position])


def _comparison_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    given = [
        field
        for field, value in {
            "equals": when.equals,
            "anyOf": when.any_of,
            "atLeast": when.at_least,
            "atMost": when.at_most,
        }.items()
        if value is not None
    ]
    equals_null = not given and "equals" in when.model_fields_set
    if len(given) != 1 and not equals_null:
        yield Flaw("", "set exactly one of equals, anyOf, atLeast and atMost")
    elif when.at_least is None and when.at_most is None:
        yield from _equality_flaws(when, parent)
    elif parent.type == "categorical":
        message = "atLeast and atMost need a numeric parameter: use equals or anyOf for a categorical one"
        yield Flaw(f".{given[0]}", message)
    else:
        yield from _bound_flaws(when, parent)


def _equality_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    field = ".equals" if when.any_of is None else ".anyOf"
    if size(parent) == float("inf"):
        message = (
            f"{parent.name} has infinitely many values and would never equal this one: use atLeast or "
            "atMost, "
            f"or give {parent.name} a step"
        )
        yield Flaw(field, message)
        return
    for index, value in enumerate(accepted(when)):
        if flaw := value_flaw(parent, value):
            place = field if when.any_of is None else f"{field}[{index}]"
            yield Flaw(place, f"this is never true, since {flaw}")
    if when.any_of is not None:
        yield from duplicate_flaws(field, when.any_of)


def _bound_flaws(when: When, parent: Parameter) -> Iterator[Flaw]:
    low, high = bounds(parent)
    if when.at_least is not None and not when.at_least <= high:
        message = f"this is never true, since {parent.name} is at most {shown(high)}: lower atLeast"
        yield Flaw(".atLeast", message)
    if when.at_most is not None and not when.at_most >= low:
        message = f"this is never true, since {parent.name} is at least {shown(low)}: raise atMost"
        yield Flaw(".atMost", message)
