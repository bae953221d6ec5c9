"""The command `tuning`: studies of this machine, with the same commands as for those of a cluster."""

import os
import sys
from pathlib import Path

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.best import best
from tuning_operator.cli.commands.init import init
from tuning_operator.cli.commands.options import on_studies
from tuning_operator.cli.commands.plot import plot
from tuning_operator.cli.local.run import HELP, rm, run
from tuning_operator.cli.studies import Place, Studies

app = typer.Typer(
    name="tuning",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tune models on this machine: run a study, show its best trial, plot it.",
)

app.command(help=HELP)(run)
for command in (best, plot):
    app.command()(on_studies(command))
app.command()(rm)
app.command()(init)


def connect_local(_: Place) -> Studies:
    """Return the studies of this machine."""
    from tuning_operator.cli.local.studies import LocalStudies
    from tuning_operator.local.home import HOME, home

    given = os.environ.get(HOME)
    return LocalStudies(home(Path(given) if given else None, os.environ))


def main() -> None:
    """Run the command."""
    try:
        app(prog_name="tuning", obj=connect_local)
    except PluginError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.code)
