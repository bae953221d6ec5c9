"""examples/initial-trials: the known points are the first trials, and the study begins from them."""

from __future__ import annotations

from tests.e2e import examples
from tests.e2e.kit import Kubectl, condition, holds, optuna_record


def test_the_known_points_are_tried_first(kubectl: Kubectl) -> None:
    name = examples.apply(kubectl, "initial-trials", {"maxTrials": 4})
    status = examples.completed(kubectl, name)
    with optuna_record(kubectl, name) as record:
        known, hunch, *others = record.trials
        assert known.params == {"C": 1, "gamma": 0.001}
        assert known.value is not None
        assert known.value > 0.98, "scikit-learn's own parameters for these digits"
        assert hunch.params.keys() == {"C", "gamma"}, "what the point leaves out is sampled"
        assert hunch.params["C"] == 10
        assert len(others) == 2, "initial trials count towards maxTrials"
        assert {trial.params["C"] for trial in others}.isdisjoint({1, 10})
    assert status["best"]["values"][0] >= known.value


def test_a_known_point_outside_the_search_space_is_refused(kubectl: Kubectl) -> None:
    examples.apply(kubectl, "initial-trials", {"initialTrials": [{"C": 1, "gamma": 5}]})
    study = kubectl.wait("initial-trials", holds("Accepted", "False"))
    assert "initialTrials[0].gamma" in condition(study, "Accepted")["message"]
    assert kubectl.items("jobs") == []
