"""examples/cnn-cats-dogs: images on a volume, trials in parallel on several GPUs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.e2e import examples
from tests.e2e.kit import GPU, Kubectl, optuna_record

WRITE_PHOTOGRAPHS = """
import pathlib, random
from PIL import Image
from sklearn.datasets import load_sample_images

numbers = random.Random(0)
for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
    picture = Image.fromarray(photograph)
    for part, count in {"train": 8, "val": 4}.items():
        folder = pathlib.Path("/images") / part / name
        folder.mkdir(parents=True)
        for number in range(count):
            left, top = numbers.randrange(picture.width - 256), numbers.randrange(picture.height - 256)
            picture.crop((left, top, left + 256, top + 256)).save(folder / f"{number}.jpg")
"""
"""Creates images from parts of two photographs, in the layout of the example."""

GOOD = {"learning_rate": 1e-3, "weight_decay": 1e-4}
REDUCED = {
    "maxTrials": 3,
    "parallelism": 2,
    "initialTrials": [GOOD, {"learning_rate": 3e-4, "weight_decay": 1e-6}],
}
SMALL = examples.trainer(
    env={"EPOCHS": "2"},
    resources={"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"cpu": "1"}},
)


@pytest.mark.restart_proof
@pytest.mark.timeout(1800)
def test_images_on_a_volume_and_two_trials_at_a_time(kubectl: Kubectl) -> None:
    fill_volume(kubectl)
    name = examples.apply(kubectl, "cnn-cats-dogs", examples.merged(REDUCED, SMALL))
    best = examples.completed(kubectl, name)["best"]
    assert "data: 16 + 8 pictures of china and flower" in kubectl.logs_of_trial(name, 0)
    with optuna_record(kubectl, name) as record:
        assert record.trials[0].params == GOOD
        assert record.best_value == best["values"][0] < 1
        assert set(record.best_trial.user_attrs) == {"accuracy"}
        spans = [(trial.datetime_start, trial.datetime_complete) for trial in record.trials]
    assert together(spans) == 2, "as many trials at a time as parallelism allows"
    pods = kubectl.items("pods", f"tuning.dev/study={name}")
    assert [pod["spec"]["containers"][0]["resources"]["limits"][GPU] for pod in pods] == 3 * ["1"]


def fill_volume(kubectl: Kubectl) -> None:
    """Create the example's volume, for a single node, with images."""
    claim = yaml.safe_load((examples.EXAMPLES / "cnn-cats-dogs" / "images.yaml").read_text())
    claim["spec"]["accessModes"] = ["ReadWriteOnce"]
    kubectl.apply(claim)
    volume = examples.claimed("images", claim["metadata"]["name"])
    examples.run_python(kubectl, "fill", WRITE_PHOTOGRAPHS, {"/images": volume})


def together(spans: list[tuple[Any, Any]]) -> int:
    """Return the largest number of time spans that overlap."""
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
