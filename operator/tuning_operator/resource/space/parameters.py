"""Checks of a single parameter, apart from its condition; `field` is the path within it."""

import math
from collections.abc import Iterator

from tuning_operator.resource.space.values import Flaw, shown
from tuning_operator.resource.study import Parameter, Scalar

_LARGEST_INT = 2**53
"""Up to this, a double holds every whole number."""
_FINEST = 1e15
"""The most steps in a range; with more, a double can't distinguish adjacent values."""


def parameter_flaws(parameter: Parameter) -> Iterator[Flaw]:
    """Yield what is wrong with a parameter, apart from its condition."""
    if parameter.type == "categorical":
        yield from _categorical_flaws(parameter)
    else:
        flaws = list(_field_flaws(parameter))
        yield from flaws or _range_flaws(parameter)


def duplicate_flaws(field: str, values: list[Scalar]) -> Iterator[Flaw]:
    """Yield the duplicates; Optuna treats 1, 1.0 and true as the same value."""
    for index, value in enumerate(values):
        first = values.index(value)
        if first == index:
            continue
        if type(values[first]) is type(value):
            message = f"{shown(value)} is listed twice: remove one"
        else:
            message = (
                f"{shown(value)} and {shown(values[first])} ({field}[{first}]) are the same value to Optuna: "
                "remove one, or quote both to make them strings"
            )
        yield Flaw(f"{field}[{index}]", message)


def _categorical_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name = parameter.name
    if not parameter.choices:
        yield Flaw("choices", f"{name} is categorical and needs choices: list the values to choose from")
    given = {
        "low": parameter.low,
        "high": parameter.high,
        "step": parameter.step,
        "log": parameter.log or None,
    }
    for field in (field for field, value in given.items() if value is not None):
        message = (
            f"{name} is categorical, so it can't have {field}: remove it, or change type to float or int"
        )
        yield Flaw(field, message)
    for index, choice in enumerate(parameter.choices or []):
        if isinstance(choice, float) and not math.isfinite(choice):
            yield Flaw(
                f"choices[{index}]",
                f"{choice} is not a finite number: quote it to make it a string, or remove it",
            )
    yield from duplicate_flaws("choices", list(parameter.choices or []))


def _field_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name, kind = parameter.name, parameter.type
    if parameter.choices is not None:
        message = (
            f"{name} is of type {kind}, so it can't have choices: remove them, or change type to categorical"
        )
        yield Flaw("choices", message)
    numbers = {"low": parameter.low, "high": parameter.high, "step": parameter.step}
    for field, value in numbers.items():
        if value is None:
            if field != "step":
                which = "smallest" if field == "low" else "largest"
                yield Flaw(field, f"{name} is of type {kind} and needs {field}: set the {which} value")
        elif not math.isfinite(value):
            yield Flaw(field, f"{name} has {field} {value}, but {field} must be a finite number")
        elif kind == "int" and not (value.is_integer() and abs(value) <= _LARGEST_INT):
            message = (
                f"{name} is an int, so {field} must be a whole number (at most 2^53), not {shown(value)}: "
                "round it, or change type to float"
            )
            yield Flaw(field, message)


def _range_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name, low, high = parameter.name, parameter.low or 0.0, parameter.high or 0.0
    if low > high:
        yield Flaw("low", f"{name} has low {shown(low)} above high {shown(high)}: swap them")
    if not math.isfinite(high - low):
        message = (
            f"{name} has a range from {shown(low)} to {shown(high)}, which is wider than the largest float, "
            "1.8e308: raise low or lower high"
        )
        yield Flaw("high", message)
    if parameter.log and low <= 0:
        message = (
            f"{name} has a logarithmic scale (log: true), so low must be above 0, not {shown(low)}: "
            "raise low or remove log"
        )
        yield Flaw("low", message)
    if parameter.step is not None:
        yield from _step_flaws(parameter, parameter.step, low, high)


def _step_flaws(parameter: Parameter, step: float, low: float, high: float) -> Iterator[Flaw]:
    name = parameter.name
    if parameter.log:
        yield Flaw("step", f"{name} has both step and log, but Optuna allows only one of them: remove one")
    if step <= 0:
        message = f"{name} has step {shown(step)}, but a step must be above 0: correct or remove it"
        yield Flaw("step", message)
    elif low < high and step > (high - low) * 1.000001:  # 0.3 - 0.1 is less than 0.2
        message = (
            f"{name} has step {shown(step)}, which is larger than its range, so only {shown(low)} would be "
            "tried: lower step or raise high"
        )
        yield Flaw("step", message)
    elif low < high and (high - low) / step > _FINEST:
        message = (
            f"{name} has step {shown(step)}, which is too small for the range {shown(low)} to {shown(high)}: "
            "raise or remove it"
        )
        yield Flaw("step", message)
