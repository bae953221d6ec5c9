"""Durations as manifests write them: `90s`, `20m`, `1h30m`, `2d`."""

import re
from typing import Annotated

from pydantic import Field

PATTERN = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

Duration = Annotated[str, Field(pattern=PATTERN, min_length=2, max_length=20)]


def seconds(duration: str) -> int:
    """Return the duration's length in seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    if not duration or not re.match(PATTERN, duration):
        raise ValueError(f"{duration!r} is not a duration; write it like 90s, 20m, 1h30m or 2d")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", duration))
