"""examples/warm-start: a study on all data that continues from trials on a quarter of the data."""

from __future__ import annotations

from tests.e2e import examples
from tests.e2e.kit import Kubectl, optuna_record

GOOD = {"hidden_size": 64, "learning_rate": 0.01, "l2": 1e-4}


def test_second_study_starts_with_the_trials_of_the_first(kubectl: Kubectl) -> None:
    first = {"maxTrials": 2, "initialTrials": [GOOD]}
    quarter = examples.apply(kubectl, "warm-start", first, "quarter.yaml")
    before = examples.completed(kubectl, quarter)
    assert "data: 336 pictures to train on" in kubectl.logs_of_trial(quarter, 0)

    name = examples.apply(kubectl, "warm-start", {"maxTrials": 2})
    after = examples.completed(kubectl, name)
    assert after["trials"]["copied"] == 2
    assert after["progress"] == "2/2", "copied trials don't count towards maxTrials"
    assert after["best"]["values"][0] >= before["best"]["values"][0]

    with optuna_record(kubectl, quarter) as record:
        theirs = record.trials
    with optuna_record(kubectl, name) as record:
        copied, own = record.trials[:2], record.trials[2:]
        assert [trial.params for trial in copied] == [trial.params for trial in theirs]
        assert [trial.values for trial in copied] == [trial.values for trial in theirs]
        assert len(own) == 2
    assert "data: 1347 pictures to train on" in kubectl.logs_of_trial(name, own[0].number)
