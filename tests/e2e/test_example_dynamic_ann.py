"""examples/dynamic-ann: the architecture as part of the search, conditional parameters, and the refit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import examples
from tests.e2e.kit import REQUESTS, Kubectl, optuna_record

GOOD = {"n_layers": 1, "hidden_size": 128, "dropout": 0.2, "lr": 0.009, "optimizer": "Adam", "batch_size": 32}
PLOTS = ("optimization-history", "param-importances", "parallel-coordinate")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_best_network_is_trained_on_all_data_and_saved(kubectl: Kubectl, image: str, tmp_path: Path) -> None:
    name = examples.apply(kubectl, "dynamic-ann", {"maxTrials": 2, "parallelism": 2, "initialTrials": [GOOD]})
    best = examples.completed(kubectl, name)["best"]
    assert best["values"][0] > 0.9
    assert "scikit-learn's handwritten digits" in kubectl.logs_of_trial(name, best["number"])
    with optuna_record(kubectl, name) as record:
        assert record.trials[0].params == GOOD
        assert sorted(record.trials[0].intermediate_values) == [0, 1, 2, 3, 4]

    refit = examples.refitted(kubectl, name)
    assert refit["trial"] == best["number"]
    assert refit["values"][0] > 0.9
    assert refit["model"] == "/models/dynamic-ann.pt"
    assert f"test accuracy {refit['values'][0]:.4f}" in kubectl.logs_of_job(refit["job"])
    listing = look_into_volume(kubectl, image, "dynamic-ann-models", "ls -s /volume")
    assert "dynamic-ann.pt" in listing
    assert examples.plots(kubectl, name, tmp_path, *PLOTS) == set(PLOTS)


def look_into_volume(kubectl: Kubectl, image: str, claim: str, line: str) -> str:
    """Run a shell command in a pod with the volume at /volume; return its output."""
    mount = {"name": "volume", "mountPath": "/volume"}
    container = {"name": "main", "image": image, "command": ["sh", "-c", line], "resources": REQUESTS}
    container["volumeMounts"] = [mount]
    volume = {"name": "volume", "persistentVolumeClaim": {"claimName": claim}}
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": [volume]}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "look"}, "spec": pod})
    return kubectl.output_of("look")


SHALLOW = {"n_layers": 1, "hidden_size_1": 64}
DEEP = {"n_layers": 3, "hidden_size_1": 64, "hidden_size_2": 128, "hidden_size_3": 192}
COMMON = {"dropout", "lr", "optimizer", "batch_size"}


@pytest.mark.restart_proof
@pytest.mark.timeout(1800)
def test_one_size_per_layer_declared_and_define_by_run(kubectl: Kubectl) -> None:
    overlay = {
        "maxTrials": 2,
        "parallelism": 1,
        "initialTrials": [SHALLOW, DEEP],
        "trial": {"reusePods": True},  # PyTorch is imported once
    }
    files = ("study-per-layer.yaml", "study-define-by-run.yaml")
    studies = [examples.apply(kubectl, "dynamic-ann", overlay, file) for file in files]
    for name in studies:
        examples.completed(kubectl, name)
        with optuna_record(kubectl, name) as record:
            shallow, deep = record.trials
            assert shallow.params.keys() == SHALLOW.keys() | COMMON
            assert shallow.params.items() >= SHALLOW.items()
            assert deep.params.items() >= DEEP.items()
