"""A study's files from an Optuna script."""

import re
from dataclasses import dataclass
from pathlib import Path

from tuning_operator.cli.errors import PluginError
from tuning_operator.cli.local_modules import local_modules
from tuning_operator.cli.manifest import Wishes, kustomization, manifest, study_name
from tuning_operator.cli.script_probe import probe

KUSTOMIZATION = "kustomization.yaml"
KEY = re.compile(r"[-._A-Za-z0-9]+\.py")
"""The names that a ConfigMap's keys may have, of Python files."""


@dataclass(frozen=True)
class Request:
    """What the user asks of `init`."""

    script: Path
    out: Path | None
    """The manifest; None: `study.yaml` beside the script."""
    name: str | None
    image: str
    gpus: int
    python: str | None
    force: bool


@dataclass(frozen=True)
class Made:
    """What `init` made of it."""

    name: str
    files: list[Path]
    notes: list[str]
    """What of the script the manifest does not hold, or does differently."""


def init(request: Request) -> Made:
    """Write the manifest of the study that a script makes, and its kustomization. Raises PluginError."""
    script, files = request.script, _files(request)
    asked = probe(script, request.python)
    modules, packages = local_modules(script)
    name = study_name(request.name, asked.study_name, script.name)
    wishes = Wishes(script.name, modules, name, request.image, request.gpus)
    texts = [manifest(asked, wishes), kustomization(wishes, files[0].name)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return Made(name, files, [*asked.notes, *(f"the folder {package} {_PACKAGE}" for package in packages)])


_PACKAGE = "is imported, but a ConfigMap holds no folders: build it into the image"


def _files(request: Request) -> list[Path]:
    """Return the files to write, once nothing stands in the way of them."""
    script, out = request.script, request.out or request.script.with_name("study.yaml")
    if not script.is_file():
        raise PluginError(f"there is no file {script}")
    if not KEY.fullmatch(script.name):
        raise PluginError(f"{script.name} cannot be in a ConfigMap: rename it, for example train.py")
    if out.parent.resolve() != script.parent.resolve():
        raise PluginError(
            f"--out {out}: choose a file in {script.parent.resolve()}, since kustomize takes the script from "
            "its own folder only"
        )
    files = [out, out.with_name(KUSTOMIZATION)]
    there = [str(file) for file in files if file.exists()]
    if there and not request.force:
        raise PluginError(f"{' and '.join(there)} would be overwritten: give --force, or another --out")
    return files
