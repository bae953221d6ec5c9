"""One manifest, here and on the cluster: with a seed and one trial at a time, the trials are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import yaml

from tests.e2e.kit import LIMIT, Kubectl, code, optuna_record, phase, study

CODE = """
    import optuna

    def objective(trial):
        x = trial.suggest_float("x", 0, 10)
        depth = trial.suggest_int("depth", 1, 3)
        kind = trial.suggest_categorical("kind", ["linear", "square"])
        loss = abs(x - 3) + depth if kind == "linear" else (x - 3) ** 2 + depth
        for step in range(5):
            trial.report(loss + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss
"""


def test_the_trials_are_the_same(kubectl: Kubectl, image: str, tmp_path: Path) -> None:
    program = code("twins-code", CODE)
    manifest = study(
        "twins",
        image,
        searchSpace=[
            {"name": "x", "type": "float", "low": 0, "high": 10},
            {"name": "depth", "type": "int", "low": 1, "high": 3},
            {"name": "kind", "type": "categorical", "choices": ["linear", "square"]},
        ],
        sampler={"name": "TPESampler", "args": {"seed": 7, "n_startup_trials": 4}},
        pruner={"name": "MedianPruner", "args": {"n_startup_trials": 3}},
        trial={"reusePods": True},
        maxTrials=16,
        parallelism=1,
    )
    kubectl.apply(program, manifest)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump_all([program, manifest]))
    here = run_here(tmp_path)
    kubectl.wait("twins", phase("Completed"))
    with optuna_record(kubectl, "twins") as record:
        there = record.trials
    assert [facts(trial) for trial in here] == [facts(trial) for trial in there]
    assert {trial.state.name for trial in here} == {"COMPLETE", "PRUNED"}


def run_here(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Run the study with `tuning run`; return its trials."""
    tuning = str(Path(sys.executable).with_name("tuning"))
    environ = {**os.environ, "TUNING_HOME": str(folder / "home")}
    exported = folder / "twins.db"
    for arguments in (
        ["run", str(folder / "study.yaml"), "--gpus", "0"],
        ["export", "twins", "--out", str(exported)],
    ):
        done = subprocess.run(
            [tuning, *arguments], env=environ, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return optuna.load_study(study_name=None, storage=f"sqlite:///{exported}").trials


def facts(trial: optuna.trial.FrozenTrial) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.params, trial.values, trial.intermediate_values
