"""What the demo shows of a study: a table of its trials, a status line and the result. Without I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from datetime import datetime

    from optuna.trial import FrozenTrial

STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
    TrialState.WAITING: "dim",
}


def live(study: dict[str, Any], trials: list[FrozenTrial], now: datetime) -> Group:
    """Return the current view of a study; `now` is naive UTC, like the times that Optuna records."""
    return Group(table(study, trials, now), Text(summary(study), style="bold"), *warnings(study))


def table(study: dict[str, Any], trials: list[FrozenTrial], now: datetime) -> Table:
    """Return a table with one row per trial."""
    parameters = [parameter["name"] for parameter in study["spec"].get("searchSpace", [])]
    shown = Table(title=f"trials of {study['metadata']['name']}", title_justify="left", header_style="bold")
    shown.add_column("trial", justify="right")
    shown.add_column("state")
    for name in [*parameters, "reports", study["spec"]["objectives"][0]["metric"], "time"]:
        shown.add_column(name, justify="right")
    for trial in trials:
        values = [number(trial.params.get(name)) for name in parameters]
        state = Text(trial.state.name, STYLES[trial.state])
        shown.add_row(
            str(trial.number),
            state,
            *values,
            str(len(trial.intermediate_values)),
            number(latest(trial)),
            time(trial, now),
        )
    return shown


def latest(trial: FrozenTrial) -> float | None:
    """Return the trial's value, or the last one that it reported."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def number(value: Any) -> str:
    """Format a float with four digits; other values as they are."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def time(trial: FrozenTrial, now: datetime) -> str:
    """Return the trial's duration so far."""
    if trial.datetime_start is None:
        return ""
    return f"{max(0, ((trial.datetime_complete or now) - trial.datetime_start).total_seconds()):.1f} s"


def summary(study: dict[str, Any]) -> str:
    """Return the study's status in one line."""
    status = study.get("status", {})
    counts = status.get("trials", {})
    best = status.get("best")
    words = [
        status.get("phase", "Pending"),
        f"{status.get('progress', '0/' + str(study['spec']['maxTrials']))} finished",
        *(f"{counts.get(state, 0)} {state}" for state in ("running", "pruned", "failed")),
        *([f"best {number(best['values'][0])} (trial {best['number']})"] if best else []),
    ]
    return " · ".join(words)


def warnings(study: dict[str, Any]) -> list[Text]:
    """Return the messages of conditions that report a problem."""
    conditions = study.get("status", {}).get("conditions", [])
    bad = {("Accepted", "False"), ("Stalled", "True"), ("Failed", "True")}
    return [
        Text(f"{condition['reason']}: {condition['message']}", style="bold red")
        for condition in conditions
        if (condition["type"], condition["status"]) in bad
    ]


def line(trial: FrozenTrial) -> str:
    """Return a finished trial in one line, for output that is not a terminal."""
    parameters = ", ".join(f"{name}={number(value)}" for name, value in trial.params.items())
    reached = f"{number(latest(trial))} after {len(trial.intermediate_values)} reports"
    return f"trial {trial.number} {trial.state.name} at {reached}: {parameters}"


def ending(study: dict[str, Any]) -> Panel:
    """Return the result and commands to try next."""
    name, status = study["metadata"]["name"], study["status"]
    best, counts = status["best"], status["trials"]
    metric = study["spec"]["objectives"][0]["metric"]
    more = json.dumps({"spec": {"maxTrials": study["spec"]["maxTrials"] * 2}}, separators=(",", ":"))
    parameters = "\n".join(f"  {key} = {number(value)}" for key, value in best["parameters"].items())
    text = f"""\
[bold green]best {metric} {number(best["values"][0])}[/], trial {best["number"]}:
{parameters}
{counts["complete"]} complete, [yellow]{counts["pruned"]} pruned[/], {counts["failed"]} failed.

[bold]Next:[/]
  export KUBECONFIG=$(make -s kubeconfig)
  kubectl get tuningstudies
  kubectl describe tuningstudy {name}
  kubectl logs job/{name}-{best["number"]}
  kubectl patch tuningstudy {name} --type merge -p '{more}'
  kubectl explain tuningstudy.spec
  make demo-down"""
    return Panel(text, title=f"{name}: {status['phase']}", title_align="left", expand=False)
