"""The command `export`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.commands.trials import write_csv
from tuning_operator.cli.studies import Resource, Studies
from tuning_operator.cli.text import status_text
from tuning_operator.resource import names

if TYPE_CHECKING:
    from tuning_operator.protocol import FinishedStudy


class Format(StrEnum):
    """A file format."""

    sqlite = "sqlite"
    journal = "journal"
    csv = "csv"


ENDINGS = {".db": Format.sqlite, ".sqlite": Format.sqlite, ".sqlite3": Format.sqlite} | {
    ".log": Format.journal,
    ".journal": Format.journal,
    ".csv": Format.csv,
}


def export(
    studies: Studies,
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write: .db (SQLite), .log (Optuna journal) or .csv.",
            show_default="STUDY.db",
        ),
    ] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="File format.", show_default="by the file's ending")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the study to a file: for Optuna (`load_study`, optuna-dashboard), or as a table.

    Examples:

        {program} export mnist

        {program} export mnist --out mnist.csv

        {program} export mnist --format journal
    """
    file, chosen = _target(study, out, file_format)
    if file.exists() and not force:
        raise PluginError(f"{file} already exists: use --force to overwrite it, or another --out")
    found = studies.get(study)
    with studies.record(found) as reader:
        record = reader.read()
    partial = file.with_name(f".{file.name}.part")
    partial.unlink(missing_ok=True)
    try:
        _write(record, found, partial, chosen)
        partial.replace(file)
    finally:
        for rest in file.parent.glob(f"{partial.name}*"):
            rest.unlink()
    typer.echo(file)
    if chosen is not Format.csv:
        _show_how_to_load(found, file, chosen)


def _target(study: str, out: Path | None, file_format: Format | None) -> tuple[Path, Format]:
    """Return the file and its format."""
    default = {Format.sqlite: ".db", Format.journal: ".log", Format.csv: ".csv"}
    chosen = file_format or (ENDINGS.get(out.suffix) if out else Format.sqlite)
    if chosen is None:
        raise PluginError(f"--out {out}: end the name with .db, .log or .csv, or set --format")
    file = out or Path(f"{study}{default[chosen]}")
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK):
        raise PluginError(f"--out {file}: use a file in an existing folder that you can write to")
    return file, chosen


def _write(record: "FinishedStudy", study: Resource, file: Path, chosen: Format) -> None:
    from tuning_operator.cli.trials import trials_of

    if chosen is Format.csv:
        with file.open("w", newline="") as written:
            write_csv(trials_of(study, record), status_text.metrics_of(study), written)
        return
    from tuning_operator.cli.plots.optuna_file import save_study

    save_study(record, _name(study), status_text.metrics_of(study), file, journal=chosen is Format.journal)


def _name(study: Resource) -> str:
    metadata = study["metadata"]
    return names.optuna_study_name(metadata["namespace"], metadata["name"])


def _show_how_to_load(study: Resource, file: Path, chosen: Format) -> None:
    storage = f'"sqlite:///{file}"'
    if chosen is Format.journal:
        storage = f'JournalStorage(JournalFileBackend("{file}"))'
    typer.echo(f'optuna.load_study(study_name="{_name(study)}", storage={storage})', err=True)
