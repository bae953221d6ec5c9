"""Creates the files of a study from an Optuna script."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning_operator.cli import PluginError
from tuning_operator.cli.scripts.manifest import Options, kustomization, manifest, study_name
from tuning_operator.cli.scripts.script import local_modules, probe

KUSTOMIZATION = "kustomization.yaml"
KEY = re.compile(r"[-._A-Za-z0-9]+\.py")
"""Names of Python files that are valid as keys of a ConfigMap."""


@dataclass(frozen=True)
class Request:
    """The arguments of `init`."""

    script: Path
    arguments: Sequence[str]
    """Of the script."""
    out: Path | None
    """Path of the manifest. Defaults to `study.yaml` beside the script."""
    name: str | None
    image: str | None
    gpus: int
    python: str | None
    study: str | None
    """Which of the script's studies is tuned."""
    force: bool


@dataclass(frozen=True)
class Result:
    """The result of `init`."""

    name: str
    files: list[Path]
    notes: list[str]
    """What the manifest can't express, or expresses differently than the script."""


def init(request: Request) -> Result:
    """Write the manifest of the study that a script creates, and its kustomization. Raises PluginError."""
    script, files = request.script, _files(request)
    study = probe(script, request.python, request.study, request.arguments)
    modules, packages = local_modules(script)
    name = study_name(request.name, study.study_name, script.name)
    options = Options(
        script.name, modules, name, request.image, request.gpus, request.study, request.arguments
    )
    texts = [manifest(study, options), kustomization(options, files[0].name)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return Result(name, files, [*study.notes, *(f"the folder {package} {_PACKAGE}" for package in packages)])


_PACKAGE = "is imported, but a ConfigMap can't hold folders: build it into the image"


def _files(request: Request) -> list[Path]:
    """Return the files to write, after all checks."""
    script, out = request.script, request.out or request.script.with_name("study.yaml")
    if not script.is_file():
        raise PluginError(f"{script} does not exist")
    if not KEY.fullmatch(script.name):
        wrong = "can't be a key of a ConfigMap" if script.suffix == ".py" else "is not a Python script"
        raise PluginError(f"{script.name} {wrong}: rename it, for example to train.py")
    if out.parent.resolve() != script.parent.resolve():
        raise PluginError(
            f"--out {out}: use a file in {script.parent.resolve()}, since kustomize only reads files in "
            "its own "
            "folder"
        )
    files = [out, out.with_name(KUSTOMIZATION)]
    existing = [str(file) for file in files if file.exists()]
    if existing and not request.force:
        exist = "exists" if len(existing) == 1 else "exist"
        raise PluginError(
            f"{' and '.join(existing)} already {exist}: use --force to overwrite, or another --out"
        )
    return files
