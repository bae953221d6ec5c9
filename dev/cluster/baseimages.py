"""The public images that ours are built from and run beside, made from Debian where they can't be pulled.

A stand-in has the public image's name and its conventions, so Dockerfiles and charts are the same everywhere.
"""

from __future__ import annotations

from pathlib import Path

from dev.cluster import engine
from dev.cluster.cache import digest, lock
from dev.cluster.console import LackingError, step
from dev.cluster.debian import build_context, root_tar
from dev.cluster.run import run

RECIPES = Path(__file__).parent / "images"
SUITE = "trixie"
LABEL = "tuning.dev/recipe"

PYTHON = "python:3.13-slim"
POSTGRES = "postgres:17"

PACKAGES = {
    PYTHON: ["ca-certificates", "python3", "python3-venv", "python3-pip"],
    POSTGRES: ["postgresql-17"],
}
"""Debian's packages of the same versions, by the public image's name."""


def ensure(name: str) -> None:
    """Have the image in the engine: there already, pulled, or made.

    Raises:
        LackingError: it can't be pulled, and there is no recipe for it.
    """
    with lock(f"image-{name.replace('/', '-')}"):
        if _is_current(name):
            return
        with step(f"pull {name}"):
            pulled = engine.pull(name, seconds=120)
        if not pulled:
            _make(name)


def _is_current(name: str) -> bool:
    """Say whether the engine has the public image, or our stand-in as it is made today."""
    if engine.image_id(name) is None:
        return False
    labels = run(
        "docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name
    ).strip()
    return labels in {"", "<no value>"} or labels == recipe_key(name)


def recipe_key(name: str) -> str:
    """Return what identifies the stand-in's content: its packages' names and its recipe."""
    return digest(SUITE, *PACKAGES[name], *sorted((RECIPES / _short(name)).iterdir()))


def _make(name: str) -> None:
    if name not in PACKAGES:
        raise LackingError(
            f"{name} can't be pulled, and there is no recipe for it: give the machine a registry."
        )
    tree = root_tar(_short(name), SUITE, PACKAGES[name])
    with (
        step(f"make {name}, which can't be pulled here"),
        build_context(tree, RECIPES / _short(name)) as context,
    ):
        engine.build("--quiet", f"--label={LABEL}={recipe_key(name)}", "--tag", name, context)


def _short(name: str) -> str:
    return name.partition(":")[0]
