"""This machine's settings for package indexes (a company's certificates, a mirror), used in image builds.

The Dockerfiles stay the same: with such settings, their base image is replaced by one that includes them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dev.cluster import engine
from dev.cluster.cache import digest, lock
from dev.cluster.console import step

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")
PIP_SETTINGS = (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def base_with_settings(base: str) -> str:
    """Return the base image, or if this machine has settings, an image based on it that includes them."""
    files = _files()
    environment = {name: os.environ[name] for name in INDEX_VARIABLES if os.environ.get(name)}
    if not files and not environment:
        return base
    recipe = dockerfile(base, sorted(files), environment)
    key = digest(engine.image_id(base) or base, recipe, *(files[name] for name in sorted(files)))
    name = f"tuning.dev/base-with-settings:{key}"
    with lock("base-with-settings"):
        if engine.image_id(name) is None:
            with step(f"add this machine's certificates and package index to {base}"):
                _make(name, recipe, files)
            engine.remove_others(name)
    return name


def dockerfile(base: str, files: list[str], environment: dict[str, str]) -> str:
    """Return a Dockerfile that adds files (`ca.crt`, `pip.conf`) and variables to a base image."""
    places = {"ca.crt": BUNDLE, "pip.conf": "/etc/pip.conf"}
    lines = [f"FROM {base}", *(f"COPY {file} {places[file]}" for file in files)]
    if "ca.crt" in files:
        lines.append(f"ENV SSL_CERT_FILE={BUNDLE} PIP_CERT={BUNDLE}")
    lines += [f"ENV {name}={value}" for name, value in sorted(environment.items())]
    return "\n".join(lines) + "\n"


def _files() -> dict[str, Path]:
    bundles = (Path(os.environ[name]) for name in CERTIFICATE_VARIABLES if os.environ.get(name))
    found = {
        "ca.crt": next((path for path in bundles if path.is_file()), None),
        "pip.conf": next((path for path in PIP_SETTINGS if path.is_file()), None),
    }
    return {name: path for name, path in found.items() if path}


def _make(name: str, recipe: str, files: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "Dockerfile").write_text(recipe)
        for file, source in files.items():
            (context / file).write_bytes(source.read_bytes())
        engine.build("--quiet", "--tag", name, context)
