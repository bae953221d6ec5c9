"""Stand-ins for public images, built from Debian packages, Go modules and Python packages.

A stand-in has the public image's name and conventions, so the same Dockerfiles and charts work with both.
"""

from __future__ import annotations

import platform
from pathlib import Path

from dev.cluster import engine
from dev.cluster.bare.archive import ARCHITECTURE
from dev.cluster.bare.debian import build_context, root_tar
from dev.cluster.cache import digest
from dev.cluster.console import RequirementError, step
from dev.cluster.host_settings import base_with_settings
from dev.cluster.programs import MODULES, program
from dev.cluster.run import run

RECIPES = Path(__file__).parent / "images"
SUITE = "trixie"
LABEL = "tuning.dev/recipe"

PACKAGES = {
    "python:3.13-slim": ["ca-certificates", "python3", "python3-venv", "python3-pip"],
    "postgres:17": ["postgresql-17"],
    "ghcr.io/cloudnative-pg/postgresql:17-minimal-trixie": ["postgresql-17"],
    "ghcr.io/cloudnative-pg/plugin-barman-cloud-sidecar:v0.14.0": ["barman-cli-cloud"],
}
"""Debian packages of the same versions, by the name of the public image."""

PROGRAMS = {
    "ghcr.io/cloudnative-pg/cloudnative-pg:1.30.0": "cloudnative-pg",
    "ghcr.io/cloudnative-pg/plugin-barman-cloud:v0.14.0": "plugin-barman-cloud",
    "ghcr.io/cloudnative-pg/plugin-barman-cloud-sidecar:v0.14.0": "plugin-barman-cloud",
    "ghcr.io/versity/versitygw:v1.8.0": "versitygw",
}
"""Programs of Go modules, by the name of the public image."""

BASES = {"ghcr.io/optuna/optuna-dashboard:v0.21.0": "python:3.13-slim"}
"""Base images of stand-ins made of Python packages (requirements.txt), by the name of the public image."""


def is_outdated(name: str) -> bool:
    """Return whether the engine's image is a stand-in whose recipe has changed since it was built."""
    label = run("docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name)
    return label.strip() not in {"", "<no value>"} and label.strip() != recipe_key(name)


def recipe_key(name: str) -> str:
    """Return the hash of the recipe: packages, program, base image and files."""
    version = MODULES[PROGRAMS[name]] if name in PROGRAMS else ()
    base = [recipe_key(BASES[name])] if name in BASES else []
    return digest(SUITE, *PACKAGES.get(name, ()), *version, *base, *sorted(recipe(name).iterdir()))


def recipe(name: str) -> Path:
    """Return the folder with the stand-in's Dockerfile."""
    return RECIPES / name.partition(":")[0].rpartition("/")[2]


def build(name: str) -> None:
    """Build a stand-in. If it has a base image, the engine must have that one.

    Raises:
        RequirementError: there is no recipe for the image.
    """
    if name not in PACKAGES | PROGRAMS | BASES:
        raise RequirementError(
            f"{name} can't be pulled, and it has no stand-in. Give this machine access to an image registry."
        )
    contents = {}
    if name in PACKAGES:
        contents["root.tar"] = root_tar(recipe(name).name, SUITE, PACKAGES[name])
    if name in PROGRAMS:
        contents["program"] = program(PROGRAMS[name])
    options = [f"--build-arg=ARCHITECTURE={ARCHITECTURE[platform.machine()]}"]
    if name in BASES:
        options += ["--network=host", f"--build-arg=BASE_IMAGE={base_with_settings(BASES[name])}"]
    with step(f"build a stand-in for {name}"), build_context(recipe(name), contents) as context:
        label = f"--label={LABEL}={recipe_key(name)}"
        engine.build("--quiet", *options, label, "--tag", name, context)
