"""Numbers, times and trials' values as shown in a terminal."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

NOTHING = "-"
"""Shown where there is no value."""


def shown(value: Any) -> str:
    """Return a value: numbers with six digits, text as it is, others as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value)
    return str(value)


def span(seconds: float) -> str:
    """Return a duration with its two largest units, for example `1m20s` or `3h5m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s" if seconds >= 10 or whole == seconds else f"{seconds:.1f}s"
    parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    largest = next(i for i, (number, _) in enumerate(parts) if number)
    return "".join(f"{number}{unit}" for number, unit in parts[largest : largest + 2] if number)


def moment(time: datetime) -> str:
    """Return a time of this machine's time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(time: str) -> str:
    """Return how long ago a time of an API object was."""
    return span((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())


def pairs(values: Iterable[tuple[str, Any]]) -> str:
    """Return `name=value` pairs in one line."""
    return " ".join(f"{name}={shown(value)}" for name, value in values)
