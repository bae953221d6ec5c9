"""Text about the status of a study, from its resource."""

from __future__ import annotations

from typing import Any

import pytest
from tuning_operator.cli.text.status_text import best_of, headline, missing_best


def resource(status: dict[str, Any] | None, *metrics: str, max_trials: int = 10) -> dict[str, Any]:
    objectives = [{"metric": metric, "direction": "maximize"} for metric in metrics or ("accuracy",)]
    spec = {"objectives": objectives, "maxTrials": max_trials}
    return {"metadata": {"name": "mnist"}, "spec": spec} | ({"status": status} if status else {})


def test_the_best_trial_by_the_metrics_names() -> None:
    status = {"best": {"number": 4, "values": [0.5], "parameters": {"lr": 0.1}}}
    assert best_of(resource(status)) == {"number": 4, "values": {"accuracy": 0.5}, "parameters": {"lr": 0.1}}


def test_parameters_are_in_the_order_of_the_search_space() -> None:
    study = resource({"best": {"number": 4, "values": [0.5], "parameters": {"a": 1, "lr": 2, "own": 3}}})
    study["spec"]["searchSpace"] = [{"name": name} for name in ("lr", "later", "a")]
    best = best_of(study)
    assert isinstance(best, dict)
    assert [*best["parameters"]] == ["lr", "a", "own"]


def test_the_pareto_front() -> None:
    status = {"paretoFront": [{"number": n, "values": [0.5, n], "parameters": {}} for n in (1, 2)]}
    front = best_of(resource(status, "accuracy", "latency"))
    assert front == [
        {"number": n, "values": {"accuracy": 0.5, "latency": n}, "parameters": {}} for n in (1, 2)
    ]
    assert best_of(resource({"paretoFront": []}, "accuracy", "latency")) is None


def test_headline() -> None:
    trials = {"total": 5, "running": 2, "complete": 1, "pruned": 2, "failed": 0}
    status = {"phase": "Running", "progress": "3/10", "trials": trials}
    assert (
        headline(resource(status)) == "mnist: Running, 3/10 trials finished (1 complete, 2 pruned, 2 running)"
    )


def test_headline_of_one_trial() -> None:
    assert headline(resource({"phase": "Running"}, max_trials=1)) == "mnist: Running, 0/1 trial finished"


def test_no_trial_completed_comes_with_the_blocking_conditions() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "ImagePull", "message": "push the image"}
    accepted = {"type": "Accepted", "status": "True", "reason": "Valid", "message": "fine"}
    status = {"phase": "Running", "trials": {"running": 1}, "conditions": [accepted, stalled]}
    assert missing_best(resource(status)).splitlines() == [
        "no trial completed yet",
        "mnist: Running, 0/10 trials finished (1 running)",
        "Stalled=True (ImagePull): push the image",
    ]


@pytest.mark.parametrize("phase", ["Completed", "Failed"])
def test_no_trial_completed_in_a_study_that_ended(phase: str) -> None:
    assert missing_best(resource({"phase": phase})).splitlines()[0] == "no trial completed"


def test_a_study_that_the_operator_has_not_processed() -> None:
    assert "Is the operator running?" in missing_best(resource(None))


def test_a_local_study_that_is_starting() -> None:
    study = resource(None)
    study["metadata"]["namespace"] = "local"
    assert missing_best(study).splitlines() == ["no trial completed yet", "mnist: starting"]
