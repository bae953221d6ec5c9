"""Durations as written in manifests: `90s`, `20m`, `1h30m`, `2d`."""

import re
from typing import Annotated

from pydantic import Field

from tuning_operator.resource import rules

PATTERN = r"^([0-9]{1,4}d)?([0-9]{1,5}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$"
"""The number of digits is limited such that the sum fits the 31 bits of a Job's fields."""

_HINT = "use a number and a unit, for example 90s, 20m, 1h30m or 2d"
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

Duration = Annotated[
    str,
    Field(
        pattern=PATTERN,
        min_length=2,
        max_length=20,
        json_schema_extra={rules.INT_OR_STRING: True}
        | rules.pattern_message(f"{{self}} is not a duration: {_HINT}"),
    ),
]


def seconds(duration: str) -> int:
    """Return a duration in seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    if not duration or not re.match(PATTERN, duration):
        raise ValueError(f"{duration!r} is not a duration: {_HINT}")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", duration))
