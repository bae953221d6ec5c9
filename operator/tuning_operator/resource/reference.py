"""Generates the field reference from the CRD.

`python -m tuning_operator.resource.reference > docs/reference/tuningstudy.md`
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator

from tuning_operator.resource import names, rules
from tuning_operator.resource.crdgen import Schema, crd

_INTRODUCTION = f"""\
<!-- Generated from the models in tuning_operator.resource; do not edit. -->
# {names.KIND} ({names.API_VERSION})

All fields of the resource. `kubectl explain {names.KIND.lower()}.spec --recursive` lists those of the
installed version. Below each table are the validation messages of the API server: what it checks when a
manifest is applied.
"""


def render() -> str:
    """Return the reference as Markdown."""
    parts = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    metadata = {
        "description": "Standard metadata, with two more restrictions on the name.",
        **parts["metadata"],
    }
    sections = [
        _tables("metadata", metadata),
        _tables("spec", parts["spec"]),
        _tables("status", parts["status"]),
    ]
    return "\n".join([_INTRODUCTION, *itertools.chain.from_iterable(sections)])


def _tables(path: str, schema: Schema) -> Iterator[str]:
    """Yield the section of an object, then those of the objects in it."""
    fields = schema["properties"]
    required = schema.get("required", [])
    yield f"## {path}\n\n{schema['description']}\n"
    yield "| field | type | |\n|---|---|---|"
    yield from (_row(name, field, name in required) for name, field in fields.items())
    yield ""
    yield from _rules(schema)
    for name, field in fields.items():
        inner, suffix = _object(field)
        if inner:
            yield from _tables(f"{path}.{name}{suffix}", inner)


def _object(field: Schema) -> tuple[Schema | None, str]:
    if field.get("type") == "array":
        return _object(field["items"])[0], "[]"
    return (field if "properties" in field else None), ""


def _row(name: str, field: Schema, required: bool) -> str:
    described = "default" not in field or "Defaults to" in field.get("description", "")
    default = [] if described else [f"Default: `{json.dumps(field['default'])}`."]
    need = ["**Required.**"] if required else []
    summary = field["description"].partition("\n\n")[0]  # the object's own section has the rest
    text = " ".join([*need, summary, *_bounds(field), *default])
    return f"| `{name}` | {_type(field)} | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _type(field: Schema) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if rules.INT_OR_STRING in field:
        return "string"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    return str(field.get("type", "any scalar"))


def _bounds(field: Schema) -> list[str]:
    exclusive = field.get("exclusiveMinimum")
    limits = {"minimum": "More than" if exclusive else "At least", "maximum": "At most"}
    sizes = {"maxItems": "items", "maxLength": "characters"}
    return [f"{limit} {field[key]:.15g}." for key, limit in limits.items() if key in field] + [
        f"At most {field[key]} {unit}." for key, unit in sizes.items() if key in field and "type" in field
    ]


def _rules(schema: Schema) -> Iterator[str]:
    """Yield the messages of an object's rules, including those of fields that are not objects."""
    messages = list(_messages("", schema))
    for name, field in schema.get("properties", {}).items():
        if "properties" not in field:
            messages += _messages(f".{name}", field)
    if messages:
        yield "\n".join(f"- {message}" for message in messages) + "\n"


def _messages(path: str, schema: Schema) -> Iterator[str]:
    for rule in schema.get(rules.KEY, []):
        field = (path + rule.get("fieldPath", "")).removeprefix(".")
        message = rule.get("message") or _readable(rule["messageExpression"])
        yield f"`{field}`: {message}" if field else message


def _readable(expression: str) -> str:
    """Return the text of a messageExpression, with the last name of each expression in its place."""
    text, _, expressions = expression.removeprefix("'").removesuffix(")])").partition("'.format([")
    expressions = re.sub(r"\.replace\('.*?', '.*?'\)", "", expressions)
    fields = [re.findall("[A-Za-z]+", part)[-1] for part in expressions.split(", dyn(")]
    return text.replace("\\'", "'") % tuple(f"*{field}*".replace("self", "value") for field in fields)


if __name__ == "__main__":
    sys.stdout.write(render())
