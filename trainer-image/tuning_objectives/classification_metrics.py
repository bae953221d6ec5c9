"""The metrics of a classifier that METRIC may name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn import metrics

from tuning_objectives.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

LOSS = "loss"
"""What every evaluation returns; the others are computed from the predictions."""


def metric_function(name: str, classes: int) -> Callable[[Any], dict[str, float]]:
    """Return a `compute_metrics` for the Trainer that gives accuracy and the named metric.

    f1, precision and recall are of class 1 where there are two, else the mean over the classes (macro).

    Raises:
        SettingsError: there is no such metric; names those that are.
    """
    average = "binary" if classes == len(("no", "yes")) else "macro"
    known: dict[str, Callable[[Any, Any], float]] = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "f1": lambda true, said: metrics.f1_score(true, said, average=average),
        "f1_macro": lambda true, said: metrics.f1_score(true, said, average="macro"),
        "f1_micro": lambda true, said: metrics.f1_score(true, said, average="micro"),
        "f1_weighted": lambda true, said: metrics.f1_score(true, said, average="weighted"),
        "precision": lambda true, said: metrics.precision_score(true, said, average=average, zero_division=0),
        "recall": lambda true, said: metrics.recall_score(true, said, average=average, zero_division=0),
        "matthews_correlation": metrics.matthews_corrcoef,
    }
    if name not in known and name != LOSS:
        raise SettingsError(f"METRIC is '{name}': it must be one of {', '.join([*known, LOSS])}.")
    wanted = {"accuracy", name} - {LOSS}

    def compute(prediction: Any) -> dict[str, float]:
        logits = (
            prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        )
        said = logits.argmax(axis=-1)
        return {one: float(known[one](prediction.label_ids, said)) for one in wanted}

    return compute
