"""`validate` finds offline what the API server and the study server refuse, with line numbers."""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from tuning_operator.cli.validation.schema import schema_flaws
from tuning_operator.cli.validation.source import documents

from tests.api.manifest import GOOD, MINIMAL, changed
from tests.api.test_rules import FROZEN, REFUSALS, Refusal
from tests.unit.cli.conftest import Ran

EXAMPLES = Path(__file__).parents[3] / "examples"
BETTER = {
    "must have at most 0 items": "must not be an object",
    "Unsupported value: 64: supported values: \"the list in quotes, for example '[64, 64]'\"": (
        "must not be a list: write the list in quotes, for example '[64, 64]'"
    ),
}
"""Messages of the API server that can be clearer."""

STUDY = """\
# A study
apiVersion: tuning.dev/v1alpha1
kind: TuningStudy
metadata: {name: mnist}
spec:
  objectives:
  - {metric: accuracy, direction: maximize}
  searchSpace:
  - {name: lr, type: float, low: 1e-5, high: 1e-1, log: true}
  - name: layers
    type: int
    low: 1
    high: 3
  sampler:
    name: TPESampler
    args: {seed: 42}
  maxTrials: 10
  trial:
    objective: train:objective
    template:
      spec:
        containers:
        - {name: trainer, image: 'python:3.12'}
"""


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_what_the_api_server_refuses_is_refused_offline(refusal: Refusal) -> None:
    """The same refusals are tested on a real API server in tests/api/test_rules.py."""
    flaws = schema_flaws(changed(refusal.bad))
    near = [flaw for flaw in flaws if flaw.field.startswith(refusal.field)]
    message = BETTER.get(refusal.message, refusal.message)
    assert any(message in flaw.message for flaw in near), flaws
    assert schema_flaws(changed(refusal.good)) == []


@pytest.mark.parametrize("refusal", FROZEN, ids=lambda refusal: refusal.name)
def test_a_change_that_the_api_server_refuses_is_refused_offline(refusal: Refusal) -> None:
    [flaw] = schema_flaws(changed(refusal.bad), GOOD)
    assert flaw.field == refusal.field
    assert refusal.message in flaw.message
    assert schema_flaws(changed(refusal.good), GOOD) == []


@pytest.mark.parametrize("manifest", [GOOD, MINIMAL], ids=["good", "minimal"])
def test_valid_manifests(manifest: dict[str, Any]) -> None:
    assert schema_flaws(manifest) == []


def validated(folder: Path, old: str = "", new: str = "") -> Ran:
    """Validate the study after a change."""
    assert old in STUDY
    (folder / "study.yaml").write_text(STUDY.replace(old, new, 1) if old else STUDY)
    return Ran("validate", str(folder / "study.yaml"))


def test_a_valid_file(tmp_path: Path) -> None:
    assert validated(tmp_path).out == f"{tmp_path}/study.yaml: the study mnist is valid\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("high: 3", "high: 0", 12, "spec.searchSpace[1].low: layers has low 1 above high 0: swap them"),
        ("high: 3", "hihg: 3", 13, "spec.searchSpace[1].hihg: unknown field: did you mean high?"),
        (
            "maxTrials: 10",
            "max_trials: 10\n  maxTrials: 10",
            17,
            "max_trials: unknown field: did you mean maxTrials?",
        ),
        ("{seed: 42}", "{sede: 42}", 16, "spec.sampler.args.sede: "),
        ("maxTrials: 10", "maxTrials: ten", 17, 'spec.maxTrials: must be of type integer, not string: "ten"'),
        (
            "name: mnist",
            "name: y",
            4,
            "metadata.name: Required value: the name of the study, as a string: put it in",
        ),
        ("metric: accuracy", "metric: on", 7, "must be of type string, not boolean: True (put it in quotes)"),
        ("maxTrials: 10", "maxTrials: 10\n  maxTrials: 20", 18, "maxTrials: is set twice"),
        ("  maxTrials: 10\n", "", 5, "spec.maxTrials: Required value"),
        ("name: mnist", "name: m.nist", 4, "metadata.name: m.nist contains a dot"),
        (
            "name: mnist",
            "name: my_study",
            4,
            "metadata.name: 'my_study' must consist of lower-case letters",
        ),
        ("{name: mnist}", "{}", 4, "metadata.name: Required value: the name of the study"),
        ("tuning.dev/v1alpha1", "tuning.dev/v1", 2, "apiVersion: must be tuning.dev/v1alpha1"),
        ("name: trainer,", "name: main,", 22, "exactly one container must be named `trainer`"),
        ("maxTrials: 10", "initialTrials: [{lr: 5}]\n  maxTrials: 10", 17, "spec.initialTrials[0].lr: "),
        ("objective: train:objective", "command: ['./a', '{{size}}']", 19, "{{size}} refers to a missing"),
    ],
)
def test_the_line_of_what_is_wrong(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    ran = validated(tmp_path, old, new)
    assert ran.err.startswith(f"{tmp_path}/study.yaml:{line}: ")
    assert message in ran.err
    assert (ran.code, ran.error) == (1, "1 problem was found")


def test_a_class_that_is_experimental_in_optuna_gives_no_warning() -> None:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        ran = Ran("validate", str(EXAMPLES / "any-language" / "study-awk.yaml"))
    assert (ran.code, ran.err, [str(warning.message) for warning in raised]) == (0, "", [])


@pytest.mark.parametrize("sampler", ["GPSampler", "CmaEsSampler"])
def test_packages_of_the_study_server_need_not_be_here(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    lacking = {"torch", "cmaes"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else there(name))
    assert validated(tmp_path, "name: TPESampler", f"name: {sampler}").code == 0
    ran = validated(tmp_path, "name: TPESampler\n    args: {seed", f"name: {sampler}\n    args: {{sede")
    assert "spec.sampler.args.sede: " in ran.err


@pytest.mark.parametrize("value", ["1" + "0" * 30, "1e400", ".nan", "[[1]]", "{a: 1}", "\u0000"])
def test_strange_values_are_reported_without_a_traceback(tmp_path: Path, value: str) -> None:
    for field in ("high: 3", "maxTrials: 10"):
        (tmp_path / "study.yaml").write_text(STUDY.replace(field, f"{field.split(':')[0]}: {value}"))
        ran = Ran("validate", str(tmp_path / "study.yaml"))
        assert (ran.code, bool(ran.error)) == (1, True), ran.out


def test_several_problems_by_line(tmp_path: Path) -> None:
    ran = validated(tmp_path, "maxTrials: 10", "maxTrials: 0\n  parallelism: 0")
    assert [line.split(":")[1] for line in ran.err.splitlines()] == ["17", "18"]
    assert ran.error == "2 problems were found"


def test_yaml_that_can_not_be_read(tmp_path: Path) -> None:
    error = validated(tmp_path, "metadata: {name", "metadata: {name: [").error or ""
    assert error.startswith(f"{tmp_path}/study.yaml:")
    assert "not valid YAML" in error


def test_a_folder_with_other_objects(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [study.yaml]")
    (tmp_path / "others.yaml").write_text("kind: ConfigMap\n---\n---\n[]\n")
    assert validated(tmp_path).code == 0
    assert Ran("validate", str(tmp_path)).out.endswith("study.yaml: the study mnist is valid\n")


def test_no_study(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: ConfigMap")
    assert "has no TuningStudy" in (Ran("validate", str(tmp_path / "a.yaml")).error or "")
    assert Ran("validate", str(tmp_path / "b.yaml")).error == f"{tmp_path}/b.yaml does not exist"


def test_scalars_are_read_as_by_kubectl() -> None:
    text = textwrap.dedent("""
        - 1e-5
        - 2026-01-01
        - yes
        - "1"
        - 1_000.5
        - [y, N, "y"]
        - [12:30, 190:20:30]
        - [0o7, 010, 0X1F, -0x1f, 0b11, 1_000, +12, 0, 089, 0o8]
        - {1: 2, n: 3, 1.5: 4}
    """)
    [document] = documents(text)
    assert document.data == [
        *(1e-5, "2026-01-01", True, "1", "1_000.5"),
        [True, False, "y"],
        ["12:30", "190:20:30"],
        [7, 8, 31, -31, 3, 1000, 12, 0, 89, "0o8"],
        {"1": 2, "false": 3, "1.5": 4},
    ]
    assert yaml.safe_load("1e-5") == "1e-5", "PyYAML reads this as a string, unlike kubectl"


def test_a_key_that_is_no_string_is_an_unknown_field(tmp_path: Path) -> None:
    ran = validated(tmp_path, "spec:\n", "spec:\n  1: 2\n")
    assert ran.code == 1
    assert "spec.1: unknown field" in ran.out + ran.err + (ran.error or "")
