"""The view of the demo, from a study as the API server returns it and trials as Optuna returns them."""

import io
from datetime import datetime, timedelta
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console, RenderableType

from dev.demo import view

NOON = datetime(2026, 1, 1, 12)
STUDY: dict[str, Any] = {
    "metadata": {"name": "mnist"},
    "spec": {
        "objectives": [{"metric": "accuracy", "direction": "maximize"}],
        "searchSpace": [{"name": "lr", "type": "float", "low": 0, "high": 1}],
        "maxTrials": 20,
    },
}
DONE: dict[str, Any] = {
    "phase": "Completed",
    "progress": "20/20",
    "trials": {"total": 20, "running": 0, "complete": 12, "pruned": 7, "failed": 1},
    "best": {"number": 6, "values": [0.98222], "parameters": {"lr": 0.0213683}},
}


def trial(state: TrialState, value: float | None = None, reports: int = 0) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params={"lr": 0.0213683},
        distributions={"lr": FloatDistribution(0, 1)},
        intermediate_values={step: 0.5 + step / 100 for step in range(reports)},
    )
    made.number = 6
    made.datetime_start = NOON - timedelta(seconds=9.25)
    made.datetime_complete = NOON if state.is_finished() else None
    return made


def shown(what: RenderableType) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


@pytest.mark.parametrize(
    ("trial", "cells"),
    [
        (trial(TrialState.COMPLETE, 0.98222, 20), ["6", "COMPLETE", "0.02137", "20", "0.9822", "9.2 s"]),
        (trial(TrialState.PRUNED, reports=4), ["6", "PRUNED", "0.02137", "4", "0.53", "9.2 s"]),
        (trial(TrialState.RUNNING), ["6", "RUNNING", "0.02137", "0", "", "9.2 s"]),
    ],
    ids=lambda value: value.state.name if isinstance(value, FrozenTrial) else "",
)
def test_each_trial_is_a_row(trial: FrozenTrial, cells: list[str]) -> None:
    (row,) = [
        line for line in shown(view.live(STUDY, [trial], NOON)).splitlines() if trial.state.name in line
    ]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == cells


def test_summary_before_the_first_status_and_at_the_end() -> None:
    assert view.summary(STUDY) == "Pending · 0/20 finished · 0 running · 0 pruned · 0 failed"
    done = view.summary(STUDY | {"status": DONE})
    assert done == "Completed · 20/20 finished · 0 running · 7 pruned · 1 failed · best 0.9822 (trial 6)"


def test_only_conditions_that_report_a_problem_are_shown() -> None:
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Valid", "message": "The study can run."},
        {
            "type": "Stalled",
            "status": "True",
            "reason": "ImagePull",
            "message": "No image tuning-trainer:dev.",
        },
    ]
    text = shown(view.live(STUDY | {"status": {"conditions": conditions}}, [], NOON))
    assert "ImagePull: No image tuning-trainer:dev." in text
    assert "The study can run." not in text


def test_result_has_the_best_parameters_the_pruned_count_and_commands() -> None:
    text = shown(view.ending(STUDY | {"status": DONE}))
    for word in (
        "best accuracy 0.9822",
        "lr = 0.02137",
        "7 pruned",
        "kubectl logs job/mnist-6",
        "make demo-down",
    ):
        assert word in text
    assert '{"spec":{"maxTrials":40}}' in text


def test_line_of_a_finished_trial() -> None:
    line = view.line(trial(TrialState.PRUNED, reports=4))
    assert line == "trial 6 PRUNED at 0.53 after 4 reports: lr=0.02137"
