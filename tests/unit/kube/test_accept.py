"""What the operator refuses by itself: the field, what is wrong, how to mend it."""

from __future__ import annotations

from typing import Any

import pytest
from tuning_operator.kube.plan.validation import check

from tests.unit.kube.builders import study

BOTH = [{"metric": "accuracy", "direction": "maximize"}, {"metric": "latency", "direction": "minimize"}]


def command(pattern: str | None, objectives: list[dict[str, str]] | None = None) -> dict[str, Any]:
    metrics = {"pattern": pattern} if pattern else {"file": "/tmp/metrics.jsonl"}
    spec = {"trial": {"objective": None, "command": ["./train"], "metrics": metrics}}
    return spec | ({"objectives": objectives} if objectives else {})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (command("accuracy=("), ["'accuracy=('", "not a valid regular expression", "missing )"]),
        (command("accuracy=.*"), ["no group for accuracy", "(?P<accuracy>...)"]),
        (command("(?P<loss>.*)"), ["no group for accuracy"]),
        (command("(.*)", BOTH), ["no group for accuracy or latency"]),
        (command("a{99999999999}"), ["too much", "simplify it"]),
        (command("(" * 990 + ")" * 990), ["simplify it"]),
    ],
    ids=["broken", "no group", "another group", "which of two", "overflow", "recursion"],
)
def test_a_pattern_that_finds_nothing(spec: dict[str, Any], words: list[str]) -> None:
    [problem] = check(study(**spec))
    assert problem.field == "trial.metrics.pattern"
    for word in words:
        assert word in problem.message


@pytest.mark.parametrize(
    "spec",
    [
        command("accuracy=(.*)"),
        command("(?P<accuracy>.*)"),
        command("(?P<name>.*)=(?P<value>.*)", BOTH),
        command("(?P<latency>.*)", BOTH),
        command(None),
    ],
    ids=["one group", "named", "name and value", "one of two", "a file"],
)
def test_a_pattern_that_may_find_it(spec: dict[str, Any]) -> None:
    assert check(study(**spec)) == ()


def test_a_study_that_continues_itself() -> None:
    [problem] = check(study(warmStart={"study": "mnist"}))
    assert (problem.field, "itself" in problem.message) == ("warmStart.study", True)
    assert check(study(warmStart={"study": "earlier"})) == ()
