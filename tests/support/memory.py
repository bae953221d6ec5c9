"""What a part of the product remembers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def mentions(root: Any, text: str) -> bool:
    """Return whether an object of the product has this text in its memory, or one that it refers to."""
    seen, left = set[int](), [root]
    while left:
        found = left.pop()
        if isinstance(found, str):
            if found == text:
                return True
        elif id(found) not in seen:
            seen.add(id(found))
            if isinstance(found, Mapping):
                left += [*found.keys(), *found.values()]
            elif isinstance(found, Collection) and not isinstance(found, bytes):
                left += found
            if type(found).__module__.startswith("tuning_operator."):
                left += getattr(found, "__dict__", {}).values()
    return False
