"""The study of the demo: the code and search space of the example, with more trials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.demo.__main__ import MANIFESTS, NAME
from dev.demo.system import ROOT


def test_demo_is_the_example_with_twenty_trials_four_at_a_time_from_scratch(
    kustomize: Callable[[Path], list[dict[str, Any]]],
) -> None:
    demo, example = [
        next(found for found in kustomize(folder) if found["kind"] == "TuningStudy")
        for folder in (MANIFESTS, ROOT / "examples" / "mnist")
    ]
    assert demo["metadata"]["name"] == NAME
    assert demo["spec"] == example["spec"] | {
        "maxTrials": 20,
        "parallelism": 4,
        "existingRecord": "Replace",
    }
    assert demo["spec"]["pruner"]["name"] == "MedianPruner"
    (container,) = demo["spec"]["trial"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
