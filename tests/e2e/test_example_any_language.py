"""examples/any-language: a Perl program that is pruned, and an awk program with a metrics pattern."""

from __future__ import annotations

from tests.e2e import examples
from tests.e2e.kit import PRUNE_GRACE, Kubectl, optuna_record

GOOD = [
    {"learning_rate": 0.1, "momentum": 0.9, "l2": 1e-4},
    {"learning_rate": 0.3, "momentum": 0.5, "l2": 1e-4},
]
UNPROMISING = {"learning_rate": 1e-4, "momentum": 0.0, "l2": 1e-4}
PERL = {
    "maxTrials": 4,
    "parallelism": 1,
    "trial": {"pruneGrace": PRUNE_GRACE},
    "initialTrials": [*GOOD, UNPROMISING],
    "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 2, "n_warmup_steps": 500}},
}
AWK = {"searchSpace": [{"name": "k", "high": 3}]}


def test_programs_in_other_languages(kubectl: Kubectl) -> None:
    perl = examples.apply(kubectl, "any-language", PERL)
    awk = examples.apply(kubectl, "any-language", AWK, "study-awk.yaml")
    perl_learns_and_is_stopped(kubectl, perl)
    awk_is_read_by_a_pattern(kubectl, awk)


def perl_learns_and_is_stopped(kubectl: Kubectl, name: str) -> None:
    best = examples.completed(kubectl, name)["best"]
    assert best["values"][0] < 0.1
    with optuna_record(kubectl, name) as record:
        first, second, unpromising, _ = record.trials
        assert [first.params, second.params, unpromising.params] == [*GOOD, UNPROMISING]
        assert sorted(first.intermediate_values) == list(range(100, 5001, 100))
        assert first.value == first.intermediate_values[5000]
        assert unpromising.state.name == "PRUNED"
    assert "this trial does worse than the median of the others" in kubectl.logs_of_trial(name, 2)


def awk_is_read_by_a_pattern(kubectl: Kubectl, name: str) -> None:
    status = examples.completed(kubectl, name)
    assert status["trials"]["complete"] == 4, "all combinations of two values of k and two powers"
    with optuna_record(kubectl, name) as record:
        tried = {(trial.params["k"], trial.params["power"]) for trial in record.trials}
        assert tried == {(1, 1), (1, 2), (3, 1), (3, 2)}
        values = [trial.value for trial in record.trials]
        assert all(90 < value <= 100 for value in values)
