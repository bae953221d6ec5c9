"""The models and the API server agree on what is valid."""

import asyncio
import json
import os
import re
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError
from tuning_operator.resource import crdgen
from tuning_operator.resource.study import TuningStudy

from tests.api.api import SETUP_MAY_BUILD, Api
from tests.api.manifest import GOOD, changed
from tests.api.test_rules import texts
from tests.unit.kube.world import World

pytestmark = SETUP_MAY_BUILD

SCHEMA = crdgen.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
names = st.sampled_from(["lr", "n_layers", "a.b", "", "1x", "_", "two words", "x" * 128, "x" * 129])
durations = st.sampled_from(["1s", "90m", "1d2h3m4s", "0s", "s", "", "5", "1h1d", "99999d", "1.5h", "1h\n"])
scalars = st.one_of(st.booleans(), numbers, st.text(max_size=5))
anything = st.one_of(
    scalars,
    st.none(),
    st.lists(scalars, max_size=2),
    st.dictionaries(st.text(max_size=3), scalars, max_size=2),
)


def value_for(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a field: mostly of its type, sometimes beyond its bounds, sometimes of another type."""
    if "enum" in schema:
        return st.one_of(st.sampled_from(schema["enum"]), st.just("Other"), anything)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.booleans(),
        "integer": st.integers(-1, 20_000),
        "number": numbers,
        "string": st.one_of(
            names, durations, st.sampled_from(["train:objective", "train", "a.py:b", "a:b:c"])
        ),
        "array": st.lists(st.deferred(lambda: value_for(schema["items"])), max_size=3),
    }
    if "properties" in schema:
        return object_for(schema)
    if schema.get("type") == "object":
        return st.dictionaries(
            st.text(max_size=3), value_for(schema.get("additionalProperties", {})), max_size=3
        )
    own = kinds.get(schema.get("type", ""), anything)
    return st.one_of(own, own, own, anything)


def object_for(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    fields = {name: value_for(field) for name, field in schema["properties"].items() if name != "template"}
    required = {name: fields.pop(name) for name in schema.get("required", []) if name in fields}
    return st.fixed_dictionaries(required, optional=fields)


def paths(schema: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the fields of GOOD that a test may change, with their schemas."""
    found = []
    for name, field in schema.get("properties", {}).items():
        if name == "template":
            continue
        found.append((f"{path}.{name}", field))
        found += paths(field, f"{path}.{name}")
        if "properties" in field.get("items", {}):
            found += paths(field["items"], f"{path}.{name}.0")
    return found


def has_parent(path: str) -> bool:
    """Return whether the field's parent is in GOOD."""
    target: Any = GOOD
    for part in path.split(".")[:-1]:
        if isinstance(target, list):
            target = target[int(part)]
        elif part in target:
            target = target[part]
        else:
            return False
    return True


FIELDS = {path: schema for path, schema in paths(SCHEMA, "spec") if has_parent(path)}

changes = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(lambda path: st.tuples(st.just(path), value_for(FIELDS[path]))),
    min_size=1,
    max_size=3,
    unique_by=lambda change: change[0],
).map(lambda several: dict(sorted(several, key=lambda change: change[0].count("."), reverse=True)))


EXAMPLES = int(os.environ.get("TUNING_FUZZ_EXAMPLES", "300"))
"""`TUNING_FUZZ_EXAMPLES=10000 pytest tests/api/test_models.py -n 0` tries 10,000 manifests."""

RULES = [re.compile(text) for _, text in texts({"properties": {"spec": SCHEMA}})]
NAMES = {"spec.sampler.name", "spec.pruner.name"}
"""Checked by the study server, with their arguments; the models accept any."""


@pytest.mark.timeout(max(300, EXAMPLES), func_only=True)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(change=changes)
@example(change={"spec.maxGpuHours": 1e-12})
@example(change={"spec.maxGpuHours": 1e9})
@example(change={"spec.trial.python": "\v"})
def test_the_operator_serves_everything_that_the_server_accepts(api: Api, change: dict[str, Any]) -> None:
    """The models read it, and passes over it come to rest: with trials, or with what has to be corrected."""
    try:
        kept = api.create(changed(change), dry_run="All")
    except ApiException as error:
        if error.status not in (400, 422):
            raise
        return
    study = TuningStudy.model_validate(kept)
    world = World()
    spec = {**kept["spec"], "parallelism": min(study.spec.parallelism, 3)}
    world.kube.put(
        {**kept, "spec": spec, "metadata": {**kept["metadata"], "name": "mnist", "namespace": "ml"}}
    )
    asyncio.run(world.settle())
    accepted = world.condition("Accepted")
    assert accepted["status"] == "True" or accepted["message"].startswith(("spec.", "metadata."))
    started = bool(world.kube.named("Job"))
    assert started == (accepted["status"] == "True" and not study.spec.suspend)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(change=changes)
def test_only_rules_refuse_what_the_models_read(api: Api, change: dict[str, Any]) -> None:
    manifest = changed(change)
    try:
        TuningStudy.model_validate_json(json.dumps(manifest), strict=True)
    except ValidationError:
        return
    for cause in api.causes(manifest):
        known = cause.field in NAMES or cause.message.startswith("Duplicate value")
        assert known or any(rule.search(cause.message) for rule in RULES), cause


bounds = st.one_of(
    st.sampled_from([-1, 0, 0.5, 1, 2, 10]),
    st.integers(-1000, 1000),
    st.floats(-1000, 1000).map(lambda value: round(value, 3)),
)
ranges = st.fixed_dictionaries(
    {"name": st.just("x"), "type": st.sampled_from(["float", "int"]), "low": bounds, "high": bounds},
    optional={"step": bounds, "log": st.booleans()},
)


def optuna_takes(parameter: dict[str, Any]) -> bool:
    """Return whether Optuna has such a distribution, with more than one value if the range has."""
    low, high, step, log = (parameter.get(key) for key in ("low", "high", "step", "log"))
    if parameter["type"] == "int" and any(number != int(number or 0) for number in (low, high, step or 0)):
        return False  # int() would round it
    try:
        if parameter["type"] == "float":
            made = optuna.distributions.FloatDistribution(float(low), float(high), bool(log), step)
        else:
            step = 1 if step is None else int(step)
            made = optuna.distributions.IntDistribution(int(low), int(high), bool(log), step)
    except ValueError:
        return False
    return made.high > made.low or high == low


@pytest.mark.filterwarnings("ignore:.*not divisible by `step`")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parameter=ranges)
@example({"name": "x", "type": "int", "low": 1, "high": 3, "step": 1, "log": True})
@example({"name": "x", "type": "float", "low": 0.1, "high": 0.3, "step": 0.2})
def test_the_server_accepts_the_ranges_that_optuna_accepts(api: Api, parameter: dict[str, Any]) -> None:
    accepted = not api.causes(changed({"spec.searchSpace": [parameter], "spec.initialTrials": []}))
    steps_on_a_log_scale = bool(parameter.get("log")) and "step" in parameter
    assert accepted == (optuna_takes(parameter) and not steps_on_a_log_scale)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.lists(st.one_of(scalars, st.none()), min_size=1, max_size=5), data=st.data())
@example(choices=[None], data=None)
def test_no_valid_study_blocks_a_write_of_its_status(api: Api, choices: list[Any], data: Any) -> None:
    """A transition rule that is false for an unchanged value would."""
    chosen = choices[0] if data is None else data.draw(st.sampled_from(choices))
    when = data.draw(st.sampled_from(["equals", "anyOf"])) if data else "equals"
    condition = {"parameter": "kind", when: chosen if when == "equals" else choices}
    space = [
        {"name": "kind", "type": "categorical", "choices": choices},
        {"name": "x", "type": "float", "low": 0, "high": 1, "when": condition},
    ]
    manifest = changed(
        {"metadata.name": "written", "spec.searchSpace": space, "spec.initialTrials": [{"kind": chosen}]}
    )
    if api.causes(manifest):
        return  # Duplicate value
    with api.created(manifest):
        written = api.patch_status("written", {"phase": "Running"})
        assert written["status"] == {"phase": "Running"}
        assert api.causes_of_change(written) == []
