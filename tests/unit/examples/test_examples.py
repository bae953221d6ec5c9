"""Every example: a manifest that can work, code that fits it, and one command that applies both."""

import ast
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tuning_operator.resource.study import Parameter, TuningStudySpec

from dev.cluster import programs

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").iterdir())
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: folder.name)


def manifest(example: Path) -> dict[str, Any]:
    return yaml.safe_load((example / "study.yaml").read_text())


def spec(example: Path) -> TuningStudySpec:
    return TuningStudySpec.model_validate(manifest(example)["spec"])


@each_example
def test_the_manifest_is_valid_and_named_as_its_folder(example: Path) -> None:
    assert manifest(example)["metadata"]["name"] == example.name
    assert spec(example).max_trials > 0
    assert (example / "README.md").read_text().count("kubectl apply -k") > 0


@each_example
def test_one_command_applies_the_study_and_its_code(example: Path) -> None:
    command = [programs.kubectl(), "kustomize", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    objects = {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}
    study = TuningStudySpec.model_validate(objects["TuningStudy"]["spec"])
    code = objects["ConfigMap"]
    assert study.trial.source
    assert study.trial.source.config_map == code["metadata"]["name"]
    module, _, function = (study.trial.objective or "").partition(":")
    functions = [
        node.name
        for node in ast.parse(code["data"][f"{module}.py"]).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert function in functions


def suggested(code: str) -> dict[str, dict[str, Any]]:
    """Read the calls of `trial.suggest_*`, as the manifest would write them."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr.startswith("suggest_")
        ):
            name, *values = map(ast.literal_eval, node.args)
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            kind = node.func.attr.removeprefix("suggest_")
            bounds = (
                {"choices": values[0]}
                if kind == "categorical"
                else dict(zip(("low", "high"), values, strict=True))
            )
            found[name] = {"type": kind, **bounds, **options}
    return found


def declared(parameter: Parameter) -> dict[str, Any]:
    return {
        key: value
        for key, value in parameter.model_dump(exclude={"name"}).items()
        if value not in (None, False)
    }


@each_example
def test_code_and_manifest_search_the_same_space(example: Path) -> None:
    """The same file gives the same search under plain Optuna, where the manifest has no say."""
    study = spec(example)
    module = (study.trial.objective or "").partition(":")[0]
    in_code = suggested((example / f"{module}.py").read_text())
    assert in_code == {parameter.name: declared(parameter) for parameter in study.search_space or []}


def test_mnist_is_what_the_demo_promises() -> None:
    study = spec(EXAMPLES[0].with_name("mnist"))
    assert (study.max_trials, study.parallelism) == (20, 4)
    assert study.pruner
    assert study.pruner.name == "MedianPruner"
    (container,) = study.trial.template["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
