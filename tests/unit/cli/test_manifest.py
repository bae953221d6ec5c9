"""From a script's study to a manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from tuning_operator.cli import PluginError
from tuning_operator.cli.scripts.manifest import Options, ScriptStudy, kustomization, manifest, study_name
from tuning_operator.resource.study import TuningStudySpec

OPTIONS = Options("train.py", ["models.py"], "mnist", "my/image:1", 2)


def script_study(**fields: Any) -> ScriptStudy:
    return ScriptStudy.model_validate({"call": "optimize", "directions": ["maximize"]} | fields)


def spec(study: ScriptStudy, options: Options = OPTIONS) -> dict[str, Any]:
    found = yaml.safe_load(manifest(study, options))
    TuningStudySpec.model_validate(found["spec"])
    assert (found["apiVersion"], found["kind"]) == ("tuning.dev/v1alpha1", "TuningStudy")
    assert found["metadata"] == {"name": options.name}
    return found["spec"]


def test_everything_that_a_script_can_set() -> None:
    sampler = {"name": "TPESampler", "args": {"seed": 42, "multivariate": True, "n_startup_trials": 20}}
    pruner = {"name": "MedianPruner", "args": {"n_startup_trials": 5, "n_warmup_steps": 10}}
    found = spec(
        script_study(
            metricNames=["val acc"],
            sampler=sampler,
            pruner=pruner,
            nTrials=30,
            timeout=3600.4,
            initialTrials=[{"lr": 1e-5, "layers": 2, "kind": "a: b # c"}],
        )
    )
    assert found == {
        "objectives": [{"metric": "val acc", "direction": "maximize"}],
        "sampler": sampler,
        "pruner": pruner,
        "maxTrials": 30,
        "parallelism": 1,
        "timeout": "3600s",
        "initialTrials": [{"lr": 1e-5, "layers": 2, "kind": "a: b # c"}],
        "trial": {
            "script": "train.py",
            "source": {"configMap": "mnist-code"},
            "gpus": 2,
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "trainer",
                            "image": "my/image:1",
                        }
                    ]
                }
            },
        },
    }


def test_defaults_apply_to_what_a_script_does_not_set() -> None:
    found = spec(script_study(), Options("train.py", [], "mnist", "i", 0))
    assert {"sampler", "pruner", "timeout", "initialTrials"}.isdisjoint(found)
    assert found["objectives"] == [{"metric": "value", "direction": "maximize"}]
    assert (found["maxTrials"], found["parallelism"]) == (100, 1)
    assert found["trial"]["template"]["spec"]["containers"] == [{"name": "trainer", "image": "i"}]


def test_several_objectives_without_names() -> None:
    found = spec(script_study(directions=["minimize", "maximize"]))
    assert found["objectives"] == [
        {"metric": "value0", "direction": "minimize"},
        {"metric": "value1", "direction": "maximize"},
    ]


def test_comments_list_what_cannot_be_expressed_and_what_was_assumed() -> None:
    text = manifest(script_study(notes=["gamma is a function,\nwhich stays away"]), OPTIONS)
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("gamma is a function, which stays away" in line for line in head)
    assert "the script sets no limit" in next(line for line in text.splitlines() if "maxTrials" in line)


@pytest.mark.parametrize(
    "text", ["y", "N", "on", "no", "null", "~", "1e3", "1_0", "0x1F", "-0X1f", "0o17", "012", " "]
)
def test_strings_that_yaml_takes_for_something_else_are_quoted(text: str) -> None:
    written = manifest(script_study(initialTrials=[{text: text}]), OPTIONS)
    assert f"'{text}': '{text}'" in written
    assert yaml.safe_load(written)["spec"]["initialTrials"] == [{text: text}]


def test_the_chosen_study_of_several() -> None:
    assert spec(script_study(), replace(OPTIONS, study="2"))["trial"]["study"] == "2"


def test_comments_do_not_break_a_long_list() -> None:
    points = [{f"parameter_{n}": n / 7 for n in range(40)}, {"x": 1}]
    sampler = {"name": "GridSampler", "args": {"search_space": {"x": [n / 3 for n in range(60)]}}}
    found = spec(script_study(initialTrials=points, sampler=sampler))
    assert found["initialTrials"] == points
    assert found["sampler"] == sampler


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sampler": {"name": "TPESampler", "args": {"sed": 1}}},
            "spec.sampler.args.sed: .*did you mean 'seed'",
        ),
        ({"nTrials": 0}, "spec.maxTrials: "),
        ({"directions": ["minimize"] * 2, "pruner": {"name": "MedianPruner", "args": {}}}, "spec.pruner: "),
    ],
)
def test_invalid_settings_are_refused_with_their_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        manifest(script_study(**fields), OPTIONS)


def test_the_kustomization_makes_the_config_map_that_the_study_names() -> None:
    found = yaml.safe_load(kustomization(OPTIONS, "tune.yaml"))
    assert found["resources"] == ["tune.yaml"]
    assert found["configMapGenerator"] == [{"name": "mnist-code", "files": ["train.py", "models.py"]}]
    assert found["generatorOptions"] == {"disableNameSuffixHash": True}


@pytest.mark.parametrize(
    ("given", "in_script", "script", "name"),
    [
        ("mine", "theirs", "train.py", "mine"),
        (None, "My Study_1", "train.py", "my-study-1"),
        (None, None, "Train_MNIST.py", "train-mnist"),
        (None, "日本", "__.py", "study"),
        (None, "a" * 80, "train.py", "a" * 45),
    ],
)
def test_the_name(given: str | None, in_script: str | None, script: str, name: str) -> None:
    assert study_name(given, in_script, script) == name


def test_an_invalid_name() -> None:
    with pytest.raises(PluginError, match="for example my-study"):
        study_name("My_Study", None, "train.py")
