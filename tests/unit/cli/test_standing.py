"""What is said of a study from the resource alone."""

from __future__ import annotations

from typing import Any

from tuning_operator.cli.standing import best_of, headline, missing_best


def resource(status: dict[str, Any] | None, *metrics: str) -> dict[str, Any]:
    objectives = [{"metric": metric, "direction": "maximize"} for metric in metrics or ("accuracy",)]
    spec = {"objectives": objectives, "maxTrials": 10}
    return {"metadata": {"name": "mnist"}, "spec": spec} | ({"status": status} if status else {})


def test_the_best_trial_by_the_metrics_names() -> None:
    status = {"best": {"number": 4, "values": [0.5], "parameters": {"lr": 0.1}}}
    assert best_of(resource(status)) == {"number": 4, "values": {"accuracy": 0.5}, "parameters": {"lr": 0.1}}


def test_the_pareto_front() -> None:
    status = {"paretoFront": [{"number": n, "values": [0.5, n], "parameters": {}} for n in (1, 2)]}
    front = best_of(resource(status, "accuracy", "latency"))
    assert front == [
        {"number": n, "values": {"accuracy": 0.5, "latency": n}, "parameters": {}} for n in (1, 2)
    ]
    assert best_of(resource({"paretoFront": []}, "accuracy", "latency")) is None


def test_the_standing_in_a_line() -> None:
    trials = {"total": 5, "running": 2, "complete": 1, "pruned": 2, "failed": 0}
    status = {"phase": "Running", "progress": "3/10", "trials": trials}
    assert (
        headline(resource(status)) == "mnist: Running, 3/10 trials finished (1 complete, 2 pruned, 2 running)"
    )


def test_what_is_missing_is_told_with_what_stalls() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "ImagePull", "message": "push the image"}
    accepted = {"type": "Accepted", "status": "True", "reason": "Valid", "message": "fine"}
    status = {"phase": "Running", "trials": {"running": 1}, "conditions": [accepted, stalled]}
    told = missing_best(resource(status)).splitlines()
    assert told[0] == "no best trial yet. mnist: Running, 0/10 trials finished (1 running)"
    assert told[1:] == ["Stalled=True (ImagePull): push the image"]


def test_a_study_that_no_operator_saw() -> None:
    assert "Is the operator running?" in missing_best(resource(None))
