"""Objects in a line, JSON or as Python prints them, as pairs of a name and a value."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.metrics.values import Unreadable, Value, read_value

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_KEYS = ("metricname", "metric", "name", "key", "tag")
VALUE_KEYS = ("metricvalue", "value", "val")
"""How an object of one metric may call its name and its value, without underscores."""

_DECODER = json.JSONDecoder()


class Leaf(NamedTuple):
    """A value in an object, with the keys that lead to it."""

    path: tuple[str, ...]
    value: Any

    def is_called(self, name: str) -> bool:
        """Return whether the name is the last key, or the end of the path: eval.f1, val/loss."""
        path = self.path[:-1] if self.path[-1] == "value" and self.path[1:] else self.path
        return any(mark.join(path[-n:]) == name for n in range(1, len(path) + 1) for mark in "./")

    def read(self) -> Value:
        """Return the value as a number."""
        if isinstance(self.value, Unreadable):
            return self.value
        if isinstance(self.value, bool):
            return None
        if isinstance(self.value, (int, float)):
            return float(self.value)
        if isinstance(self.value, str):
            return read_value(self.value)
        if isinstance(self.value, list) and self.value:
            if len(self.value) == 1:
                return self._replace(value=self.value[0]).read()
            return Unreadable(f"{json.dumps(self.value)[:40]} is not a plain number")
        return None

    @property
    def text(self) -> str:
        """The value if it is a text."""
        return self.value if isinstance(self.value, str) else ""

    def folded(self) -> Leaf:
        """Return the leaf with its keys in lower case."""
        return self._replace(path=tuple(key.casefold() for key in self.path))


def split_objects(text: str) -> tuple[list[Any], str]:
    """Return the objects in a line, and the text around them."""
    objects, around, at = [], "", 0
    while (start := text.find("{", at)) >= 0:
        decoded = _decode(text, start)
        if decoded is None:
            break
        objects.append(decoded[0])
        around += text[at:start] + " "
        at = decoded[1]
    return objects, around + text[at:]


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        end = text.rfind("}") + 1
    try:
        return ast.literal_eval(text[start:end]), end
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def leaves(thing: Any) -> Iterator[Leaf]:
    """Yield an object's leaves, the least nested first; {"name": "loss", "value": 1} has one called loss."""
    waiting: list[Leaf] = [Leaf((), thing)]
    for path, value in waiting:
        if isinstance(value, dict):
            waiting += [Leaf((*path, str(key)), inner) for key, inner in value.items()]
            by_key = {_plain(str(key)): inner for key, inner in value.items()}
            names = [by_key[key] for key in NAME_KEYS if isinstance(by_key.get(key), str)]
            values = [by_key[key] for key in VALUE_KEYS if key in by_key]
            if names and values:
                waiting.append(Leaf((*path, names[0]), values[0]))
        elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list)) for item in value):
            waiting += [Leaf(path, item) for item in value]
        elif path:
            yield Leaf(path, value)


def _plain(key: str) -> str:
    return key.casefold().replace("_", "")
