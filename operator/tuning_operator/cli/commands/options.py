"""Options that commands share."""

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tuning_operator.cli import PluginError
from tuning_operator.cli.studies import Place, Studies


def _studies_to_complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of studies that start like this; none if they can't be listed."""
    connect: Callable[[Place], Studies] = ctx.find_root().obj
    given = (ctx.params.get(name) for name in ("namespace", "context", "kubeconfig"))
    try:
        found = connect(Place(*given)).list_studies()
    except PluginError:
        return []
    names = [study["metadata"]["name"] for study in found]
    return [name for name in names if name.startswith(incomplete)]


Study = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="Name of the TuningStudy.", autocompletion=_studies_to_complete),
]
TrialNumber = Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.")]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace of the study. Defaults to that of the context."),
]
Context = Annotated[str | None, typer.Option(help="Kubeconfig context to use.")]
Kubeconfig = Annotated[str | None, typer.Option(help="Path of the kubeconfig.")]


def on_studies(command: Callable[..., None], *, of_cluster: bool = True) -> Callable[..., None]:
    """Have a command get the studies as its first argument, and those of a cluster the options of kubectl.

    The context's object is the function that returns the studies of a place.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    own = [parameter for name, parameter in parameters.items() if name != "studies"]

    def run(
        *,
        ctx: typer.Context,
        namespace: Namespace = None,
        context: Context = None,
        kubeconfig: Kubeconfig = None,
        **arguments: Any,
    ) -> None:
        connect: Callable[[Place], Studies] = ctx.obj
        command(connect(Place(namespace, context, kubeconfig)), **arguments)

    ctx, *places, _ = inspect.signature(run, eval_str=True).parameters.values()
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    signature = inspect.Signature(
        [
            parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for parameter in (ctx, *own, *(places if of_cluster else ()))
        ]
    )
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run


def print_data(data: Any, output: str) -> None:
    """Print data as `json` or `yaml`."""
    if output == "json":
        typer.echo(json.dumps(data, indent=2))
    else:
        from tuning_operator.cli.text.yaml_text import yaml_of

        typer.echo(yaml_of(data).rstrip())
