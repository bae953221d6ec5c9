"""The generated files are current, and the schema is one that people can read and the API server accepts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from tuning_operator.resource import crdgen, reference, rules, study

ROOT = Path(__file__).parents[3]
SCHEMA = crdgen.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from walk(schema[key], path + suffix)


@pytest.mark.parametrize(
    ("path", "render"),
    [
        ("crds/tuningstudies.tuning.dev.yaml", crdgen.render),
        ("docs/reference/tuningstudy.md", reference.render),
    ],
)
def test_generated_files_are_current(path: str, render: Any) -> None:
    assert (ROOT / path).read_text() == render(), f"{path} is outdated: run `make generate`"


def test_the_yaml_is_the_crd() -> None:
    assert yaml.safe_load(crdgen.render()) == crdgen.crd()


def test_every_field_is_described() -> None:
    silent = [
        path
        for path, schema in walk(SCHEMA)
        if path != ".metadata" and not path.endswith(("[]", "{}")) and len(schema.get("description", "")) < 5
    ]
    assert silent == []


def test_every_default_is_in_the_description_since_kubectl_explain_shows_no_others() -> None:
    (spec,) = [schema for path, schema in walk(SCHEMA) if path == ".spec"]
    silent = [
        path
        for path, schema in walk(spec)
        if "default" in schema and "default" not in schema["description"].lower()
    ]
    assert silent == []


def test_the_schema_is_structural() -> None:
    for path, schema in walk(SCHEMA):
        assert not schema.keys() & {"$ref", "$defs", "anyOf", "title", "patternProperties", "const"}, path
        typed = "type" in schema or rules.INT_OR_STRING in schema
        assert typed or schema["x-kubernetes-preserve-unknown-fields"], path
        assert schema.get("default", 0) is not None, path


def test_absent_is_how_a_manifest_says_none() -> None:
    target = SCHEMA["properties"]["spec"]["properties"]["objectives"]["items"]["properties"]["target"]
    assert target["type"] == "number"
    assert "default" not in target


def test_scalars_of_any_type_pass() -> None:
    parameter = SCHEMA["properties"]["spec"]["properties"]["searchSpace"]["items"]["properties"]
    for schema in (parameter["choices"]["items"], parameter["when"]["properties"]["equals"]):
        assert schema["x-kubernetes-preserve-unknown-fields"] is True
        assert "type" not in schema


def test_names_are_those_of_optuna() -> None:
    for ours, module, base in (
        (study.SAMPLERS, optuna.samplers, optuna.samplers.BaseSampler),
        (study.PRUNERS, optuna.pruners, optuna.pruners.BasePruner),
    ):
        public = [name for name in module.__all__ if not name.startswith("Base")]
        classes = [found for name in public if isinstance(found := getattr(module, name), type)]
        assert set(ours) == {found.__name__ for found in classes if issubclass(found, base)}


def test_every_rule_says_how_to_fix_it() -> None:
    for path, schema in walk(SCHEMA):
        for rule in schema.get(rules.KEY, []):
            message = rule.get("message") or rule["messageExpression"]
            assert len(message) > 30, (path, rule)


@pytest.mark.parametrize(
    ("message", "expression"),
    [
        ("low {self.low} is wrong", "'low %s is wrong'.format([dyn(self.low)])"),
        ("{self} isn't 5%", r"'%s isn\'t 5%%'.format([dyn(self)])"),
        ("not {self.a} but {self.b}", "'not %s but %s'.format([dyn(self.a), dyn(self.b)])"),
    ],
)
def test_expressions_in_a_message_are_filled_in(message: str, expression: str) -> None:
    assert rules.Rule("true", message).schema()["messageExpression"] == expression


def test_a_pattern_with_a_message_becomes_a_rule() -> None:
    schema = {"type": "string", "pattern": "^a\\d$", **rules.pattern_message("must be like a1")}
    assert crdgen.structural(schema, {}) == {
        "type": "string",
        rules.KEY: [
            {
                "rule": r'type(self) == string && self.matches("^a\\d$")',
                "message": "must be like a1",
                "reason": "FieldValueInvalid",
            }
        ],
    }


def test_keys_beside_a_reference_override_it_and_rules_add_up() -> None:
    model = {"type": "object", "description": "A model.", **rules.rules(rules.Rule("1 == 1", "first"))}
    field = {
        "anyOf": [{"$ref": "#/$defs/Model"}, {"type": "null"}],
        "description": "A field.",
        "default": None,
    }
    schema = crdgen.structural(field | rules.rules(rules.Rule("2 == 2", "second")), {"Model": model})
    assert schema["description"] == "A field."
    assert [rule["message"] for rule in schema[rules.KEY]] == ["first", "second"]
    assert "default" not in schema


def test_above_is_a_flag_in_openapi_3_0() -> None:
    assert crdgen.structural({"type": "number", "exclusiveMinimum": 0}, {}) == {
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
    }
    row = next(line for line in reference.render().splitlines() if line.startswith("| `maxGpuHours`"))
    assert row.endswith("More than 0. At most 1000000000. |")
