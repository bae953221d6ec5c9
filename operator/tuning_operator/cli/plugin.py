"""The plugin `kubectl tuning`."""

import sys

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.best import best
from tuning_operator.cli.commands.init import init
from tuning_operator.cli.commands.options import on_studies
from tuning_operator.cli.commands.plot import plot
from tuning_operator.cli.studies import Place, Studies

app = typer.Typer(
    name="kubectl tuning",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune models on Kubernetes: create a study from a script, show its best trial, plot it.",
)
"""The commands for studies of any place; the context's object returns the studies of a Place."""

for command in (best, plot):
    app.command()(on_studies(command))
app.command()(init)


def connect_cluster(place: Place) -> Studies:
    """Return the studies of a cluster."""
    from tuning_operator.cli.cluster.kubectl import Kubectl
    from tuning_operator.cli.cluster.studies import ClusterStudies

    return ClusterStudies(Kubectl(place.namespace, place.context, place.kubeconfig))


def main() -> None:
    """Run the plugin."""
    try:
        app(prog_name="kubectl tuning", obj=connect_cluster)
    except PluginError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.code)
