"""The Docker engine, whoever started it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dev.cluster.run import CommandError, found, run, succeeds

if TYPE_CHECKING:
    from os import PathLike


def answers() -> bool:
    """Say whether there is a Docker engine that answers."""
    return found("docker") is not None and succeeds("docker", "version")


def complaint() -> str:
    """Return why no engine answers, in the Docker client's words."""
    try:
        run("docker", "version", "--format", "{{.Server.Version}}")
    except CommandError as error:
        return str(error).splitlines()[-1]
    return ""


def image_id(name: str) -> str | None:
    """Return the id of an image that the engine has."""
    try:
        return run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip()
    except CommandError:
        return None


def pull(name: str, seconds: int) -> bool:
    """Say whether the image could be had from its registry."""
    return succeeds("timeout", str(seconds), "docker", "pull", "--quiet", name)


def build(*arguments: str | PathLike[str]) -> None:
    """Run `docker build`, with BuildKit where the client has it."""
    modern = succeeds("docker", "buildx", "version")
    run("docker", "build", *map(str, arguments), env={} if modern else {"DOCKER_BUILDKIT": "0"})


def remove_others(name: str) -> None:
    """Remove the images of the same repository with another tag, unless a container uses them."""
    listed = run(
        "docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name.partition(":")[0]
    ).split()
    for other in listed:
        if other != name:
            remove(other)


def remove(image: str) -> None:
    """Remove an image with what only it was built from, unless a container or several names use it."""
    succeeds("docker", "image", "rm", image)
