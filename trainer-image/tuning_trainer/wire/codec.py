"""JSON as the study server speaks it: numbers that JSON lacks travel as strings."""

from __future__ import annotations

import math
from typing import Any


def number_to_wire(value: float) -> float | str:
    """Return a number as JSON has it; "NaN", "Infinity" or "-Infinity" where JSON has none."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def numbers_from_wire(mapping: dict[str, Any] | None) -> dict[str, float]:
    """Return a mapping's numbers; `float` reads the three strings as well."""
    return {key: float(value) for key, value in (mapping or {}).items()}
