"""What a line of a program's output says."""

from __future__ import annotations

import math

import pytest
from tuning_trainer.failure import TrialFailure
from tuning_trainer.modes.metrics import MetricReader, Reading, Steps


@pytest.mark.parametrize(
    ("line", "step", "accuracy"),
    [
        ("accuracy=0.93", None, 0.93),
        ("accuracy = 0.93", None, 0.93),
        ("accuracy: 0.93\n", None, 0.93),
        ("Accuracy: 93%", None, 93.0),
        ("epoch=3 loss=0.2 accuracy=.5", 3, 0.5),
        ("Epoch 3/10: accuracy=0.5.", 3, 0.5),
        ("epoch=3 step=120 accuracy=0.5", 120, 0.5),
        ("[Epoch 4] accuracy=1e-3, lr=0.1", 4, 1e-3),
        ("{'eval_loss': 0.3, 'accuracy': 0.91, 'epoch': 2.0}", 2, 0.91),
        ("{'accuracy': 0.91, 'epoch': 2.5}", None, 0.91),
        ('{"accuracy": 0.91, "epoch": 2, "note": "x"}', 2, 0.91),
        ('{"accuracy": "0.91", "step": 0}', 0, 0.91),
        ('{"accuracy": true}', None, None),
        ('{"accuracy": null}', None, None),
        ("2024-01-01 12:00:00 INFO train accuracy=-1.5e+2 done", None, -150.0),
        ("accuracy=inf", None, math.inf),
        ("accuracy=-Infinity", None, -math.inf),
        ("10%|#   | accuracy=0.1\r20%|##  | accuracy=0.2\n", None, 0.2),
        ("accuracy=0.1 accuracy=0.2", None, 0.2),
        ("val_accuracy=0.5", None, None),
        ("accuracy_top5=0.5", None, None),
        ("accuracy=high", None, None),
        ("accuracy=5abc", None, None),
        ("the accuracy is 0.5", None, None),
        ("Epoch 3/10", 3, None),
        ("timestep=9", None, None),
        ("", None, None),
        ("{not json", None, None),
        ("[1, 2]", None, None),
    ],
)
def test_a_line(line: str, step: int | None, accuracy: float | None) -> None:
    values = {} if accuracy is None else {"accuracy": accuracy}
    assert MetricReader(["accuracy"]).read(line) == Reading(step, values)


def test_nan_is_read_as_it_is() -> None:
    assert math.isnan(MetricReader(["loss"]).read("loss=nan").values["loss"])


def test_several_metrics_and_names_with_signs() -> None:
    reader = MetricReader(["val/loss", "latency.p99"])
    assert reader.read("val/loss=0.5 latency.p99: 12") == Reading(
        None, {"val/loss": 0.5, "latency.p99": 12.0}
    )
    assert reader.read("xval/loss=0.5 latencyxp99: 12").values == {}


@pytest.mark.parametrize(
    ("pattern", "line", "reading"),
    [
        (r"acc (\S+)", "acc 0.5", Reading(None, {"accuracy": 0.5})),
        (r"E(?P<step>\d+) .*top1 (?P<accuracy>\S+)", "E7 x top1 0.5", Reading(7, {"accuracy": 0.5})),
        (r"(?P<name>\w+)\|(?P<value>\S+)", "loss|2 accuracy|0.5", Reading(None, {"accuracy": 0.5})),
        (r"acc (\S+)", "accuracy=0.5", Reading(None, {})),
        (r"acc (\S+)", "acc none", Reading(None, {})),
    ],
)
def test_a_pattern(pattern: str, line: str, reading: Reading) -> None:
    assert MetricReader(["accuracy"], pattern).read(line) == reading


@pytest.mark.parametrize("pattern", ["(", r"acc \S+", r"(?P<loss>\S+)", r"(\d)(\d)"])
def test_a_pattern_that_cannot_work_says_so(pattern: str) -> None:
    with pytest.raises(TrialFailure) as error:
        MetricReader(["accuracy"], pattern)
    assert pattern in error.value.failure.message.replace("\\\\", "\\")
    assert "(?P<accuracy>" in (error.value.failure.remedy or "")


def test_steps_come_from_the_line_the_heading_or_the_count() -> None:
    steps = Steps()
    has = {"accuracy": 0.5}
    assert steps.of(Reading(None, has)) == 0
    assert steps.of(Reading(None, has)) == 1
    assert steps.of(Reading(5, {})) is None
    assert steps.of(Reading(None, has)) == 5
    assert steps.of(Reading(None, has)) == 6
    assert steps.of(Reading(6, has)) is None, "the first value of a step holds"
    assert steps.of(Reading(9, has)) == 9
