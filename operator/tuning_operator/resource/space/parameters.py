"""What can be wrong with one parameter; `field` is the path within it."""

import math
from collections.abc import Iterator

from tuning_operator.resource.space.values import Flaw, shown
from tuning_operator.resource.study import Parameter, Scalar

_LARGEST_INT = 2**53
"""Up to it, every whole number is a double."""
_FINEST = 1e15
"""The most steps a range can have; beyond, neighbouring values are one to a double."""


def parameter_flaws(parameter: Parameter) -> Iterator[Flaw]:
    """Yield what is wrong with a parameter, its condition aside."""
    if parameter.type == "categorical":
        yield from _categorical_flaws(parameter)
    else:
        flaws = list(_field_flaws(parameter))
        yield from flaws or _range_flaws(parameter)


def duplicate_flaws(field: str, values: list[Scalar]) -> Iterator[Flaw]:
    """Yield the values that are there before: Optuna takes 1, 1.0 and true for one and the same."""
    for index, value in enumerate(values):
        first = values.index(value)
        if first == index:
            continue
        if type(values[first]) is type(value):
            message = f"{shown(value)} is there twice: remove one"
        else:
            message = (
                f"{shown(value)} and {field}[{first}] {shown(values[first])} are one value to Optuna: "
                "remove one, or write both as texts"
            )
        yield Flaw(f"{field}[{index}]", message)


def _categorical_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name = parameter.name
    if not parameter.choices:
        yield Flaw("choices", f"{name} is categorical, which needs choices: list the values to choose from")
    given = {
        "low": parameter.low,
        "high": parameter.high,
        "step": parameter.step,
        "log": parameter.log or None,
    }
    for field in (field for field, value in given.items() if value is not None):
        message = f"{name} is categorical and takes no {field}: remove it, or make the type float or int"
        yield Flaw(field, message)
    for index, choice in enumerate(parameter.choices or []):
        if isinstance(choice, float) and not math.isfinite(choice):
            yield Flaw(f"choices[{index}]", f"{choice} is no finite number: write it as a text, or remove it")
    yield from duplicate_flaws("choices", list(parameter.choices or []))


def _field_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name, kind = parameter.name, parameter.type
    if parameter.choices is not None:
        message = f"{name} is of type {kind}, which takes no choices: remove them, or make it categorical"
        yield Flaw("choices", message)
    numbers = {"low": parameter.low, "high": parameter.high, "step": parameter.step}
    for field, value in numbers.items():
        if value is None:
            if field != "step":
                where = "begins" if field == "low" else "ends"
                yield Flaw(
                    field, f"{name} is of type {kind}, which needs {field}: say where its range {where}"
                )
        elif not math.isfinite(value):
            yield Flaw(field, f"{name} has {field} {value}: it must be a finite number")
        elif kind == "int" and not (value.is_integer() and abs(value) <= _LARGEST_INT):
            message = (
                f"{name} is an int, so its {field} must be a whole number (at most 2^53), not "
                f"{shown(value)}: round it, or make the type float"
            )
            yield Flaw(field, message)


def _range_flaws(parameter: Parameter) -> Iterator[Flaw]:
    name, low, high = parameter.name, parameter.low or 0.0, parameter.high or 0.0
    if low > high:
        yield Flaw("low", f"{name} has low {shown(low)} above high {shown(high)}: swap them")
    if parameter.log and low <= 0:
        message = (
            f"{name} is sampled on a logarithmic scale (log), so low must be above 0, not {shown(low)}: "
            "raise it or remove log"
        )
        yield Flaw("low", message)
    if parameter.step is not None:
        yield from _step_flaws(parameter, parameter.step, low, high)


def _step_flaws(parameter: Parameter, step: float, low: float, high: float) -> Iterator[Flaw]:
    name = parameter.name
    if parameter.log:
        yield Flaw("step", f"{name} has both step and log, which exclude each other: remove one")
    if step <= 0:
        message = f"{name} has step {shown(step)}: it must be above 0; remove it for a range without steps"
        yield Flaw("step", message)
    elif low < high and step > (high - low) * 1.000001:  # 0.3 - 0.1 is less than 0.2
        message = (
            f"{name} has step {shown(step)}, more than its whole range, so only {shown(low)} would be tried: "
            "lower the step, or raise high"
        )
        yield Flaw("step", message)
    elif low < high and (high - low) / step > _FINEST:
        message = (
            f"{name} has step {shown(step)}, too small for a range from {shown(low)} to {shown(high)}: "
            "raise it, or remove it for a range without steps"
        )
        yield Flaw("step", message)
