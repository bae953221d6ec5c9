"""examples/initial-trials: the known points are the first trials."""

from __future__ import annotations

from tests.e2e import examples
from tests.e2e.kit import Kubectl, condition, holds, optuna_record


def test_known_points_are_tried_first(kubectl: Kubectl) -> None:
    name = examples.apply(kubectl, "initial-trials", {"maxTrials": 4})
    status = examples.completed(kubectl, name)
    with optuna_record(kubectl, name) as record:
        known, hunch, *others = record.trials
        assert known.params == {"C": 1, "gamma": 0.001}
        assert known.value is not None
        assert known.value > 0.98, "parameters from scikit-learn's example for these digits"
        assert hunch.params.keys() == {"C", "gamma"}, "parameters that a point leaves out are sampled"
        assert hunch.params["C"] == 10
        assert len(others) == 2, "initial trials count towards maxTrials"
        assert {trial.params["C"] for trial in others}.isdisjoint({1, 10})
    assert status["best"]["values"][0] >= known.value


def test_known_point_outside_the_search_space_is_rejected(kubectl: Kubectl) -> None:
    examples.apply(kubectl, "initial-trials", {"initialTrials": [{"C": 1, "gamma": 5}]})
    study = kubectl.wait("initial-trials", holds("Accepted", "False"))
    assert "initialTrials[0].gamma" in condition(study, "Accepted")["message"]
    assert kubectl.items("jobs") == []
