"""examples/transformer-lightning: a whole Optuna script with Lightning, pruned, resumed, and its plots."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e import examples
from tests.e2e.kit import Kubectl, optuna_record

SMALLEST = {"batch_size": 128, "num_layers": 2, "hidden_dim": 128, "dropout": 0.1, "weight_decay": 1e-6}
RATES = [1e-3, 1.5e-3]
UNPROMISING = SMALLEST | {"learning_rate": 1e-5}
REDUCED = {
    "maxTrials": 2,
    "parallelism": 2,
    "pruner": {"args": {"n_startup_trials": 2}},
    "initialTrials": [*(SMALLEST | {"learning_rate": rate} for rate in RATES), UNPROMISING],
}
SMALL = examples.trainer(
    env={"EPOCHS": "11"},
    resources={"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"cpu": "1"}},
)
PLOTS = ["optimization_history", "parallel_coordinate", "param_importances", "slice"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_script_is_pruned_resumed_and_saves_its_plots(kubectl: Kubectl) -> None:
    study = examples.load("transformer-lightning", examples.merged(REDUCED, SMALL))
    kubectl.apply(*fewer_startup_trials(examples.code(kubectl, "transformer-lightning")), study)
    name = study["metadata"]["name"]
    status = examples.completed(kubectl, name)
    assert status["progress"] == "2/2"
    assert status["best"]["values"][0] > 0.8
    log = kubectl.logs_of_trial(name, 0)
    assert "the script's storage is ignored" in log
    assert "scikit-learn's handwritten digits (MNIST_DIR is not set); threads: 1" in log

    kubectl.patch(name, maxTrials=3)
    kubectl.wait(name, lambda study: study["status"]["progress"] == "3/3")
    status = examples.completed(kubectl, name)
    with optuna_record(kubectl, name) as record:
        assert [trial.params["learning_rate"] for trial in record.trials] == [*RATES, 1e-5], "the same record"
        assert [trial.state.name for trial in record.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
        assert max(record.trials[2].intermediate_values) == 10, "not pruned during ten epochs of warm-up"

    refit = examples.refitted(kubectl, name)
    assert refit["attributes"] == {"plots": "/plots"}
    log = kubectl.logs_of_job(refit["job"])
    assert f"best: trial {status['best']['number']}, val_acc {status['best']['values'][0]:.4f}" in log
    assert sorted(line for line in log.splitlines() if line.startswith("wrote")) == [
        f"wrote /plots/{plot}.html" for plot in PLOTS
    ]


def fewer_startup_trials(code: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the script's pruner like the manifest's, since they must agree."""
    text = json.dumps(code)
    assert text.count("n_startup_trials=5") == 1
    return json.loads(text.replace("n_startup_trials=5", "n_startup_trials=2"))
