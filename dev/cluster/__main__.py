"""Kubernetes clusters for the demo and the tests. Your own kubeconfig is never changed."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dev.cluster import images, kind, programs
from dev.cluster.cache import ROOT
from dev.cluster.console import RequirementError, console, step
from dev.cluster.control_plane import ControlPlane
from dev.cluster.run import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Kind(enum.StrEnum):
    """The kinds of clusters."""

    KIND = "kind"
    THREE_NODES = "three-nodes"
    CONTROL_PLANE = "control-plane"


class Tool(enum.StrEnum):
    """The client tools."""

    KUBECTL = "kubectl"
    HELM = "helm"
    KIND = "kind"


@dataclass(frozen=True)
class Cluster:
    """The operations that all kinds of clusters have."""

    up: Callable[[], None]
    down: Callable[[], None]
    healthy: Callable[[], bool]
    kubeconfig: Path


Choice = Annotated[
    Kind,
    typer.Argument(
        help="kind: one node in Docker that runs pods. three-nodes: a kind cluster with three of them. "
        "control-plane: an API server without nodes."
    ),
]


def _cluster(which: Kind) -> Cluster:
    if which is Kind.KIND:
        ours = kind.DEVELOPMENT
        return Cluster(ours.up, kind.down, ours.healthy, ours.kubeconfig)
    if which is Kind.THREE_NODES:
        ours = kind.THREE_NODES
        return Cluster(ours.up, ours.remove, ours.healthy, ours.kubeconfig)
    plane = ControlPlane(ROOT / "control-plane")
    return Cluster(plane.ensure, plane.remove, plane.healthy, plane.kubeconfig)


@app.command()
def up(which: Choice = Kind.KIND) -> None:
    """Start the cluster unless it is already running."""
    cluster = _cluster(which)
    cluster.up()
    console.print(f"[green]up[/]: export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)


@app.command()
def down(which: Choice = Kind.KIND) -> None:
    """Remove the cluster with its processes and mounts. Built programs and images stay in the cache."""
    with step(f"remove the {which} cluster"):
        _cluster(which).down()


@app.command()
def status(which: Choice = Kind.KIND) -> None:
    """Show whether the cluster is up. The exit code is 1 if it isn't."""
    healthy = _cluster(which).healthy()
    console.print(f"{which}: {'[green]up[/]' if healthy else '[red]down[/]'}")
    raise typer.Exit(0 if healthy else 1)


@app.command()
def kubeconfig(which: Choice = Kind.KIND) -> None:
    """Print the path of the cluster's kubeconfig."""
    sys.stdout.write(f"{_cluster(which).kubeconfig}\n")


@app.command()
def load_image(names: Annotated[list[str], typer.Argument(metavar="IMAGES", show_default=False)]) -> None:
    """Load images from the Docker engine into kind's node. Images that the node already has are skipped."""
    for name in names:
        kind.DEVELOPMENT.load(name)


@app.command()
def build_image(
    image: Annotated[str, typer.Argument(help="Name and tag of the image.")],
    dockerfile: Annotated[Path, typer.Option("--file", "-f", exists=True, help="Path of the Dockerfile.")],
    context: Annotated[Path, typer.Argument(exists=True, help="Build context.")] = Path(),
) -> None:
    """Build an image. Works without access to an image registry and behind a private package index."""
    images.build(image, dockerfile, context)


@app.command()
def tool(name: Tool) -> None:
    """Print the path of a client tool, from your PATH if it is there, otherwise built from source."""
    paths: dict[Tool, Callable[[], Path]] = {
        Tool.KUBECTL: programs.kubectl,
        Tool.HELM: programs.helm,
        Tool.KIND: programs.kind,
    }
    path = paths[name]()
    sys.stdout.write(f"{path}\n")


def main() -> None:
    """Run the command line; expected errors are printed without a traceback."""
    try:
        app()
    except (RequirementError, CommandError) as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
