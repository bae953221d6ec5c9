"""Generates the CustomResourceDefinition from the models.

`python -m tuning_operator.resource.crdgen > crds/tuningstudies.tuning.dev.yaml`
"""

import json
import sys
from typing import Any

import yaml
from pydantic import BaseModel

from tuning_operator.resource import names, rules
from tuning_operator.resource.study import TuningStudySpec, TuningStudyStatus

Schema = dict[str, Any]

_UNKNOWN = "x-kubernetes-preserve-unknown-fields"

_NO_OBJECT = {
    "minProperties": 1,
    "maxProperties": 0,
    "minItems": 1,
    "maxItems": 0,
    "items": {_UNKNOWN: True, "enum": ["the list in quotes, for example '[64, 64]'"]},
}
"""Structural schemas have no unions of types: this admits any scalar, but no object or list.

A list is already refused for its length. Its items are refused as well, in order to show what to write.
"""

COLUMNS = [
    ("Phase", "string", ".status.phase", 0, "Pending, Running, Suspended, Completed or Failed."),
    ("Finished", "string", ".status.progress", 0, "Finished trials and maxTrials."),
    ("Running", "integer", ".status.trials.running", 0, "Running trials."),
    ("Pruned", "integer", ".status.trials.pruned", 0, "Trials that were stopped early."),
    ("Failed", "integer", ".status.trials.failed", 0, "Trials that ended without a value."),
    ("Best", "string", ".status.bestValue", 0, "The best value so far, or the size of the Pareto front."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the study was created."),
    ("Best parameters", "string", ".status.best.parameters", 1, "The parameters of the best trial."),
    (
        "Accepted",
        "string",
        '.status.conditions[?(@.type=="Accepted")].status',
        1,
        "Whether the study is valid.",
    ),
    ("Refit", "string", ".status.refit.phase", 1, "Pending, Running, Completed or Failed."),
    ("Model", "string", ".status.refit.model", 1, "Where the refit stored the model."),
    ("Last transition", "date", ".status.lastTransitionTime", 1, "Time since a condition last changed."),
    ("Stalled", "string", '.status.conditions[?(@.type=="Stalled")].message', 1, "Why trials cannot start."),
]


def structural(schema: Schema, definitions: Schema) -> Schema:
    """Return pydantic's JSON schema as the structural schema that the API server requires.

    References are resolved, `X | None` becomes X (manifests omit a field for None), and a union of scalars
    becomes a field of any type.
    """
    schema = _resolved(_without_union(schema), definitions)
    kept = {key: value for key, value in schema.items() if key not in _REWRITTEN}
    if rules.INT_OR_STRING in kept:
        del kept["type"]
    if schema.get("default") is not None:
        kept["default"] = schema["default"]
    if "description" in kept:  # unwrap the lines of docstrings
        kept["description"] = "\n\n".join(" ".join(p.split()) for p in kept["description"].split("\n\n"))
        kept["description"] += _default_in_words(schema, kept["description"])
    return kept | _bounds(schema) | _contents(schema, definitions) | _validations(schema)


def _default_in_words(schema: Schema, description: str) -> str:
    """Return a sentence about the default, which `kubectl explain` does not show."""
    default = schema.get("default")
    worth_saying = isinstance(default, str | bool | int) and "default" not in description.lower()
    if not worth_saying or (default == 0 and default is not False):  # counts of the status
        return ""
    return f" Defaults to {default if isinstance(default, str) else json.dumps(default)}."


_REWRITTEN = {
    "title",
    "default",
    "exclusiveMinimum",
    "properties",
    "items",
    "additionalProperties",
    "pattern",
    rules.PATTERN_MESSAGE,
    rules.KEY,
}


def _without_union(schema: Schema) -> Schema:
    """Replace `anyOf` by its only type, or by any scalar."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(kinds) > 1:
        return {**rest, _UNKNOWN: True, "nullable": True, **_NO_OBJECT}
    return _overlay(kinds[0], rest) if kinds else rest


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Resolve a reference; keys beside it (a field's description) override those of the model."""
    if "$ref" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return _overlay(definitions[schema["$ref"].removeprefix("#/$defs/")], rest)


def _overlay(inner: Schema, outer: Schema) -> Schema:
    validations = [*inner.get(rules.KEY, []), *outer.get(rules.KEY, [])]
    return {**inner, **outer} | ({rules.KEY: validations} if validations else {})


def _bounds(schema: Schema) -> Schema:
    """In OpenAPI 3.0, exclusiveMinimum is a flag."""
    if "exclusiveMinimum" not in schema:
        return {}
    return {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}


def _contents(schema: Schema, definitions: Schema) -> Schema:
    contents: Schema = {}
    if "properties" in schema:
        contents["properties"] = {
            name: structural(field, definitions) for name, field in schema["properties"].items()
        }
    if "items" in schema:
        contents["items"] = _without_defaults(structural(schema["items"], definitions))
        if (
            "x-kubernetes-list-type" in schema
        ):  # the API server forbids nullable items there, but accepts null
            contents["items"].pop("nullable", None)
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        contents["additionalProperties"] = structural(values, definitions)
    elif values is True:
        contents[_UNKNOWN] = True
    return contents


def _without_defaults(schema: Schema) -> Schema:
    """Remove the defaults of a list's items.

    kubectl apply replaces whole lists, so with defaults in them every apply would be a change.
    """
    fields = {name: _without_defaults(field) for name, field in schema.get("properties", {}).items()}
    kept = {key: value for key, value in schema.items() if key != "default"}
    return kept | ({"properties": fields} if fields else {})


def _validations(schema: Schema) -> Schema:
    """Turn a pattern with a message into a rule, since the API server would show the bare pattern."""
    validations = list(schema.get(rules.KEY, []))
    if rules.PATTERN_MESSAGE in schema:
        validations.insert(0, rules.pattern(schema["pattern"], schema[rules.PATTERN_MESSAGE]).schema())
    elif "pattern" in schema:
        return {"pattern": schema["pattern"]}
    return {rules.KEY: validations} if validations else {}


def crd() -> Schema:
    """Return the CustomResourceDefinition of the TuningStudy."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": ["tst"],
                "categories": ["tuning"],
            },
            "versions": [_version()],
        },
    }


def _version() -> Schema:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
        "schema": {"openAPIV3Schema": _root()},
    }


def _column(name: str, kind: str, path: str, priority: int, description: str) -> Schema:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


def _root() -> Schema:
    return {
        "type": "object",
        "description": "Hyperparameter tuning with Optuna. Trials run as Jobs, and status reports the best "
        "parameters.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
            "kind": {"type": "string", "description": f"{names.KIND}."},
            "metadata": _metadata(),
            "spec": _model(TuningStudySpec),
            "status": _model(TuningStudyStatus),
        },
    }


def _metadata() -> Schema:
    """A CRD can only restrict the name in metadata."""
    name = {"type": "string", "description": "Name of the study.", **rules.NAME}
    return {"type": "object", "properties": {"name": name}}


def _model(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema()
    return structural(schema, schema.pop("$defs", {}))


def render() -> str:
    """Return the CRD as YAML."""
    text = yaml.safe_dump(crd(), sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated from the models in tuning_operator.resource; do not edit.\n{text}"


if __name__ == "__main__":
    sys.stdout.write(render())
