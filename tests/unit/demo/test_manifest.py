"""The study of the demo: the code and search space of the example, with more trials."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import programs
from dev.demo.__main__ import MANIFESTS, NAME
from dev.demo.system import ROOT


def study(folder: Path) -> dict[str, Any]:
    command = [programs.kubectl(), "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    (found,) = [found for found in yaml.safe_load_all(done.stdout) if found["kind"] == "TuningStudy"]
    return found


def test_demo_is_the_example_with_twenty_trials_four_at_a_time() -> None:
    demo, example = study(MANIFESTS), study(ROOT / "examples" / "mnist")
    assert demo["metadata"]["name"] == NAME
    assert demo["spec"] == example["spec"] | {"maxTrials": 20, "parallelism": 4}
    assert demo["spec"]["pruner"]["name"] == "MedianPruner"
    (container,) = demo["spec"]["trial"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
