"""What a trial may run besides an objective: a whole Optuna script, and any program."""

from __future__ import annotations

from tests.e2e.kit import Kubectl, code, condition, optuna_record, phase, study

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


def test_an_unmodified_optuna_script(kubectl: Kubectl, image: str) -> None:
    manifest = study("script", image, maxTrials=4, trial={"script": "train.py"})
    del manifest["spec"]["searchSpace"], manifest["spec"]["trial"]["objective"]
    kubectl.apply(code("script-code", SCRIPT), manifest)
    status = kubectl.wait("script", phase("Completed", "Failed"))["status"]
    assert status["phase"] == "Completed"
    assert status["trials"]["failed"] == 0, kubectl.story("script")
    with optuna_record(kubectl, "script") as record:
        assert [set(trial.params) for trial in record.trials] == [{"x"}] * 4
        assert all(trial.intermediate_values for trial in record.trials)


def test_a_script_that_contradicts_the_manifest_is_told(kubectl: Kubectl, image: str) -> None:
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
