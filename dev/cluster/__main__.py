"""A real Kubernetes for the demo and the tests. It never touches your own kubeconfig."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dev.cluster import kind, programs
from dev.cluster.build import build_image as build
from dev.cluster.cache import ROOT
from dev.cluster.console import LackingError, console, step
from dev.cluster.control_plane import ControlPlane
from dev.cluster.run import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Which(enum.StrEnum):
    """The clusters."""

    KIND = "kind"
    CONTROL_PLANE = "control-plane"


class Tool(enum.StrEnum):
    """The client programs."""

    KUBECTL = "kubectl"
    HELM = "helm"
    KIND = "kind"


@dataclass(frozen=True)
class Cluster:
    """What can be done with either."""

    up: Callable[[], None]
    down: Callable[[], None]
    healthy: Callable[[], bool]
    kubeconfig: Path


Choice = Annotated[
    Which, typer.Argument(help="kind: a node with pods, in Docker. control-plane: the API alone.")
]


def _cluster(which: Which) -> Cluster:
    if which is Which.KIND:
        return Cluster(kind.up, kind.down, kind.healthy, kind.KUBECONFIG)
    plane = ControlPlane(ROOT / "control-plane")
    return Cluster(plane.ensure, plane.remove, plane.healthy, plane.kubeconfig)


@app.command()
def up(which: Choice = Which.KIND) -> None:
    """Have a cluster that works; nothing to do if there is one."""
    cluster = _cluster(which)
    cluster.up()
    console.print(f"[green]up[/]: export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)


@app.command()
def down(which: Choice = Which.KIND) -> None:
    """Remove the cluster with every process and mount of it; what was built stays in the cache."""
    with step(f"remove the {which} cluster"):
        _cluster(which).down()


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


@app.command()
def load_image(images: list[str]) -> None:
    """Have images of the Docker engine in kind's node; those there already take no time."""
    for image in images:
        kind.load(image)


@app.command()
def build_image(
    image: Annotated[str, typer.Argument(help="The name and tag to build.")],
    dockerfile: Annotated[Path, typer.Option("--file", "-f", exists=True, help="The Dockerfile.")],
    context: Annotated[Path, typer.Argument(exists=True, help="The folder that it copies from.")] = Path(),
) -> None:
    """Build an image, also where its base image can't be pulled or the package index needs settings."""
    build(image, dockerfile, context)


@app.command()
def tool(name: Tool) -> None:
    """Print the path of a client program: the machine's own, else built."""
    paths: dict[Tool, Callable[[], Path]] = {
        Tool.KUBECTL: programs.kubectl,
        Tool.HELM: programs.helm,
        Tool.KIND: programs.kind,
    }
    path = paths[name]()
    sys.stdout.write(f"{path}\n")


def main() -> None:
    """Run; what the machine lacks is told in one line, without a traceback."""
    try:
        app()
    except LackingError as error:
        console.print(f"This machine lacks something: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(1)
    except CommandError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
