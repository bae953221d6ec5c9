"""The project's images, built from their Dockerfiles, and the public images that they need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dev.cluster import engine
from dev.cluster.bare import docker_engine, stand_ins
from dev.cluster.cache import lock
from dev.cluster.console import step
from dev.cluster.host_settings import base_with_settings
from dev.cluster.run import CommandError

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = "python:3.13-slim"
POSTGRES = "postgres:17"
DASHBOARD = "ghcr.io/optuna/optuna-dashboard:v0.21.0"
BASE_ARGUMENT = "BASE_IMAGE"


def build(name: str, dockerfile: Path, context: Path, **arguments: str) -> None:
    """Build an image. Unchanged layers come from the engine's cache.

    Args:
        name: its name and tag.
        dockerfile: its Dockerfile.
        context: the folder that it copies from.
        arguments: build arguments. Without one for the base image, it is the Dockerfile's default, with the
            settings of this machine.

    Raises:
        CommandError: the Dockerfile has no argument for the base image, or the build failed.
    """
    if BASE_ARGUMENT not in arguments:
        base = base_image(dockerfile.read_text())
        ensure(base)
        arguments[BASE_ARGUMENT] = base_with_settings(base)
    given = [f"--build-arg={argument}={value}" for argument, value in arguments.items()]
    before = engine.image_id(name)
    with step(f"build {name}"):
        engine.build("--network=host", *given, f"--file={dockerfile}", f"--tag={name}", context)
    if before and before != engine.image_id(name):
        engine.remove(before)


def base_image(dockerfile: str) -> str:
    """Return the default of the argument that sets a Dockerfile's base image."""
    found = re.search(rf"^ARG {BASE_ARGUMENT}=(\S+)", dockerfile, re.MULTILINE)
    if found is None:
        raise CommandError(f"the Dockerfile has no line `ARG {BASE_ARGUMENT}=...` before its FROM")
    return found[1]


def ensure(name: str) -> None:
    """Pull a public image unless the engine has it; where that fails, build a stand-in.

    Raises:
        RequirementError: no Docker engine can be started, or the image can't be pulled and has no stand-in.
    """
    docker_engine.up()
    with lock(f"image-{name.replace('/', '-')}"):
        if engine.image_id(name) is not None and not stand_ins.is_outdated(name):
            return
        if not engine.pull(name, seconds=120):
            if name in stand_ins.BASES:
                ensure(stand_ins.BASES[name])
            stand_ins.build(name)
