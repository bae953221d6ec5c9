"""examples/mnist as it is shipped, in the image built from trainer-image/Dockerfile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.kit import Kubectl, optuna_record, phase

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist"
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
"""Handwritten digits as files of MNIST's own format: nothing can be downloaded here."""


@pytest.mark.timeout(900)
def test_the_example_finds_a_good_network_and_prunes_bad_ones(kubectl: Kubectl) -> None:
    kubectl.run("apply", "-k", str(EXAMPLE))
    done = kubectl.wait("mnist", phase("Completed", "Failed"), timeout=800)
    status = done["status"]
    assert status["phase"] == "Completed", kubectl.story("mnist")
    assert status["progress"] == "20/20"
    assert status["trials"]["failed"] == 0, kubectl.story("mnist")
    assert status["trials"]["pruned"] >= 1
    assert status["best"]["values"][0] > 0.9
    assert set(status["best"]["parameters"]) == {"learning_rate", "hidden_size"}
    log = kubectl.logs_of_trial("mnist", status["best"]["number"])
    assert "1797 pictures, scikit-learn's handwritten digits (MNIST_DIR is not set)" in log
    assert "threads: 1" in log, "the container's CPU limit, not the node's cores"
    with optuna_record(kubectl, "mnist") as record:
        complete = [t for t in record.trials if t.state.name == "COMPLETE"]
        assert all(sorted(t.intermediate_values) == list(range(20)) for t in complete)


def with_mnist_files(study: dict[str, Any]) -> dict[str, Any]:
    """Return the study with MNIST on a volume, as its comments say."""
    study = copy.deepcopy(study)
    study["spec"] |= {"maxTrials": 1, "parallelism": 1}
    pod = study["spec"]["trial"]["template"]["spec"]
    (trainer,) = pod["containers"]
    mount = {"name": "data", "mountPath": "/data"}
    pod["volumes"] = [{"name": "data", "emptyDir": {}}]
    pod["initContainers"] = [
        {
            "name": "files",
            "image": trainer["image"],
            "command": ["python3", "-c", WRITE_MNIST],
            "volumeMounts": [mount],
        }
    ]
    trainer["volumeMounts"] = [mount]
    trainer["env"].append({"name": "MNIST_DIR", "value": "/data"})
    return study


@pytest.mark.timeout(600)
def test_mnist_files_are_used_where_they_are(kubectl: Kubectl) -> None:
    code = {"train.py": (EXAMPLE / "train.py").read_text()}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mnist-code"}, "data": code},
        with_mnist_files(yaml.safe_load((EXAMPLE / "study.yaml").read_text())),
    )
    status = kubectl.wait("mnist", phase("Completed", "Failed"), timeout=500)["status"]
    assert status["phase"] == "Completed", kubectl.story("mnist")
    log = kubectl.logs_of_trial("mnist", 0)
    assert "1797 pictures, MNIST from /data" in log
    assert "COMPLETE" in log


def test_the_image_is_locked_down_and_complete(kubectl: Kubectl) -> None:
    """Any user ID, a read-only root file system, and every package that the examples build on."""
    imports = f"import {', '.join(PACKAGES)}, os; print('uid', os.getuid())"
    study = yaml.safe_load((EXAMPLE / "study.yaml").read_text())
    image = study["spec"]["trial"]["template"]["spec"]["containers"][0]["image"]
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-c", imports],
        "securityContext": {"runAsUser": 12345, "readOnlyRootFilesystem": True, "runAsNonRoot": True},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [{"name": name, "emptyDir": {}} for name in ("cache", "tmp")]
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    job = {"template": {"spec": pod}, "backoffLimit": 0}
    kubectl.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "import"}, "spec": job})
    kubectl.run("wait", "--for=condition=Complete", "job/import", "--timeout=240s", timeout=260)
    assert kubectl.run("logs", "job/import").splitlines()[-1] == "uid 12345"
