"""Invalid manifests are rejected with a message that names the field and the fix. Other studies still run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.kit import Kubectl, code, condition, holds, phase, study

GOOD = "def objective(trial):\n    return trial.params['x']\n"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"searchSpace": [{"name": "x", "type": "float", "low": 2, "high": 1}]},
            ["searchSpace", "low", "high"],
        ),
        (
            {"searchSpace": [{"name": "lr", "type": "float", "low": 0, "high": 1, "log": True}]},
            ["log", "low"],
        ),
        ({"trial": {"command": ["true"]}}, ["objective", "command"]),
        ({"maxTrails": 3}, ["maxTrails"]),
    ],
    ids=["low-high", "log-zero", "objective-and-command", "misspelled-field"],
)
def test_apply_rejects(kubectl: Kubectl, image: str, spec: dict[str, Any], words: list[str]) -> None:
    message = kubectl.reject(study("bad", image, **spec))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"sampler": {"name": "TPESampler", "args": {"sede": 1}}}, ["sampler.args", "sede", "seed"]),
        ({"initialTrials": [{"x": 99}]}, ["initialTrials[0]", "x", "10"]),
        ({"pruner": {"name": "PercentilePruner", "args": {}}}, ["pruner", "percentile"]),
    ],
    ids=["sampler-argument", "initial-trial", "pruner-argument"],
)
def test_operator_rejects_a_study_and_runs_the_others(
    kubectl: Kubectl, image: str, spec: dict[str, Any], words: list[str]
) -> None:
    kubectl.apply(code("bad-code", GOOD), study("bad", image, **spec))
    rejected = condition(kubectl.wait("bad", holds("Accepted", "False")), "Accepted")
    for word in words:
        assert word in rejected["message"], rejected
    assert kubectl.items("jobs", "tuning.dev/study=bad") == []
    kubectl.apply(code("fine-code", GOOD), study("fine", image, maxTrials=2))
    kubectl.wait("fine", phase("Completed"))


def test_fixed_manifest_runs(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(code("fixed-code", GOOD), study("fixed", image, maxTrials=2, initialTrials=[{"x": 99}]))
    kubectl.wait("fixed", holds("Accepted", "False"))
    kubectl.patch("fixed", initialTrials=[{"x": 9}])
    done = kubectl.wait("fixed", phase("Completed"))
    assert done["status"]["trials"]["complete"] == 2
