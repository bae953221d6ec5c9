"""The command `init`."""

import os
from pathlib import Path
from typing import Annotated

import typer


def init(
    ctx: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Optuna script, for example train.py.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGUMENTS]...",
            help="Arguments of the script, after `--`, for example init train.py -- --epochs 3.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Path of the manifest.", show_default="study.yaml beside the script")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study.", show_default="from the script")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of the trials.", show_default="the operator's trainer image")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs per trial.", show_default="1; with `tuning` on a machine without GPUs, 0"
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python that runs the script on this machine.", show_default="python")
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="study_name of the study to tune (or its position, if it has no name), if the script "
            "optimizes several.",
            show_default="the only one",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Create a study's manifest from an Optuna script. The script runs until it calls `study.optimize`."""
    from tuning_operator.cli.scripts.init import Request
    from tuning_operator.cli.scripts.init import init as make

    here = ctx.find_root().info_name == "tuning"
    if gpus is None:
        gpus = _default_gpus() if here else 1
    result = make(Request(script, arguments or [], out, name, image, gpus, python, study, force))
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    for file in result.files:
        typer.echo(file)
    start = "tuning run" if here else "kubectl apply -k"
    typer.echo(f"{start} {script.parent}   # starts the study {result.name}", err=True)


def _default_gpus() -> int:
    """Return how many GPUs a trial gets on this machine unless `--gpus` says otherwise."""
    from tuning_operator.local.gpus import visible_gpus  # it needs fcntl, which Windows lacks

    return 1 if visible_gpus(os.environ) else 0
