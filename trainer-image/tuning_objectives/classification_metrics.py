"""The metrics that METRIC can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn import metrics

from tuning_objectives.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

BINARY = 2  # classes
LOSS = "loss"
"""Returned by every evaluation; the other metrics are computed from the predictions."""


def metric_function(name: str, classes: int) -> Callable[[Any], dict[str, float]]:
    """Return a `compute_metrics` for the Trainer that computes accuracy and the named metric.

    f1, precision and recall are those of class 1 if there are two classes, otherwise macro averages.

    Raises:
        SettingsError: there is no such metric; the message lists them.
    """
    average = "binary" if classes == BINARY else "macro"
    known: dict[str, Callable[[Any, Any], float]] = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "f1": lambda true, predicted: metrics.f1_score(true, predicted, average=average),
        "f1_macro": lambda true, predicted: metrics.f1_score(true, predicted, average="macro"),
        "f1_micro": lambda true, predicted: metrics.f1_score(true, predicted, average="micro"),
        "f1_weighted": lambda true, predicted: metrics.f1_score(true, predicted, average="weighted"),
        "precision": lambda true, predicted: metrics.precision_score(
            true, predicted, average=average, zero_division=0
        ),
        "recall": lambda true, predicted: metrics.recall_score(
            true, predicted, average=average, zero_division=0
        ),
        "matthews_correlation": metrics.matthews_corrcoef,
    }
    if name not in known and name != LOSS:
        raise SettingsError(f"METRIC is '{name}': it must be one of {', '.join([*known, LOSS])}.")
    wanted = {"accuracy", name} - {LOSS}

    def compute(prediction: Any) -> dict[str, float]:
        logits = (
            prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        )
        predicted = logits.argmax(axis=-1)
        return {one: float(known[one](prediction.label_ids, predicted)) for one in wanted}

    return compute
