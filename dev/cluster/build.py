"""Building the project's images from its Dockerfiles, with the base image that this machine can have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dev.cluster import bare_engine, baseimages, engine
from dev.cluster.console import step
from dev.cluster.host_settings import base_with_settings
from dev.cluster.run import CommandError

if TYPE_CHECKING:
    from pathlib import Path

BASE_ARGUMENT = "BASE_IMAGE"


def build_image(name: str, dockerfile: Path, context: Path) -> None:
    """Build an image; what is unchanged comes from the engine's cache.

    Raises:
        CommandError: the Dockerfile names no base image to replace, or the build failed.
    """
    bare_engine.up()
    base = base_image(dockerfile.read_text())
    baseimages.ensure(base)
    argument = f"--build-arg={BASE_ARGUMENT}={base_with_settings(base)}"
    before = engine.image_id(name)
    with step(f"build {name}"):
        engine.build("--network=host", argument, f"--file={dockerfile}", f"--tag={name}", context)
    if before and before != engine.image_id(name):
        engine.remove(before)


def base_image(dockerfile: str) -> str:
    """Return the default of the argument that names a Dockerfile's base image."""
    found = re.search(rf"^ARG {BASE_ARGUMENT}=(\S+)", dockerfile, re.MULTILINE)
    if found is None:
        raise CommandError(f"the Dockerfile has no line `ARG {BASE_ARGUMENT}=...` before its FROM")
    return found[1]
