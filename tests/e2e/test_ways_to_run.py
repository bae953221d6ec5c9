"""Trials that run an Optuna script or any program."""

from __future__ import annotations

from typing import Any

from tests.e2e.kit import Kubectl, code, condition, holds, optuna_record, phase, study

SCRIPT = """
    import optuna

    def objective(trial):
        x = trial.suggest_float("x", -10, 10)
        for step in range(3):
            trial.report((x - 2) ** 2 + step, step)
            if trial.should_prune():
                raise optuna.TrialPruned()
        return (x - 2) ** 2

    study = optuna.create_study(direction="minimize")
    study.optimize(objective, n_trials=100)
    raise SystemExit("a trial must not get here")
"""


def test_unmodified_optuna_script(kubectl: Kubectl, image: str) -> None:
    manifest = study("script", image, maxTrials=4, trial={"script": "train.py"})
    del manifest["spec"]["searchSpace"], manifest["spec"]["trial"]["objective"]
    kubectl.apply(code("script-code", SCRIPT), manifest)
    status = kubectl.wait("script", phase("Completed", "Failed"))["status"]
    assert status["phase"] == "Completed"
    assert status["trials"]["failed"] == 0, kubectl.diagnostics("script")
    with optuna_record(kubectl, "script") as record:
        assert [set(trial.params) for trial in record.trials] == [{"x"}] * 4
        assert all(trial.intermediate_values for trial in record.trials)


def test_script_that_contradicts_the_manifest_is_reported(kubectl: Kubectl, image: str) -> None:
    manifest = study("torn", image, maxTrials=1, trial={"script": "train.py"})
    del manifest["spec"]["searchSpace"], manifest["spec"]["trial"]["objective"]
    kubectl.apply(code("torn-code", SCRIPT.replace('"minimize"', '"maximize"')), manifest)
    failed = condition(kubectl.wait("torn", phase("Failed")), "Failed")
    assert "direction" in failed["message"]
    assert "spec.objectives" in failed["message"]


def test_any_program(kubectl: Kubectl, image: str) -> None:
    program = 'for i in 1 2 3; do echo "epoch=$i loss={{x}}"; done; test -n "$TUNING_PARAM_X"'
    manifest = study("shell", image, trial={"command": ["sh", "-c", program]})
    del manifest["spec"]["trial"]["objective"], manifest["spec"]["trial"]["source"]
    kubectl.apply(manifest)
    assert kubectl.wait("shell", phase("Completed", "Failed"))["status"]["trials"]["complete"] == 4
    with optuna_record(kubectl, "shell") as record:
        for trial in record.trials:
            assert trial.value == trial.params["x"]
            assert sorted(trial.intermediate_values) == [1, 2, 3]


def program(name: str, image: str, shell: str, **metrics: str) -> dict[str, Any]:
    """Return a study whose trials run a shell command."""
    manifest = study(name, image, maxTrials=2, trial={"command": ["sh", "-c", shell], "metrics": metrics})
    del manifest["spec"]["trial"]["objective"], manifest["spec"]["trial"]["source"]
    return manifest


def test_metrics_pattern(kubectl: Kubectl, image: str) -> None:
    """The line doesn't contain the metric's name and starts with another number."""
    shell = 'for i in 1 2; do echo "[$i/2] train 9.99 -- validation: {{x}} (best)"; done'
    pattern = r"^\[(?P<step>\d+)/\d+\] .* validation: (?P<loss>\S+)"
    kubectl.apply(program("words", image, shell, pattern=pattern))
    status = kubectl.wait("words", phase("Completed", "Failed"))["status"]
    assert status["trials"]["complete"] == 2, kubectl.diagnostics("words")
    with optuna_record(kubectl, "words") as record:
        for trial in record.trials:
            assert trial.value == trial.params["x"]
            assert trial.intermediate_values == {1: trial.value, 2: trial.value}


def test_metrics_file(kubectl: Kubectl, image: str) -> None:
    shell = """for i in 1 2; do echo '{"step": '$i', "loss": {{x}}}' >> /tmp/metrics.jsonl; done; echo loss"""
    kubectl.apply(program("file", image, shell, file="/tmp/metrics.jsonl"))
    status = kubectl.wait("file", phase("Completed", "Failed"))["status"]
    assert status["trials"]["complete"] == 2, kubectl.diagnostics("file")
    with optuna_record(kubectl, "file") as record:
        for trial in record.trials:
            assert trial.value == trial.params["x"]
            assert sorted(trial.intermediate_values) == [1, 2]


def test_pattern_without_the_metric_is_rejected_before_any_trial(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(program("typo", image, "echo loss=1", pattern="accuracy=([0-9.]+"))
    rejected = kubectl.wait("typo", holds("Accepted", "False"))
    message = condition(rejected, "Accepted")["message"]
    assert "spec.trial.metrics.pattern" in message
    assert "not a valid regular expression" in message
    kubectl.patch("typo", trial={"metrics": {"pattern": "(?P<accuracy>[0-9.]+)"}})
    rejected = kubectl.wait("typo", lambda s: "no group for loss" in condition(s, "Accepted")["message"])
    assert "(?P<loss>...)" in condition(rejected, "Accepted")["message"]
    assert kubectl.items("jobs") == []
    kubectl.patch("typo", trial={"metrics": {"pattern": "loss=([0-9.]+)"}})
    assert kubectl.wait("typo", phase("Completed", "Failed"))["status"]["trials"]["complete"] == 2
