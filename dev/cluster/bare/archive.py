"""Image archives (`docker save` format) that hold one program and little or nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image_of(
    path: Path, name: str, program: Path, place: str, links: tuple[str, ...] = (), base: Path | None = None
) -> None:
    """Write an archive with one image that runs a program.

    Args:
        path: path of the archive.
        place: path of the program in the image.
        links: symbolic links to the program in the image.
        base: tar file of the root file system to add the program to.
    """
    layers = [base.read_bytes()] if base else []
    layers.append(_layer(program, place, links))
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = json.dumps(_config(digests, place)).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = {f"{digest}/layer.tar": layer for digest, layer in zip(digests, layers, strict=True)}
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": list(files)}]
    with tarfile.open(path, "w") as archive:
        for member, content in (
            files | {config_name: config, "manifest.json": json.dumps(manifest).encode()}
        ).items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _layer(program: Path, place: str, links: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        info = tarfile.TarInfo(place.lstrip("/"))
        info.size, info.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            layer.addfile(info, content)
        for link in links:
            info = tarfile.TarInfo(link.lstrip("/"))
            info.type, info.linkname = tarfile.SYMTYPE, place
            layer.addfile(info)
    return buffer.getvalue()


def _config(digests: list[str], entrypoint: str) -> dict[str, object]:
    return {
        "architecture": ARCHITECTURE[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [entrypoint], "Env": [f"PATH={SEARCH_PATH}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }
