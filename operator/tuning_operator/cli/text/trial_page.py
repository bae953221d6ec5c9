"""All there is to know of a trial, for a terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from tuning_operator.cli.studies import Studies
from tuning_operator.cli.text.curve import curve
from tuning_operator.cli.text.grid import STATE_STYLES, print_pairs
from tuning_operator.cli.text.values import moment, shown, span
from tuning_operator.cli.trials import Trial

LISTED_REPORTS = 8
"""The most reports that are listed instead of drawn."""


def show_trial(console: Console, trial: Trial, study: str, studies: Studies) -> None:
    """Print a trial.

    Args:
        console: where to print.
        trial: the trial.
        study: the name of its study.
        studies: where it is.
    """
    state = Text(trial.state, STATE_STYLES.get(trial.state, ""))
    console.print(Text(f"Trial {trial.number} of {study}: ", "bold") + state)
    print_pairs(console, _facts(trial, study, studies))
    _section(console, "Parameters", trial.record.parameters.items())
    if trial.prune_reason:
        console.print(Text("\nPruned", "bold"))
        console.print(f"  {trial.prune_reason}", markup=False)
    if failure := trial.failure:
        console.print(Text(f"\n{'Failure' if trial.state == 'failed' else 'Stopped'}", "bold"))
        console.print(f"  {failure.category}: {failure.message}", markup=False)
        if failure.remedy:
            console.print(f"  How to fix it: {failure.remedy}", markup=False)
        for line in (failure.traceback or "").rstrip().splitlines():
            console.print(f"  {line}", markup=False)
    _reports(console, trial)
    _section(console, "Constraints", trial.record.constraints.items())
    _section(console, "User attributes", trial.attributes.items())


def _facts(trial: Trial, study: str, studies: Studies) -> Iterator[tuple[str, str]]:
    record = trial.record
    for metric, value in trial.values.items():
        yield metric, shown(value)
    if trial.last_step is not None:
        yield "last report", f"{shown(trial.last_value)} at step {trial.last_step}"
    if trial.seconds is not None and record.started:
        until = f" to {moment(record.finished)}" if record.finished else ""
        yield "duration", f"{span(trial.seconds)} ({moment(record.started)}{until})"
    if record.copied_from:
        copied = record.copied_from
        yield "copied from", f"trial {copied.trial} of {copied.study} (warmStart): it was not run here"
    elif trial.place:
        yield studies.place_of_runs, trial.place
        yield "log", f"{studies.program} logs {study} {trial.number}"
    elif trial.state != "waiting":
        yield studies.place_of_runs, "not created yet" if trial.state == "running" else "deleted"


def _reports(console: Console, trial: Trial) -> None:
    reported = sorted(trial.record.reported.items())
    if not reported:
        return
    console.print(Text(f"\nReports ({len(reported)})", "bold"))
    if len(reported) > LISTED_REPORTS and (lines := curve(trial.record.reported)):
        for line in lines:
            console.print(f"  {line}", markup=False)
    else:
        print_pairs(console, ((f"step {step}", shown(value)) for step, value in reported))


def _section(console: Console, title: str, values: Iterable[tuple[str, Any]]) -> None:
    rows = [(name, shown(value)) for name, value in values]
    if rows:
        console.print(Text(f"\n{title}", "bold"))
        print_pairs(console, rows)
