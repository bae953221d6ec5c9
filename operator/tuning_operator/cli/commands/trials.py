"""The commands `list`, `trials` and `trial`."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning_operator.cli import NotFoundError, NotPermittedError, PluginError
from tuning_operator.cli.commands.options import Everywhere, Study, TrialNumber, print_data
from tuning_operator.cli.studies import Resource, Run, Studies, metrics_of
from tuning_operator.cli.text import status_text
from tuning_operator.cli.text.values import NOTHING, age, moment, pairs, shown, span

if TYPE_CHECKING:
    from tuning_operator.cli.trials import Trial

FIRST_COLUMNS = ("number", "state")
LAST_COLUMNS = (
    *("started", "finished", "seconds", "last_step", "last_value"),
    *("pod", "copied_from", "reason"),
)
PREFIXES = ("params_", "user_attrs_", "values_")
"""What the other columns of a table of trials begin with."""


class ListOutput(StrEnum):
    """An output format of `list`."""

    wide = "wide"
    json = "json"
    yaml = "yaml"


class TrialsOutput(StrEnum):
    """An output format of `trials`."""

    wide = "wide"
    json = "json"
    yaml = "yaml"
    csv = "csv"


class TrialOutput(StrEnum):
    """An output format of `trial`."""

    json = "json"
    yaml = "yaml"


class State(StrEnum):
    """A state of trials."""

    complete = "complete"
    pruned = "pruned"
    failed = "failed"
    running = "running"
    waiting = "waiting"


def list_studies(
    studies: Studies,
    everywhere: Everywhere = False,
    output: Annotated[ListOutput | None, typer.Option("--output", "-o", help="Output format.")] = None,
) -> None:
    """List studies with their progress and best values.

    Examples:

        {program} list -A

        {program} list -o wide
    """
    found = studies.list_studies(everywhere=everywhere)
    if output in (ListOutput.json, ListOutput.yaml):
        print_data(list(found), output)
    elif not found:
        typer.echo("No studies found.", err=True)
    else:
        _print_studies(found, everywhere=everywhere, wide=output is ListOutput.wide)


def _print_studies(found: Sequence[Resource], *, everywhere: bool, wide: bool) -> None:
    from tuning_operator.cli.text.grid import print_grid

    headers = ["NAME", "PHASE", "FINISHED", "RUNNING", "PRUNED", "FAILED", "BEST", "AGE"]
    rows = [[*_study_cells(study), *(_wide_cells(study) if wide else [])] for study in found]
    headers += ["REFIT", "BLOCKED BY"] if wide else []
    if everywhere:
        headers = ["NAMESPACE", *headers]
        rows = [[study["metadata"]["namespace"], *row] for study, row in zip(found, rows, strict=True)]
    print_grid(headers, rows)


def _study_cells(study: Resource) -> list[str]:
    status, metadata = study.get("status", {}), study["metadata"]
    counts = status.get("trials") or {}
    return [
        metadata["name"],
        status.get("phase") or NOTHING,
        status.get("progress") or f"0/{study['spec']['maxTrials']}",
        *(str(counts.get(kind, 0)) for kind in ("running", "pruned", "failed")),
        status.get("bestValue") or NOTHING,
        age(metadata["creationTimestamp"]),
    ]


def _wide_cells(study: Resource) -> list[str]:
    refit = (study.get("status", {}).get("refit") or {}).get("phase")
    blocking = [condition.split(":")[0] for condition in status_text.blocking_conditions(study)]
    return [refit or NOTHING, ", ".join(blocking) or NOTHING]


def trials(
    studies: Studies,
    study: Study,
    sort: Annotated[
        str,
        typer.Option(
            help="Column to sort by: number, value or a metric (the best first), state, duration, step, "
            "started, or a parameter."
        ),
    ] = "number",
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    state: Annotated[
        list[State] | None, typer.Option(help="Only trials in this state; can be repeated.")
    ] = None,
    output: Annotated[TrialsOutput | None, typer.Option("--output", "-o", help="Output format.")] = None,
) -> None:
    """List the trials of a study with their values and parameters.

    Examples:

        {program} trials mnist --sort value

        {program} trials mnist --state failed -o wide

        {program} trials mnist -o csv > trials.csv
    """
    from tuning_operator.cli.trials import sorted_by, trials_of

    found = studies.get(study)
    with studies.record(found) as reader:
        record = reader.read()
    chosen = sorted_by(trials_of(found, record, _places(studies, found)), found, sort)
    chosen = [trial for trial in chosen if not state or trial.state in state]
    if reverse:
        chosen.reverse()
    if output in (TrialsOutput.json, TrialsOutput.yaml):
        print_data([trial.as_data() for trial in chosen], output)
    elif output is TrialsOutput.csv:
        write_csv(chosen, metrics_of(found))
    elif chosen:
        place = studies.place_of_runs
        _print_trials(chosen, metrics_of(found), place, wide=output is TrialsOutput.wide)
    else:
        which = f"{' or '.join(state)} " if state else ""
        typer.echo(f"No {which}trials.\n{status_text.headline(found)}", err=True)


def _places(studies: Studies, study: Resource) -> Mapping[Run, str]:
    """Return where the trials run; the pods of users who may not list pods stay unknown."""
    try:
        return studies.runs(study)
    except PluginError as error:
        if error.code != NotPermittedError.code:
            raise
        typer.echo(f"note: pods are not shown: no permission to list them ({error})", err=True)
        return {}


def _print_trials(chosen: "Sequence[Trial]", metrics: Sequence[str], place: str, *, wide: bool) -> None:
    from tuning_operator.cli.text.grid import print_grid

    parameters = _parameters(chosen)
    headers = ["TRIAL", "STATE", *metrics, *parameters, "DURATION", "LAST STEP", place.upper()]
    headers += ["STARTED", "REASON", "ATTRIBUTES"] if wide else []
    rows = []
    for trial in chosen:
        values = trial.values
        row = [str(trial.number), trial.state]
        row += [shown(values[metric]) if metric in values else NOTHING for metric in metrics]
        given = trial.record.parameters
        row += [shown(given[name]) if name in given else NOTHING for name in parameters]
        row += [NOTHING if trial.seconds is None else span(trial.seconds), _last_step(trial), _place(trial)]
        if wide:
            started = trial.record.started
            row += [moment(started) if started else NOTHING, trial.reason.partition("\n")[0] or NOTHING]
            row.append(pairs(trial.attributes.items()) or NOTHING)
        rows.append(row)
    print_grid(headers, rows)


def _last_step(trial: "Trial") -> str:
    return NOTHING if trial.last_step is None else f"{trial.last_step} ({shown(trial.last_value)})"


def _place(trial: "Trial") -> str:
    if copied := trial.record.copied_from:
        return f"copy of {copied.study.rpartition('/')[2]} {copied.trial}"
    return trial.place.rpartition("/")[2] if trial.place else NOTHING


def _parameters(chosen: "Sequence[Trial]") -> list[str]:
    return list(dict.fromkeys(name for trial in chosen for name in trial.record.parameters))


def write_csv(chosen: "Sequence[Trial]", metrics: Sequence[str], file: Any = None) -> None:
    """Write trials as CSV, with a column for each metric, parameter and user attribute."""
    writer = csv.writer(file or sys.stdout, lineterminator="\n")
    writer.writerow(_columns(chosen, metrics))
    for row in table_rows(chosen, metrics):
        writer.writerow(map(_csv_cell, row.values()))


def table_rows(chosen: "Sequence[Trial]", metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the trials with all their values by column; what a trial doesn't have is None."""
    columns = _columns(chosen, metrics)
    for trial in chosen:
        record, copied = trial.record, trial.record.copied_from
        row: dict[str, Any] = {"number": trial.number, "state": trial.state}
        row |= {_metric_column(metric): value for metric, value in trial.values.items()}
        row |= {f"params_{name}": _known(value) for name, value in record.parameters.items()}
        row |= {f"user_attrs_{name}": _known(value) for name, value in trial.attributes.items()}
        row |= {"started": record.started, "finished": record.finished, "seconds": trial.seconds}
        row |= {"last_step": trial.last_step, "last_value": trial.last_value, "pod": trial.place}
        row |= {"copied_from": f"{copied.study} {copied.trial}" if copied else None}
        row |= {"reason": trial.reason or None}
        yield {name: row.get(name) for name in columns}


def _columns(chosen: "Sequence[Trial]", metrics: Sequence[str]) -> list[str]:
    attributes = dict.fromkeys(name for trial in chosen for name in trial.attributes)
    prefixed = [f"params_{name}" for name in _parameters(chosen)]
    prefixed += [f"user_attrs_{name}" for name in attributes]
    return [*FIRST_COLUMNS, *map(_metric_column, metrics), *prefixed, *LAST_COLUMNS]


def _metric_column(metric: str) -> str:
    """Return a metric's column: its name, with Optuna's prefix if another column could have that name."""
    fixed = metric in (*FIRST_COLUMNS, *LAST_COLUMNS)
    return f"values_{metric}" if fixed or metric.startswith(PREFIXES) else metric


NULL = "null"
"""What is in a table for a value that is null, unlike one that is not there."""


def _known(value: Any) -> Any:
    """Return a value for a table: what is neither text nor a number is written as in JSON."""
    return value if isinstance(value, str | float | int) else shown(value)


def _csv_cell(value: Any) -> Any:
    """Return a value for CSV: times and booleans as in JSON."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return shown(value) if isinstance(value, bool) else value


def trial(
    studies: Studies,
    study: Study,
    number: TrialNumber,
    output: Annotated[TrialOutput | None, typer.Option("--output", "-o", help="Output format.")] = None,
) -> None:
    """Show everything about a trial: parameters, reports, user attributes, and why it was pruned or failed.

    Examples:

        {program} trial mnist 7

        {program} trial mnist 7 -o json
    """
    found = studies.get(study)
    chosen = find_trial(studies, found, number)
    if output:
        print_data(chosen.as_data(), output)
        return
    from tuning_operator.cli.text.grid import console
    from tuning_operator.cli.text.trial_page import show_trial

    show_trial(console(), chosen, study, studies)


def find_trial(studies: Studies, study: Resource, number: int) -> "Trial":
    """Return a trial of a study. Raises NotFoundError."""
    from tuning_operator.cli.trials import trials_of

    with studies.record(study) as reader:
        record = reader.read(number)
    found = [trial for trial in trials_of(study, record, _places(studies, study)) if trial.number == number]
    if not found:
        raise NotFoundError(
            f"there is no trial {number}\n{status_text.headline(study)}\n"
            f"`{studies.program} trials {study['metadata']['name']}` lists them"
        )
    return found[0]
