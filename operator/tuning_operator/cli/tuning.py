"""The command `tuning`: studies on this machine, with the same commands as for those of a cluster."""

import os
import sys

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.local.run import rm, run
from tuning_operator.cli.plugin import add_command, make_app
from tuning_operator.cli.studies import Place, Studies
from tuning_operator.local import LocalError

app = make_app(
    "tuning",
    "Tune models on this machine: run studies, follow their trials, use their results.",
    of_cluster=False,
)
for command in (run, rm):
    add_command(app, command)


def connect_local(_: Place) -> Studies:
    """Return the studies on this machine."""
    from tuning_operator.cli.local.studies import LocalStudies
    from tuning_operator.local.home import home

    return LocalStudies(home(None, os.environ))


def main() -> None:
    """Run the command."""
    try:
        app(prog_name="tuning", obj=connect_local)
    except (PluginError, LocalError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.code if isinstance(error, PluginError) else PluginError.code)
