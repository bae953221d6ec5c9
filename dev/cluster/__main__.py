"""The command line: `python -m dev.cluster`."""

from __future__ import annotations

import enum
import sys
from typing import Annotated

import typer

from dev.cluster.cache import ROOT, lock
from dev.cluster.console import Lacking, console, step
from dev.cluster.control_plane import ControlPlane
from dev.cluster.run import CommandFailed

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Which(enum.StrEnum):
    """The clusters."""

    KIND = "kind"
    CONTROL_PLANE = "control-plane"


Choice = Annotated[
    Which, typer.Argument(help="kind: nodes and pods, in Docker. control-plane: the API alone.")
]


def _cluster(which: Which) -> ControlPlane:
    return ControlPlane(ROOT / "control-plane")


@app.command()
def up(which: Choice = Which.KIND) -> None:
    """Have a cluster that works; nothing to do if there is one."""
    cluster = _cluster(which)
    with lock(which):
        if not cluster.healthy():
            cluster.start()
    console.print(f"[green]up[/]: export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(which: Choice = Which.KIND) -> None:
    """Remove the cluster, with every process and mount of it."""
    with lock(which), step(f"remove the {which} cluster"):
        _cluster(which).remove()


@app.command()
def status(which: Choice = Which.KIND) -> None:
    """Say whether the cluster works; ends with 1 if not."""
    works = _cluster(which).healthy()
    console.print(f"{which}: {'[green]up[/]' if works else '[red]down[/]'}")
    raise typer.Exit(0 if works else 1)


@app.command()
def kubeconfig(which: Choice = Which.KIND) -> None:
    """Print the path of the cluster's kubeconfig, and nothing else."""
    sys.stdout.write(f"{_cluster(which).kubeconfig}\n")


def main() -> None:
    """Run; what the machine lacks is told in one line, without a traceback."""
    try:
        app()
    except (Lacking, CommandFailed) as error:
        console.print(f"[red]{type(error).__name__}[/]: {error}", markup=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
