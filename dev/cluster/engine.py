"""The Docker engine, through its client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dev.cluster.console import note, step
from dev.cluster.run import CommandError, found, run, succeeds

if TYPE_CHECKING:
    from os import PathLike


def answers() -> bool:
    """Return whether a Docker engine is running and accessible."""
    return found("docker") is not None and succeeds("docker", "version")


def error_message() -> str:
    """Return the Docker client's error message if it can't reach an engine."""
    try:
        run("docker", "version", "--format", "{{.Server.Version}}")
    except CommandError as error:
        return str(error).splitlines()[-1]
    return ""


def image_id(name: str) -> str | None:
    """Return the ID of an image, or None if the engine doesn't have it."""
    try:
        return run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip()
    except CommandError:
        return None


def pull(name: str, seconds: int) -> bool:
    """Pull an image; return whether that succeeded."""
    try:
        with step(f"pull {name}"):
            run("timeout", str(seconds), "docker", "pull", "--quiet", name)
    except CommandError:
        note(f"{name} can't be pulled here: building a replacement")
        return False
    return True


def build(*arguments: str | PathLike[str]) -> None:
    """Run `docker build`, with BuildKit if the client has it."""
    modern = succeeds("docker", "buildx", "version")
    run("docker", "build", *map(str, arguments), env={} if modern else {"DOCKER_BUILDKIT": "0"})


def remove_others(name: str) -> None:
    """Remove the repository's images with other tags, unless a container uses them."""
    listed = run(
        "docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name.partition(":")[0]
    ).split()
    for other in listed:
        if other != name:
            remove(other)


def remove(image: str) -> None:
    """Remove an image and its unused parents, unless a container uses it."""
    succeeds("docker", "image", "rm", image)
