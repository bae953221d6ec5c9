"""The public base images that ours are built from and run beside, made from Debian where none can be pulled.

A stand-in has the public image's name and its conventions, so Dockerfiles and charts are the same everywhere.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dev.cluster import engine
from dev.cluster.cache import digest
from dev.cluster.console import step
from dev.cluster.debian import root_tar
from dev.cluster.run import run, succeeds

HERE = Path(__file__).parent / "images"
SUITE = "trixie"

PYTHON = "python:3.13-slim"
POSTGRES = "postgres:17"

PACKAGES = {
    PYTHON: ["ca-certificates", "python3", "python3-venv", "python3-pip"],
    POSTGRES: ["postgresql-17"],
}


def ensure(name: str) -> None:
    """Have the image in the engine: there already, pulled, or made."""
    if engine.image_id(name):
        return
    with step(f"pull {name}"):
        pulled = succeeds("timeout", "120", "docker", "pull", "--quiet", name)
    if not pulled:
        _make(name)


def _make(name: str) -> None:
    short = name.partition(":")[0]
    tree = root_tar(short, SUITE, PACKAGES[name])
    recipe = HERE / short
    with step(f"make {name}, which can't be pulled here"), tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "root.tar").hardlink_to(tree) if _same_disk(tree, context) else (
            context / "root.tar"
        ).symlink_to(tree)
        for file in recipe.iterdir():
            (context / file.name).write_bytes(file.read_bytes())
        key = digest(*sorted(recipe.iterdir()))
        run("docker", "build", "--quiet", f"--label=tuning.dev/recipe={key}", "--tag", name, context,
            env={"DOCKER_BUILDKIT": "0"})  # fmt: skip


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
