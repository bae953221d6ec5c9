"""Builds the project's images, loads them into the development cluster and installs the chart."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dev.cluster import engine, images, kind
from dev.cluster.console import step
from dev.cluster.programs import helm
from dev.cluster.run import CommandError, run

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tuning-operator"
NAMESPACE = "tuning-system"
RELEASE = "tuning-operator"
OPERATOR = "tuning-operator:dev"
TRAINER = "tuning-trainer:dev"
DOCKERFILES = {
    OPERATOR: ROOT / "operator" / "Dockerfile",
    TRAINER: ROOT / "trainer-image" / "Dockerfile",
}


def up(cluster: kind.Cluster = kind.DEVELOPMENT, *settings: str, trainer: bool = True) -> None:
    """Start the cluster and install the images and the chart of the working tree.

    Args:
        settings: those of `helm --set`.
        trainer: whether to include the trainer image, which takes minutes to build and load.

    Raises:
        RequirementError: this machine can't run the cluster; the message says what is missing.
        CommandError: a step failed.
    """
    small = [OPERATOR, images.POSTGRES, images.PYTHON]
    with ThreadPoolExecutor(max_workers=6) as pool:  # all that does not depend on each other
        started = pool.submit(cluster.up)
        tools = pool.submit(_helm_after, started)
        first = [pool.submit(_provide, image, cluster, [started]) for image in small]
        last = [pool.submit(_provide, TRAINER, cluster, [started, *first])] if trainer else []
        for needed in (started, tools, *first):
            needed.result()
        install(*settings, cluster=cluster)
        for needed in last:
            needed.result()


def _helm_after(started: Future[None]) -> None:
    """Provide Helm; where the cluster's programs are built from source, it is built with them."""
    started.result()
    helm()


def _provide(image: str, cluster: kind.Cluster, before: list[Future[None]]) -> None:
    """Build or pull an image, and load it into the nodes after the others."""
    if image in DOCKERFILES:
        images.build(image, DOCKERFILES[image], ROOT)
    else:
        images.ensure(image)
    for other in before:
        other.result()
    cluster.load(f"tuning-operator:{operator_tag()}" if image == OPERATOR else image)


def operator_tag() -> str:
    """Tag the operator's image with its ID, so that an upgrade restarts pods only if the image changed."""
    identity = (engine.image_id(OPERATOR) or "").removeprefix("sha256:")[:12]
    run("docker", "tag", OPERATOR, f"{OPERATOR}-{identity}")
    return f"dev-{identity}"


def install(*settings: str, cluster: kind.Cluster = kind.DEVELOPMENT) -> None:
    """Install or upgrade the chart and wait until it is ready; `settings` are those of `helm --set`."""
    with step("install the chart"):
        _remove_interrupted_release(cluster)
        images = f"image.tag={operator_tag()},trainer.image.tag={TRAINER.rpartition(':')[2]}"
        values = f"--set={','.join([images, *settings])}"
        options = ("--install", "--create-namespace", "--wait", "--timeout=15m")
        _helm(cluster, "upgrade", RELEASE, CHART, values, *options)


def roll_back() -> None:
    """Return to the release before the last one."""
    _helm(kind.DEVELOPMENT, "rollback", RELEASE, "--wait")


def uninstall(cluster: kind.Cluster = kind.DEVELOPMENT) -> None:
    """Uninstall the chart; studies and their database are kept."""
    _helm(cluster, "uninstall", RELEASE, "--wait")


def _remove_interrupted_release(cluster: kind.Cluster) -> None:
    """Uninstall a release whose installation was interrupted: Helm can't upgrade it. Studies are kept."""
    try:
        status = json.loads(_helm(cluster, "status", RELEASE, "--output=json"))["info"]["status"]
    except CommandError:
        return
    if status.startswith("pending") or status == "uninstalling":
        uninstall(cluster)


def _helm(cluster: kind.Cluster, *arguments: str | Path) -> str:
    return run(helm(), *arguments, "--namespace", NAMESPACE, "--kubeconfig", cluster.kubeconfig)
