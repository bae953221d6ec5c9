"""Stand-ins for public images, built from Debian packages.

A stand-in has the public image's name and conventions, so the same Dockerfiles and charts work with both.
"""

from __future__ import annotations

from pathlib import Path

from dev.cluster import engine
from dev.cluster.bare.debian import build_context, root_tar
from dev.cluster.cache import digest
from dev.cluster.console import RequirementError, step
from dev.cluster.run import run

RECIPES = Path(__file__).parent / "images"
SUITE = "trixie"
LABEL = "tuning.dev/recipe"

PACKAGES = {
    "python:3.13-slim": ["ca-certificates", "python3", "python3-venv", "python3-pip"],
    "postgres:17": ["postgresql-17"],
}
"""Debian packages of the same versions, by the name of the public image."""


def is_outdated(name: str) -> bool:
    """Return whether the engine's image is a stand-in whose recipe has changed since it was built."""
    label = run("docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name)
    return label.strip() not in {"", "<no value>"} and label.strip() != recipe_key(name)


def recipe_key(name: str) -> str:
    """Return the hash of the recipe: packages and files."""
    return digest(SUITE, *PACKAGES[name], *sorted(recipe(name).iterdir()))


def recipe(name: str) -> Path:
    """Return the folder with the stand-in's Dockerfile."""
    return RECIPES / name.partition(":")[0]


def build(name: str) -> None:
    """Build a stand-in.

    Raises:
        RequirementError: there is no recipe for the image.
    """
    if name not in PACKAGES:
        raise RequirementError(
            f"{name} can't be pulled, and it has no stand-in. Give this machine access to an image registry."
        )
    tree = root_tar(name.partition(":")[0], SUITE, PACKAGES[name])
    with step(f"build a stand-in for {name}"), build_context(recipe(name), {"root.tar": tree}) as context:
        engine.build("--quiet", f"--label={LABEL}={recipe_key(name)}", "--tag", name, context)
