"""The command `best`."""

import shlex
from enum import StrEnum
from typing import Annotated, Any

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.options import Study, print_data
from tuning_operator.cli.studies import Resource, Studies, metrics_of
from tuning_operator.cli.text import status_text


class Output(StrEnum):
    """A machine-readable output format."""

    json = "json"
    yaml = "yaml"
    env = "env"
    args = "args"


def best(
    studies: Studies,
    study: Study,
    output: Annotated[
        Output | None,
        typer.Option(
            "--output",
            "-o",
            help="Output format. env: the environment variables that a trial gets; args: --NAME=VALUE.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="With several objectives: only the trial with the best value of this metric."),
    ] = None,
) -> None:
    """Show the best trial, or the Pareto front of a study with several objectives.

    Examples:

        {program} best mnist

        eval "python train.py $({program} best mnist -o args)"

        (set -a; eval "$({program} best mnist -o env)"; ./train.sh)

        {program} best mnist -o json | jq .parameters.lr
    """
    found = studies.get(study)
    trials = status_text.best_of(found)
    if trials is None:
        raise PluginError(status_text.missing_best(found))
    if metric is not None and isinstance(trials, list):
        trials = _best_in(found, trials, metric)
    if refit := status_text.failed_refit(found):
        typer.echo(f"{refit}\nIts log: {studies.program} logs {study} refit", err=True)
    if output is None:
        from tuning_operator.cli.text.tables import show_best

        show_best(found, trials, studies.program)
    elif output in (Output.json, Output.yaml):
        print_data(trials, output)
    elif isinstance(trials, list):
        raise PluginError(
            f"-o {output} shows the parameters of one trial, and the study has a Pareto front: choose the "
            f"trial with --metric {' or --metric '.join(metrics_of(found))}"
        )
    else:
        typer.echo(_as_arguments(trials["parameters"], output))


def _best_in(study: Resource, front: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    directions = {o["metric"]: o["direction"] for o in study["spec"]["objectives"]}
    if metric not in directions:
        raise PluginError(f"--metric {metric}: use one of {', '.join(directions)}")
    choose = max if directions[metric] == "maximize" else min
    return choose(front, key=lambda trial: float(trial["values"][metric]))


def _as_arguments(parameters: dict[str, Any], output: Output) -> str:
    """Return the parameters as a trial's program gets them, quoted for a shell."""
    from tuning_trainer.failure import TrialFailure
    from tuning_trainer.modes.parameters import as_text, variables

    if output is Output.args:
        return " ".join(shlex.quote(f"--{name}={as_text(value)}") for name, value in parameters.items())
    try:
        found = variables(parameters)
    except TrialFailure as failure:
        raise PluginError(str(failure)) from None
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in found.items())
