"""What operator, study server and trainer agree on: names, and strings for NaN and infinities in JSON."""

from __future__ import annotations

import math
from typing import Any

TRIAL_STARTED = "Tuning-Trial-Started"
"""The header with which a pod says which trial of its number it runs: the one that started then."""

WARNING = "trainer_warning"
"""The user attribute in which the record of a trial, or of the refit, has a warning of the runtime's."""

_BY_NAME = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number_to_wire(value: float) -> float | str:
    """Return a number for JSON; "NaN", "Infinity" or "-Infinity" for those that JSON does not have."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def to_wire(value: Any) -> Any:
    """Return any value for JSON, with all numbers in its lists and mappings."""
    if isinstance(value, float):
        return number_to_wire(value)
    if isinstance(value, dict):
        return {key: to_wire(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(inner) for inner in value]
    return value


def number_from_wire(value: Any) -> Any:
    """Return the number that one of the three strings means, and any other value as it is."""
    return _BY_NAME.get(value, value) if isinstance(value, str) else value


def from_wire(value: Any) -> Any:
    """Return any value with the numbers that the three strings mean, also in its lists and mappings."""
    if isinstance(value, dict):
        return {key: from_wire(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [from_wire(inner) for inner in value]
    return number_from_wire(value)


def parameters_from_wire(parameters: dict[str, Any], distributions: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's parameters; the choices tell whether "NaN" is a string or a number.

    Args:
        parameters: as received.
        distributions: their distributions in Optuna's JSON form.
    """
    found = {}
    for name, value in parameters.items():
        choices = distributions[name]["attributes"].get("choices", ()) if name in distributions else (value,)
        found[name] = value if value in choices else from_wire(value)
    return found


def numbers_from_wire(mapping: dict[str, Any] | None) -> dict[str, float]:
    """Return a mapping's numbers."""
    return {key: float(number_from_wire(value)) for key, value in (mapping or {}).items()}
