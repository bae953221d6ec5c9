"""All examples: valid manifests, matching code, and one command that applies both."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter, TuningStudySpec

from tests.unit.examples.table import ROWS

ROOT = Path(__file__).parents[3] / "examples"
EXAMPLES = sorted(folder for folder in ROOT.iterdir() if folder.is_dir())
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: folder.name)


class Manifest(NamedTuple):
    """A TuningStudy of an example."""

    file: Path
    name: str
    spec: TuningStudySpec


def manifests(example: Path) -> list[Manifest]:
    found = [(file, yaml.safe_load(file.read_text())) for file in sorted(example.glob("*.yaml"))]
    return [
        Manifest(file, content["metadata"]["name"], TuningStudySpec.model_validate(content["spec"]))
        for file, content in found
        if content["kind"] == "TuningStudy"
    ]


MANIFESTS = [manifest for example in EXAMPLES for manifest in manifests(example)]
each_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda found: found.name)


@each_example
def test_study_is_named_after_its_folder_and_the_readme_applies_it(example: Path) -> None:
    assert {found.file.name: found.name for found in manifests(example)}["study.yaml"] == example.name
    assert f"kubectl apply -k examples/{example.name}" in (example / "README.md").read_text()


def test_table_of_examples_is_complete() -> None:
    linked = re.findall(r"^\| \[([\w-]+)\]\(([\w-]+)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(linked) == [(folder.name, folder.name) for folder in EXAMPLES]


@each_example
def test_images_exist_outside_of_the_demo(example: Path) -> None:
    """Only the demo's cluster has images with the tag `dev`."""
    assert not [path.name for path in example.iterdir() if re.search(r"[\w-]:dev\b", path.read_text())]


@each_manifest
def test_search_space_and_initial_trials_are_valid(manifest: Manifest) -> None:
    assert space.problems(manifest.spec.search_space, manifest.spec.initial_trials) == ()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_study_matches_the_table_of_typical_studies(name: str) -> None:
    spec = TuningStudySpec.model_validate(yaml.safe_load((ROOT / name / "study.yaml").read_text())["spec"])
    written = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert {field: written.get(field) for field in ROWS[name]} == ROWS[name]


@each_example
def test_one_command_applies_the_study_and_its_code(
    example: Path, kustomize: Callable[[Path], list[dict[str, Any]]]
) -> None:
    objects = kustomize(example)
    code = {found["metadata"]["name"]: found for found in objects if found["kind"] == "ConfigMap"}
    applied = {found["metadata"]["name"] for found in objects if found["kind"] == "TuningStudy"}
    assert applied
    assert applied <= {found.name for found in manifests(example)}
    for manifest in manifests(example):
        for runs in filter(None, (manifest.spec.trial, manifest.spec.refit)):
            source = runs.source or manifest.spec.trial.source
            if source:
                assert_code_has(code[source.config_map]["data"], runs)


def assert_code_has(files: dict[str, str], runs: Any) -> None:
    """Assert that the function, the script or a file of the command exists."""
    if runs.objective:
        module, _, function = runs.objective.partition(":")
        assert function in definitions(files[f"{module}.py"])
    elif runs.script:
        assert runs.script in files
    elif runs.command:
        assert set(files) & {Path(word).name for word in runs.command}


def definitions(code: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Return the functions and classes of a file by name."""
    return {n.name: n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


class Suggested(NamedTuple):
    """A call of `trial.suggest_*` as a parameter of the manifest. A computed name is a pattern."""

    name: str
    parameter: dict[str, Any]


def suggested(code: str, function: str) -> list[Suggested]:
    """Return the calls in a function and in the functions of the same file that it calls."""
    known, seen, waiting, found = definitions(code), set[str](), [function], []
    while waiting:
        seen.add(name := waiting.pop())
        for call in (node for node in ast.walk(known[name]) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in set(known) - seen:
                waiting.append(call.func.id)
            if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("suggest_"):
                found.append(suggestion(call, call.func.attr.removeprefix("suggest_")))
    return found


def suggestion(call: ast.Call, kind: str) -> Suggested:
    values = [ast.literal_eval(value) for value in call.args[1:]]
    options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    bounds = (
        {"choices": values[0]} if kind == "categorical" else dict(zip(("low", "high"), values, strict=True))
    )
    return Suggested(pattern(call.args[0]), {"type": kind, **bounds, **options})


def pattern(name: ast.expr) -> str:
    """Return a regular expression for a literal name or an f-string."""
    if isinstance(name, ast.JoinedStr):
        fixed = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in name.values]
        return "".join(fixed)
    return re.escape(ast.literal_eval(name))


def declared(parameter: Parameter) -> dict[str, Any]:
    given = parameter.model_dump(exclude={"name", "when"})
    return {key: value for key, value in given.items() if value not in (None, False)}


def code_of(manifest: Manifest) -> tuple[Path, str]:
    """Return the file of a trial's code and its function, which is `objective` for scripts."""
    module, _, function = (manifest.spec.trial.objective or "").partition(":")
    file = manifest.spec.trial.script or f"{module}.py"
    return manifest.file.parent / file, function or "objective"


@pytest.mark.parametrize(
    "manifest",
    [found for found in MANIFESTS if found.spec.search_space and code_of(found)[0].exists()],
    ids=lambda found: found.name,
)
def test_code_and_manifest_have_the_same_search_space(manifest: Manifest) -> None:
    """The code has the same search space when it runs with Optuna on its own."""
    file, function = code_of(manifest)
    calls = suggested(file.read_text(), function)
    used = set()
    for parameter in manifest.spec.search_space or []:
        (call,) = [call for call in calls if re.fullmatch(call.name, parameter.name)]
        assert call.parameter == declared(parameter), parameter.name
        used.add(call.name)
    assert used == {call.name for call in calls}


def test_cats_and_dogs_runs_trials_in_parallel_with_one_gpu_each() -> None:
    (manifest,) = manifests(ROOT / "cnn-cats-dogs")
    assert manifest.spec.parallelism > 1
    limits = manifest.spec.trial.template["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1


def test_bert_study_without_code_matches_the_one_with_code() -> None:
    specs = {manifest.file.name: manifest.spec for manifest in manifests(ROOT / "bert-imdb")}
    with_code, without = specs["study.yaml"], specs["study-no-code.yaml"]
    assert "weight_decay=0.01" in (ROOT / "bert-imdb" / "train.py").read_text()
    for field in ("objectives", "search_space", "sampler", "max_trials"):
        assert getattr(with_code, field) == getattr(without, field)
    for runs in (without.trial, without.refit):
        assert runs
        assert runs.template
        env = {one["name"]: one.get("value") for one in runs.template["spec"]["containers"][0]["env"]}
        assert (env["MODEL_NAME_OR_PATH"], env["DATASET_NAME"]) == ("bert-base-uncased", "stanfordnlp/imdb")
        assert json.loads(env["TRAINING_ARGUMENTS"])["weight_decay"] == 0.01
