"""The models read manifests and refuse unknown fields."""

from typing import Any

import pytest
from pydantic import ValidationError
from tuning_operator.resource import duration, names
from tuning_operator.resource.study import TuningStudy

GOOD: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "mnist", "namespace": "ml"},
    "spec": {
        "objectives": [{"metric": "accuracy", "direction": "maximize", "target": 0.995}],
        "searchSpace": [
            {"name": "lr", "type": "float", "low": 1e-5, "high": 0.1, "log": True},
            {"name": "n_layers", "type": "int", "low": 1, "high": 3},
            {
                "name": "units",
                "type": "int",
                "low": 64,
                "high": 256,
                "step": 64,
                "when": {"parameter": "n_layers", "atLeast": 2},
            },
            {"name": "optimizer", "type": "categorical", "choices": ["Adam", 1, 0.5, True, None]},
        ],
        "maxTrials": 100,
        "initialTrials": [{"lr": 0.001, "n_layers": 2}],
        "trial": {
            "objective": "train:objective",
            "template": {"spec": {"containers": [{"name": "trainer", "image": "x"}]}},
        },
    },
}


def changed(**spec: Any) -> dict[str, Any]:
    return GOOD | {"spec": GOOD["spec"] | spec}


def test_a_manifest_is_read_with_its_defaults() -> None:
    spec = TuningStudy.model_validate(GOOD).spec
    assert spec.sampler.name == "TPESampler"
    assert spec.pruner is None
    assert (spec.parallelism, spec.max_failed_trials, spec.deletion_policy) == (1, 10, "Retain")
    assert spec.search_space is not None
    assert spec.search_space[2].when is not None
    assert spec.search_space[2].when.at_least == 2


ONE, TWO = (
    [{"metric": "a", "direction": "maximize"}],
    [
        {"metric": "a", "direction": "maximize"},
        {"metric": "b", "direction": "minimize"},
    ],
)


@pytest.mark.parametrize(
    ("runs", "objectives", "pruner", "in_effect"),
    [
        ({"objective": "train:objective"}, ONE, None, "MedianPruner"),
        ({"script": "train.py"}, ONE, None, "MedianPruner"),
        ({"command": ["./train"]}, ONE, None, "NopPruner"),
        ({"objective": "train:objective"}, TWO, None, "NopPruner"),
        ({"command": ["./train"]}, ONE, {"name": "MedianPruner"}, "MedianPruner"),
        ({"command": ["./train"]}, ONE, {}, "MedianPruner"),
    ],
)
def test_the_pruner_in_effect(
    runs: dict[str, Any], objectives: list[Any], pruner: dict[str, Any] | None, in_effect: str
) -> None:
    trial = {"template": GOOD["spec"]["trial"]["template"], **runs}
    spec = TuningStudy.model_validate(changed(objectives=objectives, trial=trial, pruner=pruner)).spec
    assert spec.pruner_in_effect.name == in_effect


@pytest.mark.parametrize(
    ("metric", "good"),
    [
        *((name, True) for name in ("loss", "val/loss", "eval.f1", "metrics/mAP50-95(B)", "recall@10", "a")),
        *((name, True) for name in ("valid_0's auc", "AP@[.5:.95]", "val accuracy", "acc%")),
        *(
            (name, False)
            for name in ("", " a", "a ", "a/", "1", "/a", "a=b", 'a"b', "a{b}", "a\nb", "a|b", "a,b")
        ),
    ],
)
def test_names_of_metrics(metric: str, good: bool) -> None:
    manifest = changed(objectives=[{"metric": metric, "direction": "maximize"}])
    if good:
        assert TuningStudy.model_validate(manifest).spec.objectives[0].metric == metric
    else:
        with pytest.raises(ValidationError, match="metric"):
            TuningStudy.model_validate(manifest)


def test_choices_keep_their_types() -> None:
    spec = TuningStudy.model_validate(GOOD).spec
    assert spec.search_space is not None
    choices = spec.search_space[3].choices or []
    assert [(choice, type(choice)) for choice in choices] == [
        ("Adam", str),
        (1, int),
        (0.5, float),
        (True, bool),
        (None, type(None)),
    ]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"maxTrails": 3}, "maxTrails"),
        ({"maxTrials": 0}, "maxTrials"),
        ({"parallelism": 0}, "parallelism"),
        ({"objectives": []}, "objectives"),
        ({"timeout": "an hour"}, "timeout"),
        ({"initialTrials": [{"lr": [1]}]}, "initialTrials"),
        ({"sampler": {"nmae": "TPESampler"}}, "nmae"),
    ],
)
def test_the_models_refuse_what_the_schema_refuses(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TuningStudy.model_validate(changed(**spec))


@pytest.mark.parametrize(("text", "length"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2d", 172_800)])
def test_durations(text: str, length: int) -> None:
    assert duration.seconds(text) == length
    assert TuningStudy.model_validate(changed(timeout=text)).spec.timeout == text


@pytest.mark.parametrize("text", ["", "1", "1.5h", "1 h", "30m1h", "-1s", "123456789s"])
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="use a number and a unit, for example 90s, 20m, 1h30m or 2d"):
        duration.seconds(text)
    with pytest.raises(ValidationError, match="timeout"):
        TuningStudy.model_validate(changed(timeout=text))


def test_every_duration_fits_the_fields_of_a_job() -> None:
    assert duration.seconds("9999d99999h999999m99999999s") < 2**31


@pytest.mark.parametrize("study", ["mnist", "mnist-1", "a"])
@pytest.mark.parametrize("trial", [0, 17, 999_999, "refit"])
def test_a_job_names_its_study_and_trial_and_its_pods_name_it(study: str, trial: int | str) -> None:
    job = names.job_name(study, trial)
    assert names.parse_job_name(job) == (study, str(trial))
    assert names.job_of_pod(f"{job}-x7k2p") == job


def test_the_longest_names_fit() -> None:
    pod = names.job_name("s" * names.MAX_STUDY_NAME, 1_000_000) + "-x7k2p"
    assert len(pod) <= 63
