"""YAML with the line of each field."""

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Loader(yaml.SafeLoader):
    """Reads scalars as kubectl does: 1e-5 is a number, y is true, dates and times are strings."""

    bool_values = yaml.SafeLoader.bool_values | {"y": True, "n": False}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping as in JSON, whose keys are strings."""
        found = super().construct_mapping(node, deep=deep)
        try:
            return {key if isinstance(key, str) else json.dumps(key): value for key, value in found.items()}
        except TypeError as error:  # for example a date
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer; one that starts with 0 is octal."""
        text = self.construct_scalar(node).replace("_", "")
        try:
            return int(re.sub(r"^([-+]?)0(?=[0-9])", r"\g<1>0o", text), 0)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01][01_]*|0o?[0-7][0-7_]*|0x[0-9a-f][0-9a-f_]*|0|[1-9][0-9_]*)$", re.IGNORECASE),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Document:
    """A document of a YAML file."""

    data: Any
    node: yaml.Node

    def line(self, field: str) -> int:
        """Return the line of a field such as `spec.searchSpace[0].low`, or of the nearest one around it."""
        node, line = self.node, self.node.start_mark.line
        for name, index in PART.findall(field):
            found = _item(node, int(index)) if index else _entry(node, name)
            if found is None:
                break
            node, line = found
        return line + 1

    def duplicates(self) -> Iterator[tuple[str, int]]:
        """Yield (key, line) of keys that occur twice in a mapping."""
        yield from _duplicates(self.node)


def documents(text: str) -> list[Document]:
    """Return the documents of a YAML file, without empty ones.

    Raises:
        yaml.YAMLError: it is not valid YAML.
    """
    loader = Loader(text)
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None and (data := loader.construct_document(node)) is not None:
                found.append(Document(data, node))
    finally:
        loader.dispose()
    return found


def _entry(node: yaml.Node, name: str) -> tuple[yaml.Node, int] | None:
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((value, key.start_mark.line) for key, value in entries if key.value == name), None)


def _item(node: yaml.Node, index: int) -> tuple[yaml.Node, int] | None:
    if not isinstance(node, yaml.SequenceNode) or index >= len(node.value):
        return None
    return node.value[index], node.value[index].start_mark.line


def _duplicates(node: yaml.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)
