"""One parameter's values: its distribution, its grid, and whether a value is among them."""

import math
from decimal import Decimal
from itertools import count, takewhile
from typing import Any, NamedTuple, TypeGuard

from tuning_operator.resource.study import Parameter, Scalar

_OFF_STEP = 1e-8
"""Tolerance of Optuna's FloatDistribution for a value between steps, in steps."""
_LISTED = 10
"""The number of choices that a message lists at most."""


class Flaw(NamedTuple):
    """What is wrong: the path in the manifest's spec, and a message that says how to fix it."""

    field: str
    message: str


def distribution(parameter: Parameter) -> dict[str, Any]:
    """Return a valid parameter's distribution in the form of Optuna's `distribution_to_json`."""
    if parameter.type == "categorical":
        return {"name": "CategoricalDistribution", "attributes": {"choices": list(parameter.choices or [])}}
    low, high = bounds(parameter)
    if parameter.type == "int":
        step = int(parameter.step or 1)
        whole: dict[str, Any] = {"log": parameter.log, "step": step, "low": int(low), "high": int(high)}
        return {"name": "IntDistribution", "attributes": whole}
    attributes = {"step": parameter.step, "low": low, "high": high, "log": parameter.log}
    return {"name": "FloatDistribution", "attributes": attributes}


def bounds(parameter: Parameter) -> tuple[float, float]:
    """Return the smallest and largest value of a range; as in Optuna, the largest is on a step."""
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if not parameter.step:
        return low, high
    start, step = Decimal(str(low)), Decimal(str(parameter.step))
    return low, float((Decimal(str(high)) - start) // step * step + start)


def size(parameter: Parameter) -> float:
    """Return the number of values; infinity for a range of floats without step."""
    if parameter.type == "categorical":
        return len(parameter.choices or [])
    low, high = bounds(parameter)
    step = parameter.step or (1.0 if parameter.type == "int" else 0.0)
    if not step:
        return 1 if low == high else math.inf
    return round((high - low) / step) + 1


def values(parameter: Parameter) -> list[Scalar]:
    """Return all values of a parameter whose `size` is finite; steps are decimal: 0.3, not 0.1 + 2 * 0.1."""
    if parameter.type == "categorical":
        return list(parameter.choices or [])
    low, high = (Decimal(str(bound)) for bound in bounds(parameter))
    step = Decimal(str(parameter.step or 1))
    grid = takewhile(lambda value: value <= high, (low + index * step for index in count()))
    return [int(value) if parameter.type == "int" else float(value) for value in grid]


def same(one: Scalar, other: Scalar) -> bool:
    """Return whether two values are the same in a manifest: 1 is 1.0, but neither true nor "1".

    Rounding is ignored: a value computed from steps (0.1 + 2 * 0.1) equals the written one (0.3).
    """
    if is_number(one) and is_number(other):
        return one == other or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return type(one) is type(other) and one == other


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Scalar) -> str:
    """Return a value as written in a manifest: `true`, `null`, `"text"`, 10 for 10.0."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{value}"'
    return str(int(value)) if abs(value) < _EXACT and float(value).is_integer() else str(value)


_EXACT = 2**53


def listed(several: list[Scalar]) -> str:
    """Return a list of values for a message."""
    text = ", ".join(shown(value) for value in several[:_LISTED])
    return text if len(several) <= _LISTED else f"{text} and {len(several) - _LISTED} more"


def value_flaw(parameter: Parameter, value: Scalar) -> str | None:
    """Return why a parameter can't have a value and how to fix it; None if it can.

    Whole numbers may be written as 2 or 2.0, for int and float, since JSON does not distinguish them.
    """
    if parameter.type == "categorical":
        return _choice_flaw(parameter, value)
    if not is_number(value):
        return _type_flaw(parameter, value)
    low, high = bounds(parameter)
    if not low <= value <= high:
        return (
            f"{shown(value)} is outside the range of {parameter.name}: use a value from {shown(low)} to "
            f"{shown(high)}"
        )
    if parameter.type == "int" and not float(value).is_integer():
        return f"{shown(value)} is not a whole number, but {parameter.name} is an int: round it"
    return _step_flaw(parameter, value, low)


def _choice_flaw(parameter: Parameter, value: Scalar) -> str | None:
    choices = parameter.choices or []
    if any(same(value, choice) for choice in choices):
        return None
    message = f"{shown(value)} is not a choice of {parameter.name}"
    alike = [choice for choice in choices if _text(choice) == _text(value) or choice == value]
    if alike:
        return f"{message}: did you mean {shown(alike[0])}?"
    return f"{message}: use one of {listed(choices)}"


def _text(value: Scalar) -> str:
    return value.lower() if isinstance(value, str) else shown(value)


def _type_flaw(parameter: Parameter, value: Scalar) -> str:
    wanted = "a whole number" if parameter.type == "int" else "a number"
    message = f"{shown(value)} is not {wanted}, but {parameter.name} is of type {parameter.type}"
    if isinstance(value, str):
        try:
            return f"{message}: write {shown(float(value))} without quotes"
        except (ValueError, OverflowError):
            pass
    return f"{message}: use {wanted}"


def _step_flaw(parameter: Parameter, value: float, low: float) -> str | None:
    step = parameter.step
    if not step:
        return None
    steps = (value - low) / step
    if abs(steps - round(steps)) < _OFF_STEP:
        return None
    below = float(Decimal(str(low)) + math.floor(steps) * Decimal(str(step)))
    above = float(Decimal(str(below)) + Decimal(str(step)))
    nearest = shown(below) if above > bounds(parameter)[1] else f"{shown(below)} or {shown(above)}"
    return (
        f"{shown(value)} is not on a step of {parameter.name} (step {shown(step)} from {shown(low)}): "
        f"use {nearest}"
    )
