"""A plot that can be drawn, and what its HTML and PNG files have in common."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna

LIGHTEST = 0.3
"""Where colors start on a scale from white: lines that are lighter can't be seen."""
MOST_TICKS = 5
WHISKER = 1.5
"""Interquartile ranges beyond the quartiles, after which a value is an outlier, as in box plots."""


class Drawing(NamedTuple):
    """A plot that can be drawn."""

    name: str
    """Name of its files."""
    function: str
    """Name of the function in optuna.visualization and optuna.visualization.matplotlib."""
    study: optuna.Study
    title: str
    metric: str
    """The metric, for plots of one objective."""
    options: dict[str, Any]
    remark: str | None = None


def log_ticks(low: float, high: float) -> dict[float, str]:
    """Return a few round values of a logarithmic axis, with their labels."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        values = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        ticks = [value for value in values if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]
        if len(ticks) > 2:
            break
    ticks = ticks or [low]
    ticks = ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
    return {value: _label(value) for value in ticks}


def _label(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return np.format_float_positional(value, 6, fractional=False, trim="-")
    digits, power = f"{value:e}".split("e")
    return f"{float(digits):.6g}e{int(power)}"


def color_range(values: Sequence[float] | np.ndarray, *, low_is_best: bool) -> tuple[float, float]:
    """Return the range of values to spread the colors over: without it, one outlier takes all but one."""
    low, first, third, high = np.quantile(values, [0, 0.25, 0.75, 1])
    if low_is_best:
        high = min(high, third + WHISKER * (third - first)) if third > first else high
    else:
        low = max(low, first - WHISKER * (third - first)) if third > first else low
    return float(low), float(high)
