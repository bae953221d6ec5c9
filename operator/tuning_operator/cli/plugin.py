"""The plugin `kubectl tuning`."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning_operator.cli import PluginError, status_text
from tuning_operator.cli.kubectl import Kubectl, KubectlError
from tuning_operator.resource import names

if TYPE_CHECKING:
    from tuning_operator.cli.drawing import Drawing
    from tuning_operator.protocol import FinishedStudy

app = typer.Typer(
    name="kubectl tuning",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune models on Kubernetes: create a study from a script, show its best trial, plot it.",
)

IMAGE = "tuning-trainer:dev"
"""The image that trainer-image/Dockerfile builds."""

PLOTLY = "plotly.min.js"
"""The file with plotly's code, which all HTML files in a folder share."""

Study = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the TuningStudy.")]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace of the study. Defaults to that of the context."),
]
Context = Annotated[str | None, typer.Option(help="Kubeconfig context to use.")]
Kubeconfig = Annotated[str | None, typer.Option(help="Path of the kubeconfig.")]


class Output(StrEnum):
    """A machine-readable output format."""

    json = "json"
    yaml = "yaml"


class Format(StrEnum):
    """A plot's file format."""

    html = "html"
    png = "png"


class PlotName(StrEnum):
    """The plots in tuning_operator.cli.plots; listed here, so that the help does not import Optuna."""

    optimization_history = "optimization-history"
    param_importances = "param-importances"
    parallel_coordinate = "parallel-coordinate"
    slice = "slice"
    intermediate_values = "intermediate-values"
    pareto_front = "pareto-front"


@app.command()
def best(
    study: Study,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Output format.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the best trial, or the Pareto front of a study with several objectives."""
    found = _resource(Kubectl(namespace, context, kubeconfig), study)
    trials = status_text.best_of(found)
    if trials is None:
        raise PluginError(status_text.missing_best(found))
    if output is None:
        from tuning_operator.cli.tables import show_best

        show_best(found, trials)
    else:
        typer.echo(_as_text(trials, output).rstrip())


@app.command()
def plot(
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
    formats: Annotated[str, typer.Option("--format", metavar="html,png", help="File formats.")] = "html,png",
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Draw Optuna's plots of a study."""
    chosen, folder = _formats(formats), _plots_folder(out, study)
    _require_plot_libraries(chosen)
    kubectl = Kubectl(namespace, context, kubeconfig)
    found = _resource(kubectl, study)
    from tuning_operator.cli.study_server import fetch_record

    record = fetch_record(kubectl, found["metadata"]["namespace"], study)
    folder.mkdir(parents=True, exist_ok=True)
    if Format.html in chosen:
        (folder / PLOTLY).unlink(missing_ok=True)  # plotly would keep that of an older version
    if not _draw(record, found, plots or list(PlotName), folder, chosen):
        raise PluginError(f"no plot of {study} could be drawn")


@app.command()
def init(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Optuna script, for example train.py.")],
    out: Annotated[
        Path | None, typer.Option(help="Path of the manifest.", show_default="study.yaml beside the script")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study.", show_default="from the script")
    ] = None,
    image: Annotated[str, typer.Option(help="Image of the trials.")] = IMAGE,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per trial.")] = 1,
    python: Annotated[
        str | None, typer.Option(help="Python that runs the script on this machine.", show_default="python")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Create a study's manifest from an Optuna script, by running it up to its `study.optimize`."""
    from tuning_operator.cli.init import Request
    from tuning_operator.cli.init import init as make

    result = make(Request(script, out, name, image, gpus, python, force))
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    for file in result.files:
        typer.echo(file)
    typer.echo(f"kubectl apply -k {script.parent}   # starts the study {result.name}", err=True)


def _draw(
    record: "FinishedStudy", study: Any, plots: list[PlotName], folder: Path, formats: list[Format]
) -> int:
    """Draw plots and print the files and what could not be drawn; return the number of files."""
    import optuna

    from tuning_operator.cli.plots import Missing, drawings, left_out

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if infinite := left_out(record):
        trials = "1 complete trial is" if infinite == 1 else f"{infinite} complete trials are"
        typer.echo(f"{trials} not shown, since the value is infinite", err=True)
    written = 0
    name, metrics = study["metadata"]["name"], status_text.metrics_of(study)
    for drawing in drawings(record, name, metrics, plots):
        if isinstance(drawing, Missing):
            typer.echo(f"no {drawing.name}: {drawing.reason}", err=True)
        else:
            written += _write(drawing, folder, formats)
    return written


def _write(drawing: "Drawing", folder: Path, formats: list[Format]) -> int:
    """Write a plot in each format and print the files; return their number."""
    from tuning_operator.cli.plots import write

    if drawing.remark:
        typer.echo(f"{drawing.name}: {drawing.remark}", err=True)
    written = 0
    for file_format in formats:
        try:
            typer.echo(write(drawing, folder, file_format.value))
        except Exception as error:  # noqa: BLE001  whatever Optuna's plots raise; the others are still drawn
            typer.echo(f"no {drawing.name}.{file_format}: {type(error).__name__}: {error}", err=True)
        else:
            written += 1
    return written


def _formats(text: str) -> list[Format]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in list(Format)]
    if unknown or not wanted:
        raise PluginError(f"--format {text}: use html, png or html,png")
    return [Format(part) for part in dict.fromkeys(wanted)]


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


def _require_plot_libraries(formats: list[Format]) -> None:
    from importlib.util import find_spec

    libraries = {Format.html: "plotly", Format.png: "matplotlib"}
    missing = [libraries[each] for each in formats if find_spec(libraries[each]) is None]
    if missing:
        raise PluginError(f"{' and '.join(missing)} not installed: run pip install 'tuning-operator[plot]'")


def _resource(kubectl: Kubectl, study: str) -> Any:
    """Return the TuningStudy. Raises PluginError with a fix."""
    try:
        return kubectl.json("get", f"{names.PLURAL}.{names.GROUP}", study)
    except KubectlError as error:
        raise _no_study(kubectl, study, error) from None


def _no_study(kubectl: Kubectl, study: str, error: KubectlError) -> PluginError:
    if "doesn't have a resource type" in error.stderr:
        return PluginError(
            "the cluster does not know the resource TuningStudy: install the operator, or use another "
            "--context"
        )
    if error.not_found:
        where = f"not found in namespace {kubectl.current_namespace()}"
        return PluginError(f'study "{study}" {where}; `kubectl get tuningstudies -A` lists all studies')
    return error


def _as_text(data: Any, output: Output) -> str:
    if output is Output.json:
        return json.dumps(data, indent=2)
    import yaml

    return yaml.safe_dump(data, sort_keys=False)


def main() -> None:
    """Run the plugin."""
    try:
        app(prog_name="kubectl tuning")
    except PluginError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
