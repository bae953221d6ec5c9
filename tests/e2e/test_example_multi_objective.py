"""examples/multi-objective: accuracy and latency, the Pareto front, and a refit of one of its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e import examples
from tests.e2e.kit import Kubectl, optuna_record

SMALL, LARGE = {"n_estimators": 5, "max_depth": 2}, {"n_estimators": 60, "max_depth": 16}
SHARED_CORES = examples.trainer(resources={"requests": {"cpu": "50m"}})


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_pareto_front_is_in_the_status_and_its_most_accurate_trial_is_refitted(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    overlay = examples.merged({"maxTrials": 4, "initialTrials": [SMALL, LARGE]}, SHARED_CORES)
    overlay["refit"] = overlay["trial"]
    name = examples.apply(kubectl, "multi-objective", overlay)
    front = examples.completed(kubectl, name)["paretoFront"]
    with optuna_record(kubectl, name) as record:
        assert {trial["number"] for trial in front} == {trial.number for trial in record.best_trials}
        small, large = record.trials[:2]
        assert large.values[0] > small.values[0] + 0.1, "more and deeper trees are more accurate"
        assert large.values[1] > 2 * small.values[1], "and slower"
    assert len(front) >= 2
    assert not any(dominates(one, other) for one in front for other in front)

    refit = examples.refitted(kubectl, name)
    assert refit["trial"] == max(front, key=lambda trial: trial["values"][0])["number"]
    assert refit["model"] == "/models/forest.joblib"
    accuracy, latency = refit["values"]
    assert accuracy > 0.9
    assert latency > 0
    assert examples.plots(kubectl, name, tmp_path, "pareto-front") == {"pareto-front"}


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether one trial dominates the other."""
    (accuracy, latency), (other_accuracy, other_latency) = one["values"], other["values"]
    return one["values"] != other["values"] and accuracy >= other_accuracy and latency <= other_latency
