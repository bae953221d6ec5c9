"""Optuna's distributions, for images without Optuna: the same checks, messages and JSON form.

They follow optuna/distributions.py of Optuna 5.0.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from tuning_trainer.log import warn
from tuning_trainer.wire import codec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Distribution:
    """A set of values that a parameter may take."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *sorted(self.__dict__.items())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in sorted(self.__dict__.items()))})"

    def external(self, value: Any) -> Any:
        """Return the value that the user gets for one that was received as JSON."""
        raise NotImplementedError


class FloatDistribution(Distribution):
    """A range of floats; both ends are included."""

    def __init__(self, low: float, high: float, log: bool = False, step: float | None = None) -> None:
        if log and step is not None:
            raise ValueError("The parameter `step` is not supported when `log` is true.")
        if low > high:
            raise ValueError(f"`low <= high` must hold, but got ({low=}, {high=}).")
        if log and low <= 0.0:
            raise ValueError(f"`low > 0` must hold for `log=True`, but got ({low=}, {high=}).")
        if step is not None and step <= 0:
            raise ValueError(f"`step > 0` must hold, but got {step=}.")
        self.step = None if step is None else float(step)
        self.low = float(low)
        self.high = float(high if step is None else _last_on_grid(low, high, step))
        self.log = bool(log)

    def external(self, value: Any) -> float:
        """Return the value as a float."""
        return float(value)


class IntDistribution(Distribution):
    """A range of integers; both ends are included."""

    def __init__(self, low: int, high: int, log: bool = False, step: int = 1) -> None:
        if log and step != 1:
            raise ValueError(
                "Samplers and other components in Optuna only accept step is 1 when `log` argument is True."
            )
        if low > high:
            raise ValueError(f"`low <= high` must hold, but got ({low=}, {high=}).")
        if log and low < 1:
            raise ValueError(f"`low >= 1` must hold for `log=True`, but got ({low=}, {high=}).")
        if step <= 0:
            raise ValueError(f"`step > 0` must hold, but got {step=}.")
        self.log = bool(log)
        self.step = int(step)
        self.low = int(low)
        self.high = _last_integer_on_grid(self.low, int(high), self.step)

    def external(self, value: Any) -> int:
        """Return the value as an int."""
        return int(value)


class CategoricalDistribution(Distribution):
    """A list of values to choose from."""

    def __init__(self, choices: Sequence[Any]) -> None:
        if len(choices) == 0:
            raise ValueError("The `choices` must contain one or more elements.")
        for choice in choices:
            if choice is not None and not isinstance(choice, (bool, int, float, str)):
                warn(
                    "Choices for a categorical distribution should be a tuple of None, bool, int, "
                    "float and str for persistent storage but contains "
                    f"{choice} which is of type {type(choice).__name__}."
                )
        self.choices = tuple(choices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CategoricalDistribution) or len(self.choices) != len(other.choices):
            return False
        return all(_same_choice(mine, theirs) for mine, theirs in zip(self.choices, other.choices))

    __hash__ = Distribution.__hash__

    def external(self, value: Any) -> Any:
        """Return the user's own object for a choice that was received as JSON."""
        for received in (value, codec.from_wire(value)):
            alike = [choice for choice in self.choices if _same_choice(choice, received)]
            exact = [choice for choice in alike if type(_plain(choice)) is type(received)]
            if alike:
                return (exact or alike)[0]
        raise ValueError(f"'{value}' not in {self.choices}.")


_KINDS = {kind.__name__: kind for kind in (FloatDistribution, IntDistribution, CategoricalDistribution)}


def to_wire(distribution: Distribution) -> dict[str, Any]:
    """Return Optuna's JSON form.

    Raises:
        TypeError: a choice can't be written as JSON.
    """
    attributes = dict(distribution.__dict__)
    if isinstance(distribution, CategoricalDistribution):
        attributes["choices"] = [_checked(choice) for choice in distribution.choices]
    return {"name": type(distribution).__name__, "attributes": attributes}


def _checked(choice: Any) -> Any:
    plain = _plain(choice)
    try:
        json.dumps(plain, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise TypeError(f"{choice!r} can't be written as JSON") from None
    return plain


def from_wire(form: dict[str, Any]) -> Distribution:
    """Return the distribution for Optuna's JSON form."""
    made: Distribution = _KINDS[form["name"]](**form["attributes"])
    return made


def to_optuna(distribution: Distribution) -> Any:
    """Return Optuna's own object where the user's code has loaded Optuna, otherwise this one."""
    optuna = sys.modules.get("optuna.distributions")
    if optuna is None:
        return distribution
    return getattr(optuna, type(distribution).__name__)(**distribution.__dict__)


def from_optuna(distribution: Any) -> Distribution:
    """Return the distribution of this module for one of Optuna's."""
    if isinstance(distribution, Distribution):
        return distribution
    made: Distribution = _KINDS[type(distribution).__name__](**distribution.__dict__)
    return made


def check_compatible(old: Distribution, new: Distribution) -> None:
    """Check that a parameter may be suggested again with another distribution.

    Raises:
        ValueError: they differ in kind, scale or choices.
    """
    if type(old) is not type(new):
        raise ValueError("Cannot set different distribution kind to the same parameter name.")
    if isinstance(old, CategoricalDistribution):
        if old != new:
            raise ValueError("CategoricalDistribution does not support dynamic value space.")
    elif old.__dict__["log"] != new.__dict__["log"]:
        raise ValueError("Cannot set different log configuration to the same parameter name.")


def values(distribution: Distribution) -> list[Any] | None:
    """Return all values of a distribution; None if it is a continuous range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, step = (distribution.__dict__[name] for name in ("low", "high", "step"))
    if step is None:
        return [low] if low == high else None
    return [low + index * step for index in range(round((high - low) / step) + 1)]


def _same_choice(one: Any, other: Any) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(map(_same_choice, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)


def _plain(choice: Any) -> Any:
    """Return a choice as JSON returns it: tuples and arrays become lists, NumPy's numbers Python's."""
    if hasattr(type(choice), "tolist"):
        choice = choice.tolist()
    return [_plain(item) for item in choice] if isinstance(choice, (list, tuple)) else choice


def _last_on_grid(low: float, high: float, step: float) -> float:
    from decimal import Decimal  # as in Optuna: 0.1 + 0.2 is 0.3 here

    extent, width = Decimal(str(high)) - Decimal(str(low)), Decimal(str(step))
    if extent % width == 0:
        return high
    last = float((extent // width) * width + Decimal(str(low)))
    _warn_of_grid(low, high, last, step)
    return last


def _last_integer_on_grid(low: int, high: int, step: int) -> int:
    last = low + (high - low) // step * step
    if last != high:
        _warn_of_grid(low, high, last, step)
    return last


def _warn_of_grid(low: float, high: float, last: float, step: float) -> None:
    warn(
        f"The distribution is specified by [{low}, {high}] and {step=}, but the range is "
        f"not divisible by `step`. It will be replaced with [{low}, {last}]."
    )
