"""All checks of a TuningStudy: those of the API server, of the operator and of the study server."""

import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from pydantic import ValidationError

from tuning_operator.cli.validation.schema import QUOTE, Flaw, schema_flaws
from tuning_operator.cli.validation.source import Document
from tuning_operator.kube.plan.validation import check, definition
from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.text import field_path

NAME = "lower-case letters, digits and dashes, and begin and end with a letter or digit"
"""What Kubernetes allows in names. A dot is refused by the schema's own rule."""


HAS_OPTUNA = find_spec("optuna") is not None


class Finding(NamedTuple):
    """What is wrong in a document, and in which line."""

    line: int
    field: str
    message: str


def study_server_problems(definition: StudyDefinition) -> list[Problem]:
    """Return what any study server would refuse; nothing if Optuna, which knows it, is not installed."""
    if not HAS_OPTUNA:
        return []
    from tuning_operator.studies.definition.samplers import manifest_problems

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of Optuna's classes are experimental
        return manifest_problems(definition)


def is_study(document: Document) -> bool:
    """Return whether a document is a TuningStudy."""
    return isinstance(document.data, dict) and document.data.get("kind") == names.KIND


def findings(document: Document) -> list[Finding]:
    """Return what a cluster would refuse in a TuningStudy, by line."""
    found = [Finding(line, key, "is set twice") for key, line in document.duplicates()]
    found += [Finding(document.line(field), field, message) for field, message in _problems(document.data)]
    return sorted(dict.fromkeys(found))


def _problems(data: Any) -> Iterator[tuple[str, str]]:
    if data.get("apiVersion") != names.API_VERSION:
        yield "apiVersion", f"must be {names.API_VERSION}"
    if not isinstance(data.get("metadata"), dict) or not isinstance(data["metadata"].get("name"), str):
        name = data["metadata"].get("name") if isinstance(data.get("metadata"), dict) else None
        quote = "" if name is None else f", as a string: {QUOTE}"
        yield "metadata.name", f"Required value: the name of the study{quote}"
        return
    name, flaws = data["metadata"]["name"], schema_flaws(data)
    if not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name):
        flaws = [Flaw("metadata.name", f"{name!r} must consist of {NAME}"), *flaws]
    if flaws:
        yield from flaws
        return
    metadata = {"namespace": "default", "uid": "", **data["metadata"]}
    try:
        study = TuningStudy.model_validate({**data, "metadata": metadata})
    except ValidationError as error:
        for entry in error.errors():
            yield field_path(entry["loc"]), entry["msg"]
        return
    for problem in [*check(study), *study_server_problems(definition(study))]:
        field = problem.field if problem.field.startswith("metadata.") else f"spec.{problem.field}"
        yield field, problem.message
