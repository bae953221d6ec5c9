"""The command `best`."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.studies import Studies
from tuning_operator.cli.text import status_text


class Output(StrEnum):
    """A machine-readable output format."""

    json = "json"
    yaml = "yaml"


def best(
    studies: Studies,
    study: Study,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Output format.")] = None,
) -> None:
    """Show the best trial, or the Pareto front of a study with several objectives."""
    found = studies.get(study)
    trials = status_text.best_of(found)
    if trials is None:
        raise PluginError(status_text.missing_best(found))
    if output is None:
        from tuning_operator.cli.text.tables import show_best

        show_best(found, trials)
    else:
        typer.echo(_as_text(trials, output).rstrip())


def _as_text(data: Any, output: Output) -> str:
    if output is Output.json:
        return json.dumps(data, indent=2)
    import yaml

    return yaml.safe_dump(data, sort_keys=False)
