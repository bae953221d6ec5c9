"""Builds the project's images, loads them into the development cluster and installs the chart."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
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


def up(*, trainer: bool = True) -> None:
    """Start the cluster and install the images and the chart of the working tree.

    Args:
        trainer: whether to include the trainer image, which takes minutes to build and load.

    Raises:
        RequirementError: this machine can't run the cluster; the message says what is missing.
        CommandError: a step failed.
    """
    ours = [OPERATOR, *([TRAINER] if trainer else [])]
    with ThreadPoolExecutor() as pool:  # images download while the cluster's programs compile
        cluster = pool.submit(kind.up)
        built = pool.submit(_build_images, ours)
        cluster.result()
        built.result()
    for image in (images.POSTGRES, images.PYTHON, *ours):
        kind.load(f"tuning-operator:{operator_tag()}" if image == OPERATOR else image)
    install()


def _build_images(ours: list[str]) -> None:
    for image in ours:
        images.build(image, DOCKERFILES[image], ROOT)
    for image in (images.POSTGRES, images.PYTHON):
        images.ensure(image)


def operator_tag() -> str:
    """Tag the operator's image with its ID, so that an upgrade restarts pods only if the image changed."""
    identity = (engine.image_id(OPERATOR) or "").removeprefix("sha256:")[:12]
    run("docker", "tag", OPERATOR, f"{OPERATOR}-{identity}")
    return f"dev-{identity}"


def install(*settings: str) -> None:
    """Install or upgrade the chart and wait until it is ready; `settings` are those of `helm --set`."""
    with step("install the chart"):
        _remove_interrupted_release()
        images = f"image.tag={operator_tag()},trainer.image.tag={TRAINER.rpartition(':')[2]}"
        values = f"--set={','.join([images, *settings])}"
        _helm("upgrade", RELEASE, CHART, values, "--install", "--create-namespace", "--wait", "--timeout=5m")


def roll_back() -> None:
    """Return to the release before the last one."""
    _helm("rollback", RELEASE, "--wait")


def uninstall() -> None:
    """Uninstall the chart; studies and their database are kept."""
    _helm("uninstall", RELEASE, "--wait")


def _remove_interrupted_release() -> None:
    """Uninstall a release whose installation was interrupted: Helm can't upgrade it. Studies are kept."""
    try:
        status = json.loads(_helm("status", RELEASE, "--output=json"))["info"]["status"]
    except CommandError:
        return
    if status.startswith("pending") or status == "uninstalling":
        uninstall()


def _helm(*arguments: str | Path) -> str:
    return run(helm(), *arguments, "--namespace", NAMESPACE, "--kubeconfig", kind.KUBECONFIG)
