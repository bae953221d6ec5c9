"""The command `validate`."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning_operator.cli import PluginError
from tuning_operator.resource.text import installation

File = Annotated[
    str, typer.Argument(metavar="FILE", help="Manifest, folder with manifests, or - for standard input.")
]
UNCHECKED = (
    "Sampler and pruner arguments were not checked, since Optuna is not installed. To check them, "
    f"too, {installation('plot')}."
)
MANIFESTS = ("*.yaml", "*.yml", "*.json")


def validate(file: File) -> None:
    """Check a study's manifest without a cluster, for anything that the API server or the study server would
    reject.

    Examples:

        {program} validate study.yaml

        kubectl kustomize . | {program} validate -
    """
    studies = check_files(file)
    for name, where in studies:
        typer.echo(f"{where}: the study {name} is valid")


def check_files(file: str) -> list[tuple[str, str]]:
    """Return (name, file) of the studies in a file or folder; print what is wrong with them.

    Raises:
        PluginError: something is wrong, or there is no study.
    """
    return check(_texts(file), file)


def check(texts: Iterable[tuple[str, str]], source: str) -> list[tuple[str, str]]:
    """Return (name, where) of the studies in YAML texts, of which each comes with where it was found.

    Prints what is wrong with them. Raises as `check_files`.
    """
    from tuning_operator.cli.validation.study import HAS_OPTUNA, findings, is_study

    valid: list[tuple[str, str]] = []
    wrong = 0
    for where, text in texts:
        for document in _documents(where, text):
            if not is_study(document):
                continue
            found = findings(document)
            for finding in found:
                typer.echo(f"{where}:{finding.line}: {finding.field}: {finding.message}", err=True)
            wrong += len(found)
            if not found:
                valid.append((document.data["metadata"]["name"], where))
    if wrong:
        raise PluginError("1 problem was found" if wrong == 1 else f"{wrong} problems were found")
    if valid and not HAS_OPTUNA:
        typer.echo(UNCHECKED, err=True)
    if not valid:
        raise PluginError(f"{source} has no TuningStudy (apiVersion: tuning.dev/v1alpha1, kind: TuningStudy)")
    return valid


def _texts(file: str) -> Iterator[tuple[str, str]]:
    if file == "-":
        yield "standard input", sys.stdin.read()
        return
    path = Path(file)
    if not path.exists():
        raise PluginError(f"{file} does not exist")
    paths = sorted(found for form in MANIFESTS for found in path.glob(form)) if path.is_dir() else [path]
    for each in paths:
        try:
            yield str(each), each.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PluginError(f"{each} can't be read: {error}") from None


def _documents(where: str, text: str) -> list[Any]:
    import yaml

    from tuning_operator.cli.validation.source import documents

    try:
        return documents(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise PluginError(f"{where}{line}: not valid YAML: {reason}") from None
