"""What the operator itself rejects: the field, what is wrong, and how to fix it."""

from __future__ import annotations

from typing import Any

import pytest
from tuning_operator.kube.plan.validation import check

from tests.unit.kube.builders import study

BOTH = [{"metric": "accuracy", "direction": "maximize"}, {"metric": "latency", "direction": "minimize"}]


def command(pattern: str | None, objectives: list[dict[str, str]] | None = None) -> dict[str, Any]:
    metrics = {"pattern": pattern} if pattern else {"file": "/tmp/metrics.jsonl"}
    spec = {"trial": {"objective": None, "command": ["./train"], "metrics": metrics}}
    return spec | ({"objectives": objectives} if objectives else {})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (command("accuracy=("), ["'accuracy=('", "not a valid regular expression", "missing )"]),
        (command("accuracy=.*"), ["no group for accuracy", "(?P<accuracy>...)"]),
        (command("(?P<loss>.*)"), ["no group for accuracy"]),
        (command("(.*)", BOTH), ["no group for accuracy or latency"]),
        (command("a{99999999999}"), ["too complex", "simplify it"]),
        (command("(" * 990 + ")" * 990), ["simplify it"]),
    ],
    ids=["broken", "no group", "another group", "which of two", "overflow", "recursion"],
)
def test_a_pattern_that_finds_nothing(spec: dict[str, Any], words: list[str]) -> None:
    [problem] = check(study(**spec))
    assert problem.field == "trial.metrics.pattern"
    for word in words:
        assert word in problem.message


@pytest.mark.parametrize(
    "spec",
    [
        command("accuracy=(.*)"),
        command("(?P<accuracy>.*)"),
        command("(?P<name>.*)=(?P<value>.*)", BOTH),
        command("(?P<latency>.*)", BOTH),
        command(None),
    ],
    ids=["one group", "named", "name and value", "one of two", "a file"],
)
def test_a_pattern_that_may_find_it(spec: dict[str, Any]) -> None:
    assert check(study(**spec)) == ()


SPACE = [
    {"name": "lr", "type": "float", "low": 0, "high": 1},
    {"name": "n-layers", "type": "int", "low": 1, "high": 3},
]


def ran(*arguments: str, refit: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a spec whose trials run a command with these arguments, and the refit too if given."""
    trial = {"objective": None, "command": ["./train", *arguments]}
    return {"searchSpace": SPACE, "trial": trial} | ({"refit": {"command": refit}} if refit else {}) | spec


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        (
            ran("--x", "{{learning_rate}}"),
            "trial.command[2]",
            "{{learning_rate}} refers to a missing parameter: learning_rate is not in searchSpace: "
            "correct or remove it. Its parameters are lr, n-layers",
        ),
        (ran("--layers={{ n_layers }}"), "trial.command[1]", "did you mean n-layers?"),
        (ran(refit=["./train", "{{y}}"]), "refit.command[1]", "y is not in searchSpace"),
        (
            ran(searchSpace=[*SPACE, SPACE[1] | {"name": "n_layers"}]),
            "searchSpace",
            "n-layers and n_layers both map to the environment variable TUNING_PARAM_N_LAYERS. Rename one",
        ),
    ],
    ids=["unknown", "nearly", "refit", "one variable"],
)
def test_a_command_that_cannot_get_its_parameters(spec: dict[str, Any], field: str, message: str) -> None:
    [problem] = check(study(**spec))
    assert problem.field == field
    assert message in problem.message


def test_a_command_that_gets_its_parameters() -> None:
    arguments = ["--lr", "{{lr}}", "{{ n-layers }}x{{lr}}", "{}", "{lr}", "${{env}"]
    assert check(study(**ran(*arguments, refit=["./final", "{{lr}}"]))) == ()


def test_trials_of_a_pod_that_would_read_each_others_metrics() -> None:
    shared = command(None)["trial"] | {"reusePods": True, "trialsPerPod": 2}
    [problem] = check(study(trial=shared, parallelism=2))
    assert problem.field == "trial.metrics.file"
    assert "/tmp/metrics.jsonl" in problem.message
    assert check(study(trial=shared, parallelism=1)) == ()
    assert check(study(trial=shared | {"metrics": {"file": "metrics.jsonl"}}, parallelism=2)) == ()


def test_an_objective_may_have_any_names() -> None:
    assert check(study(searchSpace=[*SPACE, SPACE[1] | {"name": "n_layers"}])) == ()


def test_gpu_hours_of_trials_without_a_gpu() -> None:
    assert check(study(maxGpuHours=1)) == ()
    [problem] = check(study(maxGpuHours=1, trial={"gpus": 0}))
    assert (problem.field, "request no GPUs: use timeout" in problem.message) == ("maxGpuHours", True)


def test_a_study_that_continues_itself() -> None:
    [problem] = check(study(warmStart={"study": "mnist"}))
    assert (problem.field, "itself" in problem.message) == ("warmStart.study", True)
    assert check(study(warmStart={"study": "earlier"})) == ()


def test_arguments_of_a_script_that_no_shell_could_read() -> None:
    unclosed = "train.py --data 'a b"
    [problem] = check(study(trial={"objective": None, "script": unclosed}))
    assert problem.field == "trial.script"
    assert "No closing quotation" in problem.message
    refit = {"script": unclosed}
    assert [problem.field for problem in check(study(refit=refit))] == ["refit.script"]
