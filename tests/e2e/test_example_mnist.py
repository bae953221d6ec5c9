"""examples/mnist in the image built from trainer-image/Dockerfile."""

from __future__ import annotations

import pytest

from dev.demo.system import TRAINER
from tests.e2e import examples
from tests.e2e.kit import REQUESTS, Kubectl, optuna_record

PACKAGES = ["accelerate", "datasets", "lightning", "optuna", "optuna_integration", "plotly"]
PACKAGES += ["sklearn", "torch", "torchvision", "transformers"]

WRITE_MNIST = """
import pathlib, struct
import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
pictures = np.zeros((len(digits.target), 28, 28), np.uint8)
pictures[:, 2:26, 2:26] = (digits.images * 15).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
folder = pathlib.Path("/data/MNIST/raw")
folder.mkdir(parents=True)
for name in ("train", "t10k"):
    head = struct.pack(">IIII", 2051, len(pictures), 28, 28)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
    head = struct.pack(">II", 2049, len(pictures))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + digits.target.astype(np.uint8).tobytes())
"""
"""Creates files in MNIST's format from scikit-learn's digits, so that nothing is downloaded."""

NOT_COMPILED = """
import os, sys
bytecode = {name: vars(module).get("__cached__") for name, module in sys.modules.items()}
print("uid", os.getuid(), [name for name, path in bytecode.items() if path and not os.path.exists(path)])
"""
"""Prints the user ID, and the imported modules of which the image has only the source."""


GOOD = [{"learning_rate": 0.01, "hidden_size": 128}, {"learning_rate": 0.003, "hidden_size": 64}]
UNPROMISING = {"learning_rate": 1e-5, "hidden_size": 64}
REDUCED = {
    "maxTrials": 3,
    "parallelism": 1,
    "initialTrials": [*GOOD, UNPROMISING],
    "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 2, "n_warmup_steps": 2}},
}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_good_network_is_found_and_a_bad_one_pruned(kubectl: Kubectl) -> None:
    name = examples.apply(kubectl, "mnist", REDUCED)
    status = examples.completed(kubectl, name)
    assert status["progress"] == "3/3"
    assert status["best"]["values"][0] > 0.9
    assert set(status["best"]["parameters"]) == {"learning_rate", "hidden_size"}
    log = kubectl.logs_of_trial(name, status["best"]["number"])
    assert "1797 pictures, scikit-learn's handwritten digits (MNIST_DIR is not set)" in log
    assert "threads: 1" in log, "the container's CPU limit, not the node's cores"
    with optuna_record(kubectl, name) as record:
        assert [trial.params for trial in record.trials] == [*GOOD, UNPROMISING]
        assert record.trials[2].state.name == "PRUNED"
        complete = [t for t in record.trials if t.state.name == "COMPLETE"]
        assert all(sorted(t.intermediate_values) == list(range(20)) for t in complete)


@pytest.mark.timeout(1800)
def test_mnist_files_are_used_if_they_exist(kubectl: Kubectl) -> None:
    """The files are on a volume, as described in the manifest's comments."""
    mounts = [{"name": "data", "mountPath": "/data"}]
    files = {
        "name": "files",
        "image": TRAINER,
        "command": ["python3", "-c", WRITE_MNIST],
        "volumeMounts": mounts,
    }
    volume = examples.pod(volumes=[{"name": "data", "emptyDir": {}}], initContainers=[files])
    reading = examples.trainer(env={"MNIST_DIR": "/data"}, volumeMounts=mounts)
    overlay = examples.merged(examples.merged({"maxTrials": 1, "parallelism": 1}, volume), reading)
    name = examples.apply(kubectl, "mnist", overlay)
    examples.completed(kubectl, name)
    log = kubectl.logs_of_trial(name, 0)
    assert "1797 pictures, MNIST from /data" in log
    assert "COMPLETE" in log


def test_image_runs_restricted_and_has_all_packages(kubectl: Kubectl) -> None:
    """With any user ID and a read-only root file system, all packages of the examples can be imported.

    No module is compiled at that time.
    """
    imports = f"import {', '.join(PACKAGES)}\n{NOT_COMPILED}"
    container = {
        "name": "main",
        "image": TRAINER,
        "command": ["python3", "-c", imports],
        "resources": REQUESTS,
        "securityContext": {"runAsUser": 12345, "readOnlyRootFilesystem": True, "runAsNonRoot": True},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [{"name": name, "emptyDir": {}} for name in ("cache", "tmp")]
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    job = {"template": {"spec": pod}, "backoffLimit": 0}
    kubectl.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "import"}, "spec": job})
    kubectl.wait_for("condition=Complete", "job/import")
    assert kubectl.run("logs", "job/import").splitlines()[-1] == "uid 12345 []"
