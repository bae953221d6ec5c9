"""The command `plot`."""

import os
import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.studies import Resource, Studies, metrics_of
from tuning_operator.resource.text import installation

if TYPE_CHECKING:
    from tuning_operator.cli.plots.drawing import Drawing
    from tuning_operator.cli.plots.kinds import Missing
    from tuning_operator.protocol import FinishedStudy

PLOTLY = "plotly.min.js"
"""The file with plotly's code, which all HTML files in a folder share."""


class Format(StrEnum):
    """How a plot is drawn: as a file, or as text."""

    html = "html"
    png = "png"
    terminal = "terminal"


class PlotName(StrEnum):
    """The plots in tuning_operator.cli.plots; listed here, so that the help does not import Optuna."""

    optimization_history = "optimization-history"
    param_importances = "param-importances"
    parallel_coordinate = "parallel-coordinate"
    slice = "slice"
    intermediate_values = "intermediate-values"
    pareto_front = "pareto-front"
    contour = "contour"
    rank = "rank"
    edf = "edf"
    timeline = "timeline"
    hypervolume_history = "hypervolume-history"
    terminator_improvement = "terminator-improvement"


ALL: list[PlotName] = [name for name in PlotName if name != PlotName.terminator_improvement]
"""Those that are drawn if none is named: the other takes minutes for a long study."""
IN_TERMINAL: list[PlotName] = [
    PlotName.optimization_history,
    PlotName.param_importances,
    PlotName.intermediate_values,
    PlotName.pareto_front,
]
"""Those that are drawn in a terminal if none is named."""
WIDEST = 120
"""Columns of a plot in a terminal, at most."""


def plot(
    studies: Studies,
    study: Study,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="STUDY-plots")] = None,
    plots: Annotated[
        list[PlotName] | None,
        typer.Option(
            "--plot",
            metavar="NAME",
            help=f"Plot to draw; can be repeated. One of {', '.join(PlotName)}. Defaults to all.",
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="html,png,terminal",
            help="File formats, or terminal to print.",
            show_default="html, and png if matplotlib is installed",
        ),
    ] = None,
) -> None:
    """Draw Optuna's plots of a study.

    Examples:

        {program} plot mnist

        {program} plot mnist --format terminal

        {program} plot mnist --plot contour --plot timeline --format html
    """
    chosen, folder = _formats(formats or _installed_formats()), _plots_folder(out, study)
    require_plot_libraries(chosen)
    found = studies.get(study)
    with studies.record(found) as reader:
        record = reader.read()
    if chosen != [Format.terminal]:
        folder.mkdir(parents=True, exist_ok=True)
    if Format.html in chosen:
        (folder / PLOTLY).unlink(missing_ok=True)  # plotly would keep that of an older version
    default = IN_TERMINAL if chosen == [Format.terminal] else ALL
    if not _draw(record, found, plots or default, folder, chosen):
        raise PluginError(f"no plot of {study} could be drawn")


def save_plots(record: "FinishedStudy", study: Resource, folder: Path) -> None:
    """Draw all plots as HTML, without a word about those that the study has no data for."""
    import optuna

    from tuning_operator.cli.plots.kinds import Missing, drawings, failed, write

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLOTLY).unlink(missing_ok=True)
    for drawing in drawings(record, study["metadata"]["name"], metrics_of(study), ALL):
        if isinstance(drawing, Missing):
            continue
        try:
            write(drawing, folder, Format.html.value)
        except Exception as error:  # noqa: BLE001  whatever Optuna's plots raise; the others are still drawn
            _say_missing(failed(drawing.name, error))


def _draw(
    record: "FinishedStudy", study: Resource, plots: list[PlotName], folder: Path, formats: list[Format]
) -> int:
    """Draw plots and print the files and what could not be drawn; return how many were drawn."""
    import optuna

    from tuning_operator.cli.plots.kinds import Missing, drawings, left_out

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if infinite := left_out(record):
        trials = "1 complete trial is" if infinite == 1 else f"{infinite} complete trials are"
        typer.echo(f"{trials} not shown, since the value is infinite", err=True)
    written = 0
    name, metrics = study["metadata"]["name"], metrics_of(study)
    for drawing in drawings(record, name, metrics, plots):
        if isinstance(drawing, Missing):
            _say_missing(drawing)
        else:
            written += _write(drawing, folder, formats)
    return written


def _write(drawing: "Drawing", folder: Path, formats: list[Format]) -> int:
    """Draw a plot in each format and print the file, or the plot itself; return how many were drawn."""
    from tuning_operator.cli.plots.kinds import failed

    if drawing.remark:
        typer.echo(f"{drawing.name}: {drawing.remark}", err=True)
    written = 0
    for file_format in formats:
        try:
            _show(drawing, folder, file_format)
        except Exception as error:  # noqa: BLE001  whatever Optuna's plots raise; the others are still drawn
            _say_missing(failed(f"{drawing.name}.{file_format}", error))
        else:
            written += 1
    return written


def _show(drawing: "Drawing", folder: Path, file_format: Format) -> None:
    from tuning_operator.cli.plots.kinds import Missing, text_of, write

    if file_format is not Format.terminal:
        typer.echo(write(drawing, folder, "png" if file_format is Format.png else "html"))
        return
    width = min(shutil.get_terminal_size().columns, WIDEST)
    text = text_of(drawing, width, colors=sys.stdout.isatty())
    if isinstance(text, Missing):
        _say_missing(text)
    else:
        typer.echo(f"{text}\n")


def _say_missing(plot: "Missing") -> None:
    typer.echo(f"no {plot.name}: {plot.reason}", err=True)


def _formats(text: str) -> list[Format]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in list(Format)]
    if unknown or not wanted:
        raise PluginError(f"--format {text}: use html, png, terminal or several of them, such as html,png")
    return [Format(part) for part in dict.fromkeys(wanted)]


def _installed_formats() -> str:
    from importlib.util import find_spec

    return "html,png" if find_spec("matplotlib") else "html"


def _plots_folder(out: Path | None, study: str) -> Path:
    folder = out or Path(f"{study}-plots")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise PluginError(
            f"--out {folder}: {existing} is a file. Use a folder, since each plot gets files of its own"
        )
    if folder.suffix in (".html", ".png") and not folder.exists():
        raise PluginError(
            f"--out {folder}: use a folder, since each plot gets files of its own. To select plots and file "
            "formats, use --plot and --format"
        )
    if not os.access(existing, os.W_OK):
        raise PluginError(f"--out {folder}: you can't write to {existing}. Use another folder")
    return folder


def require_plot_libraries(formats: Sequence[Format]) -> None:
    """Raise PluginError if a library is not installed that plots of these formats need."""
    from importlib.util import find_spec

    libraries = {Format.html: "plotly", Format.png: "matplotlib", Format.terminal: "plotext"}
    needed = ["optuna", *(libraries[each] for each in formats)]
    missing = [library for library in needed if find_spec(library) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise PluginError(f"{' and '.join(missing)} {are} not installed: {installation('plot')}")
