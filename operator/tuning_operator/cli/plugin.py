"""The plugin `kubectl tuning`: what people ask of their studies from a terminal."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning_operator.cli import standing
from tuning_operator.cli.errors import PluginError
from tuning_operator.cli.kubectl import Kubectl, KubectlError
from tuning_operator.resource import names

if TYPE_CHECKING:
    from tuning_operator.cli.plots import Drawing
    from tuning_operator.protocol import FinishedStudy

app = typer.Typer(
    name="kubectl tuning",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tune models on Kubernetes: start a study from a script, see its best trial, draw its plots.",
)

IMAGE = "tuning-trainer:dev"
"""What trainer-image/Dockerfile makes."""

Study = Annotated[str, typer.Argument(metavar="STUDY", help="The TuningStudy's name.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="The study's namespace; the context's, if left out.")
]
Context = Annotated[str | None, typer.Option(help="The context of the kubeconfig to use.")]
Kubeconfig = Annotated[str | None, typer.Option(help="The kubeconfig to use.")]


class Output(StrEnum):
    """How programs want it."""

    json = "json"
    yaml = "yaml"


class Form(StrEnum):
    """A plot's file format."""

    html = "html"
    png = "png"


class PlotName(StrEnum):
    """The plots, as tuning_operator.cli.plots has them: named here, so that help needs no Optuna."""

    optimization_history = "optimization-history"
    param_importances = "param-importances"
    parallel_coordinate = "parallel-coordinate"
    slice = "slice"
    intermediate_values = "intermediate-values"
    pareto_front = "pareto-front"


@app.command()
def best(
    study: Study,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="For programs.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the best trial, or the Pareto front of several objectives."""
    found = _resource(Kubectl(namespace, context, kubeconfig), study)
    trials = standing.best_of(found)
    if trials is None:
        raise PluginError(standing.missing_best(found))
    if output is None:
        from tuning_operator.cli.tables import show_best

        show_best(found, trials)
    else:
        typer.echo(_dumped(trials, output).rstrip())


@app.command()
def plot(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to.", show_default="STUDY-plots")
    ] = None,
    plots: Annotated[
        list[PlotName] | None,
        typer.Option(
            "--plot", metavar="NAME", help=f"Only this one (several times: these): {', '.join(PlotName)}."
        ),
    ] = None,
    formats: Annotated[str, typer.Option("--format", metavar="html,png", help="What to write.")] = "html,png",
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Draw the study's plots, as Optuna draws them."""
    chosen = _formats(formats)
    _require_plot_libraries(chosen)
    kubectl = Kubectl(namespace, context, kubeconfig)
    found = _resource(kubectl, study)
    from tuning_operator.cli.record import fetch_record

    record = fetch_record(kubectl, found["metadata"]["namespace"], study)
    folder = out or Path(f"{study}-plots")
    if not _draw(record, standing.metrics_of(found), plots or list(PlotName), folder, chosen):
        raise PluginError(f"nothing could be drawn of {study}")


@app.command()
def init(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="An Optuna script, for example train.py.")],
    out: Annotated[
        Path | None, typer.Option(help="The manifest.", show_default="study.yaml beside the script")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The study's name.", show_default="the script's")] = None,
    image: Annotated[str, typer.Option(help="The image that the trials run in.")] = IMAGE,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each trial.")] = 1,
    python: Annotated[
        str | None, typer.Option(help="The Python that runs the script here.", show_default="python")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a study's manifest from an Optuna script: runs it here, up to its `optimize`."""
    from tuning_operator.cli.init import Request
    from tuning_operator.cli.init import init as make

    made = make(Request(script, out, name, image, gpus, python, force))
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    for file in made.files:
        typer.echo(file)
    typer.echo(f"kubectl apply -k {script.parent}   # starts the study {made.name}", err=True)


def _draw(
    record: "FinishedStudy", metrics: list[str], plots: list[PlotName], folder: Path, formats: list[Form]
) -> int:
    """Draw plots and tell what was written and what could not be; return how many files were written."""
    import optuna

    from tuning_operator.cli.plots import Missing, drawings, left_out

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    if infinite := left_out(record):
        typer.echo(f"{infinite} complete trials are left out: their value is infinite", err=True)
    written = 0
    for drawing in drawings(record, metrics, plots):
        if isinstance(drawing, Missing):
            typer.echo(f"no {drawing.name}: {drawing.reason}", err=True)
        else:
            written += _write(drawing, folder, formats)
    return written


def _write(drawing: "Drawing", folder: Path, formats: list[Form]) -> int:
    """Write a plot in each format and tell it; return how many files were written."""
    from tuning_operator.cli.plots import write

    if drawing.remark:
        typer.echo(f"{drawing.name}: {drawing.remark}", err=True)
    written = 0
    for form in formats:
        try:
            typer.echo(write(drawing, folder, form.value))
        except Exception as error:  # noqa: BLE001  whatever Optuna's drawing raises: the others are still drawn
            typer.echo(f"no {drawing.name}.{form}: {type(error).__name__}: {error}", err=True)
        else:
            written += 1
    return written


def _formats(text: str) -> list[Form]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in list(Form)]
    if unknown or not wanted:
        raise PluginError(f"--format {text}: give html, png, or html,png")
    return [Form(part) for part in dict.fromkeys(wanted)]


def _require_plot_libraries(formats: list[Form]) -> None:
    from importlib.util import find_spec

    libraries = {Form.html: "plotly", Form.png: "matplotlib"}
    missing = [libraries[form] for form in formats if find_spec(libraries[form]) is None]
    if missing:
        raise PluginError(
            f"not installed here: {', '.join(missing)}. Do: pip install 'tuning-operator[plot]'"
        )


def _resource(kubectl: Kubectl, study: str) -> Any:
    """Return the TuningStudy. Raises PluginError with the mend."""
    try:
        return kubectl.json("get", f"{names.PLURAL}.{names.GROUP}", study)
    except KubectlError as error:
        raise PluginError(_no_study(error, study)) from None


def _no_study(error: KubectlError, study: str) -> str:
    if "doesn't have a resource type" in error.said:
        return "this cluster has no TuningStudy: install the operator, or choose another --context"
    if error.not_found:
        return f"there is no study {study} here: `kubectl get tuningstudies -A` shows all; give -n NAMESPACE"
    return str(error)


def _dumped(data: Any, output: Output) -> str:
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
