"""Reads what `tuning run` is given: a manifest, or a folder with a kustomization; and its ConfigMaps."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tuning_operator.kube.plan.validation import check
from tuning_operator.local import LocalError
from tuning_operator.protocol import Problem
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudySpec

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
KUSTOMIZE_USED = frozenset({"apiVersion", "kind", "metadata", "resources", "configMapGenerator"})
KUSTOMIZE_IGNORED = frozenset(
    {
        "namespace",
        "labels",
        "commonLabels",
        "commonAnnotations",
        "buildMetadata",
        "generatorOptions",
        "images",
    }
)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A study and the ConfigMaps that come with it."""

    file: Path
    body: Json
    """The TuningStudy."""
    config_maps: Mapping[str, Mapping[str, str]]

    @property
    def folder(self) -> Path:
        """The folder of the manifest."""
        return self.file.parent

    @property
    def name(self) -> str:
        """The study's name."""
        name: str = self.body["metadata"]["name"]
        return name


class _Loader(yaml.SafeLoader):
    """Reads scalars as kubectl does: 1e-5 is a number, and dates are strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def read(path: Path) -> Manifest:
    """Return the study of a file or folder. Raises LocalError."""
    if not path.exists():
        raise LocalError(f"{path} does not exist: give a manifest, or a folder with a kustomization.yaml.")
    if path.is_dir():
        kustomization = _kustomization(path)
        if kustomization is None:
            raise LocalError(
                f"{path} has no kustomization.yaml: give the manifest itself, {path}/study.yaml."
            )
        documents = list(_kustomized(kustomization))
    else:
        documents = list(_documents(path))
        beside = _kustomization(path.parent)
        if beside and any(entry == path.name for entry in _mapping(beside).get("resources") or ()):
            documents += [_Document(beside, body) for body in _generated(beside, _mapping(beside))]
    studies = [document for document in documents if document.body.get("kind") == names.KIND]
    if not studies:
        raise LocalError(f"{path} has no {names.KIND}: add `kind: {names.KIND}`, or give another file.")
    if len(studies) > 1:
        files = " or ".join(dict.fromkeys(f"`tuning run {document.file}`" for document in studies))
        found = ", ".join(str(document.body.get("metadata", {}).get("name")) for document in studies)
        raise LocalError(
            f"{path} has {len(studies)} studies ({found}): run one of them, for example {files}."
        )
    return Manifest(studies[0].file.absolute(), studies[0].body, _config_maps(documents))


def parse(manifest: Manifest, body: Json) -> TuningStudy:
    """Return the study. Raises LocalError with everything that is wrong with it."""
    problems = [*_head(body)]
    if not problems:
        try:
            spec = TuningStudySpec.model_validate(body.get("spec"))
        except ValidationError as error:
            problems = [_problem(detail) for detail in error.errors()]
        else:
            study = TuningStudy.model_validate({**body, "spec": spec})
            problems = [*_combinations(spec), *(check(study) if not _name(body) else ())]
            if not problems:
                return study
    raise refusal(manifest.file, problems)


def refusal(file: Path, problems: Sequence[Problem]) -> LocalError:
    """Return the error that lists these problems, each with its field."""
    lines = [f"  {_path(problem.field)}: {problem.message}" for problem in problems]
    return LocalError("\n".join([f"{file} can't be run:", *dict.fromkeys(lines)]))


def _path(field: str) -> str:
    top = field.split(".")[0].split("[")[0]
    return (
        field
        if top in ("metadata", "apiVersion", "kind", "spec") or field.startswith("-")
        else f"spec.{field}"
    )


def _name(body: Json) -> str | None:
    name = (body.get("metadata") or {}).get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9\-]*[a-z0-9])?", name):
        return "use lower-case letters, digits and dashes, for example my-study."
    return None


def _head(body: Json) -> Iterator[Problem]:
    if body.get("apiVersion") != names.API_VERSION:
        yield Problem(field="apiVersion", message=f"use {names.API_VERSION}.")
    if message := _name(body):
        yield Problem(field="metadata.name", message=message)
    if not isinstance(body.get("spec"), dict):
        yield Problem(field="spec", message="it is missing, or not a mapping: add the study's specification.")


def _problem(detail: Any) -> Problem:
    """Return a validation error as a sentence about a field of the manifest."""
    path = ""
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, message = detail["type"], detail["msg"]
    if kind == "missing":
        message = "this field is required: add it."
    elif kind == "extra_forbidden":
        message = "there is no such field here: correct its name or its place, or remove it."
    else:
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}."
    return Problem(field=path, message=message)


def _combinations(spec: TuningStudySpec) -> Iterator[Problem]:
    """Yield what the API server would find by rules over several fields, as far as running depends on it."""
    trial, refit, metrics = spec.trial, spec.refit, [o.metric for o in spec.objectives]
    if sum(bool(way) for way in (trial.objective, trial.script, trial.command)) != 1:
        yield Problem(field="trial", message="set exactly one of objective, script and command.")
    if trial.command and spec.search_space is None:
        yield Problem(field="searchSpace", message="a command can't suggest its parameters: declare them.")
    if refit and sum(bool(way) for way in (refit.objective, refit.script, refit.command)) > 1:
        yield Problem(field="refit", message="set at most one of objective, script and command.")
    if refit and len(metrics) > 1 and refit.metric is None:
        message = f"name the objective whose best trial is trained, one of {', '.join(metrics)}."
        yield Problem(field="refit.metric", message=message)
    if refit and refit.metric is not None and refit.metric not in metrics:
        message = f"{refit.metric} is not one of the objectives: use one of {', '.join(metrics)}."
        yield Problem(field="refit.metric", message=message)
    templates = {"trial.template": trial.template, "refit.template": refit.template if refit else None}
    for path, template in templates.items():
        if template is not None:
            yield from _template(path, template)


def _template(path: str, template: Json) -> Iterator[Problem]:
    pod = template.get("spec")
    containers = pod.get("containers") if isinstance(pod, dict) else None
    if not isinstance(containers, list) or not all(isinstance(found, dict) for found in containers):
        yield Problem(field=f"{path}.spec.containers", message="a list of containers is required: add it.")
        return
    trainers = [found for found in containers if found.get("name") == names.TRAINER_CONTAINER]
    if len(trainers) != 1:
        message = f"exactly one container must be named {names.TRAINER_CONTAINER}: it runs the trial."
        yield Problem(field=f"{path}.spec.containers", message=message)
    for container in trainers:
        for field in ("command", "args"):
            if container.get(field) is not None:
                message = f"the container {names.TRAINER_CONTAINER} runs what {path.split('.')[0]} says."
                yield Problem(field=f"{path}.spec.containers", message=f"{message} Remove its {field}.")


@dataclass(frozen=True)
class _Document:
    file: Path
    body: Json


def _documents(file: Path) -> Iterator[_Document]:
    """Yield the objects in a file. Raises LocalError."""
    try:
        for body in yaml.load_all(file.read_text(), _Loader):
            if isinstance(body, dict):
                yield _Document(file, body)
            elif body is not None:
                raise LocalError(
                    f"{file} is not a manifest: it has {type(body).__name__} in place of fields."
                )
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"{file} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise LocalError(f"{file} is not valid YAML: {error}") from None


def _kustomization(folder: Path) -> Path | None:
    return next((folder / name for name in KUSTOMIZATIONS if (folder / name).is_file()), None)


def _mapping(kustomization: Path) -> Json:
    return next((document.body for document in _documents(kustomization)), {})


def _kustomized(kustomization: Path) -> Iterator[_Document]:
    """Yield the objects of a kustomization, as `kubectl kustomize` prints them. Raises LocalError."""
    body, folder = _mapping(kustomization), kustomization.parent
    for field in body.keys() - KUSTOMIZE_USED - KUSTOMIZE_IGNORED:
        raise LocalError(
            f"{kustomization}: `{field}` is not known to `tuning run`. Let kubectl apply it: `kubectl "
            f"kustomize {folder} > study-local.yaml`, then `tuning run study-local.yaml`."
        )
    for resource in body.get("resources") or ():
        path = folder / resource
        if path.is_dir() and (nested := _kustomization(path)):
            yield from _kustomized(nested)
        elif path.is_file():
            yield from _documents(path)
        else:
            raise LocalError(f"{kustomization}: the resource {resource} does not exist: correct its path.")
    for generated in _generated(kustomization, body):
        yield _Document(kustomization, generated)


def _generated(kustomization: Path, body: Json) -> Iterator[Json]:
    for generator in body.get("configMapGenerator") or ():
        data: dict[str, str] = {}
        for entry in generator.get("files") or ():
            key, _, path = entry.rpartition("=")
            data[key or Path(path).name] = _content(kustomization, path)
        for literal in generator.get("literals") or ():
            key, _, value = literal.partition("=")
            data[key] = value.strip("\"'")
        for path in generator.get("envs") or ():
            for line in _content(kustomization, path).splitlines():
                key, _, value = line.partition("=")
                if key.strip() and not key.startswith("#"):
                    data[key.strip()] = value
        yield {"kind": "ConfigMap", "metadata": {"name": generator.get("name")}, "data": data}


def _content(kustomization: Path, path: str) -> str:
    try:
        return (kustomization.parent / path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"{kustomization}: the file {path} can't be read: {error}") from None


def _config_maps(documents: Sequence[_Document]) -> dict[str, dict[str, str]]:
    found = (document.body for document in documents if document.body.get("kind") == "ConfigMap")
    return {
        body["metadata"]["name"]: {key: str(value) for key, value in (body.get("data") or {}).items()}
        for body in found
    }
