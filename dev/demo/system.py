"""The project on the development cluster: its images built and loaded, its chart installed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dev.cluster import baseimages, engine, kind
from dev.cluster.build import build_image
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
    """Have the cluster, and in it the images and the chart as they are in the working tree.

    Without `trainer` the large image to train in is left out: its build and loading take minutes.

    Raises:
        LackingError: the machine can't run it; the message says what is missing.
        CommandError: a step failed.
    """
    ours = [OPERATOR, *([TRAINER] if trainer else [])]
    with ThreadPoolExecutor() as side_by_side:  # one waits for downloads where the other compiles
        cluster = side_by_side.submit(kind.up)
        images = side_by_side.submit(_have_images, ours)
        cluster.result()
        images.result()
    for image in (baseimages.POSTGRES, baseimages.PYTHON, *ours):
        kind.load(f"tuning-operator:{operator_tag()}" if image == OPERATOR else image)
    install()


def _have_images(ours: list[str]) -> None:
    for image in ours:
        build_image(image, DOCKERFILES[image], ROOT)
    for image in (baseimages.POSTGRES, baseimages.PYTHON):
        baseimages.ensure(image)


def operator_tag() -> str:
    """Tag the operator's image by its content, so that an upgrade restarts pods only when it changed."""
    number = (engine.image_id(OPERATOR) or "").removeprefix("sha256:")[:12]
    run("docker", "tag", OPERATOR, f"{OPERATOR}-{number}")
    return f"dev-{number}"


def install() -> None:
    """Install or upgrade the chart, and wait until all of it is ready."""
    with step("install the chart"):
        _clear_interrupted()
        values = f"--set=image.tag={operator_tag()}"
        _helm("upgrade", RELEASE, CHART, values, "--install", "--create-namespace", "--wait", "--timeout=5m")


def _clear_interrupted() -> None:
    """An installation that was killed half-way blocks the next one; studies outlive its removal."""
    try:
        status = json.loads(_helm("status", RELEASE, "--output=json"))["info"]["status"]
    except CommandError:
        return
    if status.startswith("pending") or status == "uninstalling":
        _helm("uninstall", RELEASE, "--wait")


def _helm(*arguments: str | Path) -> str:
    return run(helm(), *arguments, "--namespace", NAMESPACE, "--kubeconfig", kind.KUBECONFIG)
