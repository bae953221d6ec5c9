"""NaN and infinities, which JSON does not have, are sent as strings."""

from __future__ import annotations

import math
from typing import Any


def number_to_wire(value: float) -> float | str:
    """Return a number for JSON; "NaN", "Infinity" or "-Infinity" for those that JSON does not have."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def numbers_from_wire(mapping: dict[str, Any] | None) -> dict[str, float]:
    """Return a mapping's numbers; `float` also reads the three strings."""
    return {key: float(value) for key, value in (mapping or {}).items()}
