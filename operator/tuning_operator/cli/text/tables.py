"""Trials as shown in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from tuning_operator.cli.studies import Resource
from tuning_operator.cli.text import status_text
from tuning_operator.cli.text.grid import console, print_grid, print_pairs
from tuning_operator.cli.text.values import NOTHING, shown

Trial = Mapping[str, Any]


def show_best(study: Resource, trials: Trial | Sequence[Trial], program: str) -> None:
    """Print the best trial, or the Pareto front, below the study's status."""
    out = console()
    out.print(status_text.headline(study), markup=False)
    if isinstance(trials, Mapping):
        _show_trial(out, trials)
    else:
        _show_front(out, study, trials, program)
    refit = study.get("status", {}).get("refit") or {}
    if refit.get("phase") not in (None, "Failed"):
        model = f", model {refit['model']}" if refit.get("model") else ""
        message = f". {refit['message']}" if refit.get("message") else ""
        out.print(f"Refit: {refit['phase']}{model}{message}", markup=False)
    for condition in status_text.blocking_conditions(study):
        out.print(condition, markup=False)


def _show_trial(out: Console, trial: Trial) -> None:
    values = ", ".join(f"{metric} {shown(value)}" for metric, value in trial["values"].items())
    out.print(f"Best trial {trial['number']}: {values}", markup=False)
    print_pairs(out, ((name, shown(value)) for name, value in trial["parameters"].items()))


def _show_front(out: Console, study: Resource, trials: Sequence[Trial], program: str) -> None:
    out.print(f"Pareto front, {len(trials)} {'trial' if len(trials) == 1 else 'trials'}:")
    metrics = list(trials[0]["values"])
    parameters = list(dict.fromkeys(name for trial in trials for name in trial["parameters"]))
    rows = []
    for trial in trials:
        values = [shown(trial["values"][metric]) for metric in metrics]
        given = trial["parameters"]
        values += [shown(given[name]) if name in given else NOTHING for name in parameters]
        rows.append([str(trial["number"]), *values])
    print_grid(["TRIAL", *metrics, *parameters], rows)
    if status_text.front_size(study) > len(trials):
        see_all = f"{program} plot {study['metadata']['name']} --plot pareto-front"
        out.print(f"(showing {len(trials)} trials of the front; to see all: {see_all})", markup=False)
