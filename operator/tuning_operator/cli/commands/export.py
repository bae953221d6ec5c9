"""The commands `export` and `report`, which write a study to a file."""

import os
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.commands.plot import ALL, require_plot_libraries
from tuning_operator.cli.commands.plot import Format as PlotFormat
from tuning_operator.cli.commands.trials import NULL, table_rows, write_csv
from tuning_operator.cli.studies import Resource, Studies, metrics_of
from tuning_operator.cli.text.values import shown
from tuning_operator.resource import names
from tuning_operator.resource.text import installation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuning_operator.cli.trials import Trial
    from tuning_operator.protocol import FinishedStudy


class Format(StrEnum):
    """A file format."""

    sqlite = "sqlite"
    journal = "journal"
    csv = "csv"
    parquet = "parquet"


ENDINGS = {".db": Format.sqlite, ".sqlite": Format.sqlite, ".sqlite3": Format.sqlite} | {
    ".log": Format.journal,
    ".journal": Format.journal,
    ".csv": Format.csv,
    ".parquet": Format.parquet,
}


def export(
    studies: Studies,
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write: .db (SQLite), .log (Optuna journal), .csv or .parquet.",
            show_default="STUDY.db",
        ),
    ] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="File format.", show_default="by file extension")
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
    _refuse_existing(file, force=force)
    _require_library(chosen)
    found = studies.get(study)
    with studies.record(found) as reader:
        record = reader.read()
    _replace(file, lambda partial: _write(record, found, partial, chosen))
    typer.echo(file)
    if chosen in (Format.sqlite, Format.journal):
        _show_how_to_load(found, file, chosen)


def report(
    studies: Studies,
    study: Study,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write.", show_default="STUDY-report.html")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write one HTML page with the study's result, plots, trials and manifest.

    The page needs no other file and no network.

    Examples:

        {program} report mnist

        {program} report mnist --out /shared/mnist.html --force
    """
    require_plot_libraries([PlotFormat.html])
    file = out or Path(f"{study}-report.html")
    _check_folder(file)
    _refuse_existing(file, force=force)
    found = studies.get(study)
    with studies.record(found) as reader:
        record = reader.read()
    from tuning_operator.cli.plots.report import page
    from tuning_operator.cli.trials import trials_of

    text = page(found, record, trials_of(found, record), ALL)
    _replace(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    typer.echo(file)


def _require_library(chosen: Format) -> None:
    library, extra = ("pyarrow", "parquet") if chosen is Format.parquet else ("optuna", "plot")
    if chosen is not Format.csv and find_spec(library) is None:
        raise PluginError(f"{library} is not installed: {installation(extra)}")


def _refuse_existing(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        raise PluginError(f"{file} already exists: use --force to overwrite it, or another --out")


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that it is complete or not there."""
    partial = file.with_name(f".{file.name}.part")
    partial.unlink(missing_ok=True)
    try:
        write(partial)
        partial.replace(file)
    finally:
        for rest in file.parent.glob(f"{partial.name}*"):
            rest.unlink()


def _target(study: str, out: Path | None, file_format: Format | None) -> tuple[Path, Format]:
    """Return the file and its format."""
    default = {Format.sqlite: ".db", Format.journal: ".log"}
    chosen = file_format or (ENDINGS.get(out.suffix) if out else Format.sqlite)
    if chosen is None:
        raise PluginError(f"--out {out}: end the name with .db, .log, .csv or .parquet, or set --format")
    file = out or Path(f"{study}{default.get(chosen, f'.{chosen}')}")
    _check_folder(file)
    return file, chosen


def _check_folder(file: Path) -> None:
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK):
        raise PluginError(f"--out {file}: use a file in an existing folder that you can write to")


def _write(record: "FinishedStudy", study: Resource, file: Path, chosen: Format) -> None:
    from tuning_operator.cli.trials import trials_of

    if chosen in (Format.csv, Format.parquet):
        trials, metrics = trials_of(study, record), metrics_of(study)
        if chosen is Format.parquet:
            _write_parquet(trials, metrics, file)
            return
        with file.open("w", newline="") as written:
            write_csv(trials, metrics, written)
        return
    from tuning_operator.cli.plots.optuna_file import save_study

    save_study(record, _name(study), metrics_of(study), file, journal=chosen is Format.journal)


def _write_parquet(trials: "Sequence[Trial]", metrics: list[str], file: Path) -> None:
    """Write trials as a table whose columns have types."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = [*table_rows(trials, metrics)]
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]} if rows else {}
    pyarrow.parquet.write_table(pa.table(columns), file)


def _column(values: list[Any]) -> Any:
    """Return a column of a Parquet file: numbers, of which some may be null, or text for several kinds."""
    import pyarrow as pa

    numbers = [None if value == NULL else value for value in values]
    if all(value is None or isinstance(value, int | float) for value in numbers):
        values = numbers
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # the last: an integer of more than 64 bits
        return pa.array([None if value is None else _text(value) for value in values])


def _text(value: Any) -> str:
    return str(value) if isinstance(value, float) else shown(value)


def _name(study: Resource) -> str:
    metadata = study["metadata"]
    return names.optuna_study_name(metadata["namespace"], metadata["name"])


def _show_how_to_load(study: Resource, file: Path, chosen: Format) -> None:
    storage = f'"sqlite:///{file}"'
    if chosen is Format.journal:
        storage = f'JournalStorage(JournalFileBackend("{file}"))'
    typer.echo(f'optuna.load_study(study_name="{_name(study)}", storage={storage})', err=True)
