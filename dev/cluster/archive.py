"""Image archives (`docker save` format) made of files: for programs that need no distribution around them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path


def image_of_files(
    path: Path, name: str, files: dict[str, Path], entrypoint: list[str], links: dict[str, str] | None = None
) -> None:
    """Write an archive of one image with one layer.

    Args:
        files: by absolute path in the image, the file to put there (mode 0755).
        links: by absolute path in the image, the symbolic link's target.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for place, source in files.items():
            info = tarfile.TarInfo(place.lstrip("/"))
            info.size, info.mode = source.stat().st_size, 0o755
            with source.open("rb") as content:
                layer.addfile(info, content)
        for place, target in (links or {}).items():
            info = tarfile.TarInfo(place.lstrip("/"))
            info.type, info.linkname = tarfile.SYMTYPE, target
            layer.addfile(info)
    _write(path, name, buffer.getvalue(), entrypoint)


def image_of_tree(path: Path, name: str, tree: Path, entrypoint: list[str]) -> None:
    """Write an archive of one image whose one layer is a tar file of a whole file system."""
    _write(path, name, tree.read_bytes(), entrypoint)


def _write(path: Path, name: str, layer: bytes, entrypoint: list[str]) -> None:
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()  # fmt: skip
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for member, content in (
            (config_name, config),
            (f"{digest}/layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
