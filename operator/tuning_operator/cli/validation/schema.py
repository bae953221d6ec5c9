"""The checks of the API server: the CRD's schema and its CEL rules."""

import copy
import difflib
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cel

from tuning_operator.resource.crdgen import crd

Schema = Mapping[str, Any]

INT_OR_STRING = "x-kubernetes-int-or-string"
UNKNOWN = "x-kubernetes-preserve-unknown-fields"
RULES = "x-kubernetes-validations"
LIST_TYPE = "x-kubernetes-list-type"
QUOTE = "put it in quotes"
"""YAML reads y, no, on and 1.0 as booleans and numbers, unless they are quoted."""
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


class Flaw(NamedTuple):
    """What is wrong with a field."""

    field: str
    message: str


def schema_flaws(manifest: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Flaw]:
    """Return what the API server would refuse in a TuningStudy.

    As on the server, the rules are checked only if types and bounds are good.

    Args:
        manifest: the TuningStudy.
        before: the one that it changes; None if it does not exist yet.
    """
    root = _schema()
    data = _defaulted(copy.deepcopy(dict(manifest)), root)
    old = None if before is None else _defaulted(copy.deepcopy(dict(before)), root)
    return [*_flaws(data, root, "")] or [*_broken_rules(data, old, root, "")]


@functools.cache
def _schema() -> Schema:
    """Return the schema of a TuningStudy; cached, since it is generated from the models."""
    root: Schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return root


def _defaulted(data: Any, schema: Schema) -> Any:
    """Return the data with defaults, and without nulls where null is not allowed, as the server does it."""
    if isinstance(data, dict) and "properties" in schema:
        for name, field in schema["properties"].items():
            if data.get(name) is None and name in data and not field.get("nullable"):
                del data[name]
            if name not in data and "default" in field:
                data[name] = copy.deepcopy(field["default"])
            if name in data:
                data[name] = _defaulted(data[name], field)
    elif isinstance(data, list) and "items" in schema:
        return [_defaulted(item, schema["items"]) for item in data]
    elif isinstance(data, int) and not isinstance(data, bool) and schema.get("type") == "number":
        return float(data)
    return data


def _flaws(data: Any, schema: Schema, field: str) -> Iterator[Flaw]:
    if data is None and schema.get("nullable"):
        return
    kind = schema.get("type")
    if kind and not _is(data, kind):
        hint = f" (should match '{schema['pattern']}')" if "pattern" in schema else ""
        if kind == "string" and isinstance(data, bool | int | float):
            hint = f" ({QUOTE}){hint}"
        yield Flaw(field, f"must be of type {kind}, not {_kind(data)}: {_shown(data)}{hint}")
        return
    if schema.get(INT_OR_STRING) and not (_is(data, "integer") or _is(data, "string")):
        yield Flaw(field, f"must be of type integer or string, not {_kind(data)}: {_shown(data)}")
        return
    if "enum" in schema and data not in schema["enum"]:
        supported = ", ".join(f'"{value}"' for value in schema["enum"])
        yield Flaw(field, f"Unsupported value: {_shown(data)}: supported values: {supported}")
    match data:
        case dict():
            yield from _object_flaws(data, schema, field)
        case list():
            yield from _list_flaws(data, schema, field)
        case str():
            yield from _text_flaws(data, schema, field)
        case int() | float() if not isinstance(data, bool):
            yield from _number_flaws(data, schema, field)


def _object_flaws(data: dict[str, Any], schema: Schema, field: str) -> Iterator[Flaw]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if data.get(name) is None:
            yield Flaw(_below(field, name), "Required value")
    if len(data) < schema.get("minProperties", 0) or len(data) > schema.get("maxProperties", math.inf):
        yield Flaw(field, "must not be an object")
    for name, value in data.items():
        if name in properties:
            yield from _flaws(value, properties[name], _below(field, name))
        elif isinstance(others, Mapping):
            yield from _flaws(value, others, _below(field, name))
        elif not schema.get(UNKNOWN) and properties and field != "metadata":  # that is Kubernetes' own
            near = difflib.get_close_matches(name.replace("_", ""), properties, n=1)
            known = f"did you mean {near[0]}?" if near else f"use one of {', '.join(properties)}"
            yield Flaw(_below(field, name), f"unknown field: {known}")


def _list_flaws(data: list[Any], schema: Schema, field: str) -> Iterator[Flaw]:
    if schema.get("maxItems") == 0:
        yield Flaw(field, f"must not be a list: write {schema['items']['enum'][0]}")
        return
    if len(data) < schema.get("minItems", 0):
        yield Flaw(field, f"should have at least {schema['minItems']} items")
    if len(data) > schema.get("maxItems", math.inf):
        yield Flaw(field, f"must have at most {schema['maxItems']} items")
    for index, item in enumerate(data):
        yield from _flaws(item, schema.get("items", {}), f"{field}[{index}]")
        if schema.get(LIST_TYPE) == "set" and any(_same(item, earlier) for earlier in data[:index]):
            yield Flaw(f"{field}[{index}]", f"Duplicate value: {_shown(item)}")


def _text_flaws(data: str, schema: Schema, field: str) -> Iterator[Flaw]:
    if len(data) < schema.get("minLength", 0):
        yield Flaw(field, f"should be at least {schema['minLength']} chars long")
    if len(data) > schema.get("maxLength", math.inf):
        yield Flaw(field, f"may not be more than {schema['maxLength']} bytes")
    if schema.get("type") == "string" and "pattern" in schema and not re.search(schema["pattern"], data):
        yield Flaw(field, f"should match '{schema['pattern']}'")


def _number_flaws(data: float, schema: Schema, field: str) -> Iterator[Flaw]:
    low, exclusive = schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", False)
    if data < low or (exclusive and data == low):
        than = "greater than" if exclusive else "greater than or equal to"
        yield Flaw(field, f"should be {than} {low}")
    if data > schema.get("maximum", math.inf):
        yield Flaw(field, f"should be less than or equal to {schema['maximum']}")


def _broken_rules(data: Any, old: Any, schema: Schema, field: str) -> Iterator[Flaw]:
    if data is None:
        return
    for rule in schema.get(RULES, ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        try:
            if not _evaluated(rule["rule"], data, old):
                message = (
                    _evaluated(rule["messageExpression"], data, old) if "messageExpression" in rule else None
                )
                yield Flaw(f"{field}{rule.get('fieldPath', '')}", message or rule["message"])
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            yield Flaw(field, f"can't be checked: {error}")
    if isinstance(data, dict):
        others = schema.get("additionalProperties")
        for name, value in data.items():
            inner = schema.get("properties", {}).get(name) or (others if isinstance(others, Mapping) else {})
            earlier = old.get(name) if isinstance(old, dict) else None
            yield from _broken_rules(value, earlier, inner, _below(field, name))
    elif isinstance(data, list):
        for index, item in enumerate(data):  # which of the old list's items it was can't be known
            yield from _broken_rules(item, None, schema.get("items", {}), f"{field}[{index}]")


def _evaluated(expression: str, data: Any, old: Any) -> Any:
    context = cel.Context()
    context.add_variable("self", data)
    context.add_variable("oldSelf", old)
    context.add_function("format", lambda text, values: text % tuple(map(_formatted, values)))
    context.add_function("replace", lambda text, old, new: text.replace(old, new))
    return cel.evaluate(expression, context)


def _formatted(value: Any) -> Any:
    """Return a value as CEL's format shows it: whole numbers without a point."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is(data: Any, kind: str) -> bool:
    if isinstance(data, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(data, float):
        return data.is_integer()
    return isinstance(data, TYPES[kind])


def _kind(data: Any) -> str:
    return next((kind for kind in TYPES if _is(data, kind)), "null")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _shown(data: Any) -> str:
    return f'"{data}"' if isinstance(data, str) else str(data)


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
