"""The plugin `kubectl tuning`."""

import contextlib
import inspect
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.best import best
from tuning_operator.cli.commands.change import extend, resume, retry, stop, suspend
from tuning_operator.cli.commands.cluster import apply, dashboard, doctor
from tuning_operator.cli.commands.export import export, report
from tuning_operator.cli.commands.init import init
from tuning_operator.cli.commands.logs import logs
from tuning_operator.cli.commands.options import on_studies
from tuning_operator.cli.commands.plot import plot
from tuning_operator.cli.commands.records import records
from tuning_operator.cli.commands.trials import list_studies, trial, trials
from tuning_operator.cli.commands.validate import validate
from tuning_operator.cli.commands.watch import watch
from tuning_operator.cli.studies import Place, Studies

PROGRAM = "kubectl tuning"

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_studies,
    "trials": trials,
    "trial": trial,
    "watch": watch,
    "logs": logs,
    "best": best,
    "export": export,
    "report": report,
    "plot": plot,
    "suspend": suspend,
    "resume": resume,
    "extend": extend,
    "stop": stop,
    "retry": retry,
}
"""The commands for studies of any place, in the order of the help."""


def make_app(program: str, summary: str, *, of_cluster: bool) -> typer.Typer:
    """Return an app with the commands for studies of any place.

    Its context's object has to be a function that returns the studies of a Place.

    Args:
        program: the name of the command, for its help.
        summary: the first line of its help.
        of_cluster: whether its studies are those of a cluster, and commands have options that say where.
    """
    app = typer.Typer(
        name=program,
        no_args_is_help=True,
        add_completion=" " not in program,  # for a plugin, completion is kubectl's
        pretty_exceptions_enable=False,
        help=f"{summary}\n\n{EXIT_CODES}",
    )
    for name, command in COMMANDS.items():
        add_command(app, on_studies(command, of_cluster=of_cluster), name)
    add_command(app, validate)
    add_command(app, init)
    return app


def add_command(app: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Add a command whose docstring may end with examples, in which `{program}` stands for the app's name."""
    description, _, examples = inspect.cleandoc(command.__doc__ or "").partition("\n\nExamples:")
    shown = f"Examples:{examples.replace('{program}', str(app.info.name))}" if examples else None
    app.command(name, help=description, epilog=shown)(command)


EXIT_CODES = (
    "Exit codes: 0 success, 1 rejected or failed, 2 wrong arguments, 3 not found, 4 permission denied, "
    "5 cluster or study server unreachable."
)

app = make_app(
    PROGRAM,
    "Tune models on Kubernetes: create studies, follow their trials, use their results.",
    of_cluster=True,
)
for command in (apply, records, doctor, dashboard):
    add_command(app, on_studies(command))


def connect_cluster(place: Place) -> Studies:
    """Return the studies of a cluster."""
    from tuning_operator.cli.cluster.kubectl import Kubectl
    from tuning_operator.cli.cluster.studies import ClusterStudies

    return ClusterStudies(Kubectl(place.namespace, place.context, place.kubeconfig))


def main() -> None:
    """Run the plugin."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        app(prog_name=PROGRAM, obj=connect_cluster)
    except PluginError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.code)


def _exit(number: int, _: object) -> None:
    """Exit as after an error, so that no kubectl keeps forwarding a port."""
    sys.exit(128 + number)


def complete() -> None:
    """Print completions of `kubectl tuning` as kubectl asks for them: the program kubectl_complete-tuning."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()
    words = ["kubectl-tuning", *sys.argv[1:]]
    os.environ |= {
        "_KUBECTL_TUNING_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words[:-1]) + f" {words[-1]}",
        "COMP_CWORD": str(len(words) - 1),
    }
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit):
        app(prog_name="kubectl-tuning", obj=connect_cluster)
    completions = found.getvalue().strip()
    # 4: nothing else. 0: the shell completes names of files.
    typer.echo(f"{completions}\n:4" if completions else ":0")
