"""The commands `run` and `rm`."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning_operator.cli import NotFoundError, PluginError

if TYPE_CHECKING:
    from tuning_operator.cli.local.view import View
    from tuning_operator.local.home import StudyFolder
    from tuning_operator.local.session import Manifest, Session, Settings

VIEW_SECONDS = 0.5
FAILED = 1
REFUSED = 2

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Folder with all local studies.",
        envvar="TUNING_HOME",
        show_default="~/.local/share/tuning",
    ),
]


def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Manifest, or folder with a kustomization.")],
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of GPUs to use. With 0, trials run without GPUs, whatever they request.",
            show_default="all",
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Python interpreter of the trials.", show_default="spec.trial.python, from PATH"),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Folder for a volume of the pod template; can be repeated."),
    ] = None,
    data: Data = None,
) -> None:
    """Run a study on this machine, from the same manifest as on a cluster. Trials run as processes.

    STUDY is a manifest, or a folder with a kustomization.yaml: the ConfigMaps that it generates are the
    study's code. Ctrl-C stops the trials. Run the same command again to continue. To run more trials after
    the study has completed, raise maxTrials.

    Exit codes: 0 the study and its refit completed, 1 one of them failed, 2 the manifest can't run on this
    machine, 128 + N signal N stopped it (130: Ctrl-C).

    Examples:

        {program} run examples/digits

        {program} run study.yaml --gpus 2 --python .venv/bin/python --volume data=/data/images
    """
    from rich.console import Console

    from tuning_operator.cli.local.view import View

    console = Console(highlight=False)
    with _explained(REFUSED):
        manifest, folder, settings = _prepare(study, gpus, python, volume or [], data)
    with _explained(FAILED), View(console) as view:
        _announce(view, manifest, settings)
        try:
            code = _run(view, folder, manifest, settings)
        except KeyboardInterrupt:  # before the trials have started, or after they have ended
            code = 128 + signal.SIGINT
    raise typer.Exit(code)


def rm(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    data: Data = None,
) -> None:
    """Delete a local study: its record, logs, results and plots."""
    from tuning_operator.local.home import home

    folder = home(data, os.environ).study(study)
    if folder.read() is None:
        raise NotFoundError(f'study "{study}" not found in {folder.path.parent}: `tuning list` lists studies')
    from tuning_operator.local.session import remove

    with _explained(FAILED):
        remove(folder)
    typer.echo(f"{study} deleted")


@contextlib.contextmanager
def _explained(code: int) -> Iterator[None]:
    """Turn errors of the local mode into those of commands."""
    from tuning_operator.local import LocalError

    try:
        yield
    except LocalError as error:
        problem = PluginError(str(error))
        problem.code = code
        raise problem from None


def _prepare(
    study: Path, gpus: int | None, python: str | None, volumes: list[str], data: Path | None
) -> "tuple[Manifest, StudyFolder, Settings]":
    from tuning_operator.cli.local.manifests import check, check_changes, read
    from tuning_operator.cli.local.studies import require_local_mode

    require_local_mode()
    from tuning_operator.local.gpus import Gpus, lock_names, visible_gpus
    from tuning_operator.local.home import home
    from tuning_operator.local.pods import Machine
    from tuning_operator.local.session import Manifest, Settings, check_machine

    given, place = read(study), home(data, os.environ)
    check(given)
    folder = place.study(given.document.data["metadata"]["name"])
    check_changes(given, folder.read())
    manifest = Manifest(given.file, folder.changed(given.document.data))
    devices = [] if gpus == 0 else _chosen(gpus, visible_gpus(os.environ))
    machine = Machine(
        given.file.parent,
        given.config_maps,
        dict(map(_volume, volumes)),
        dict(os.environ),
        len(devices),
        gpus_chosen=gpus is not None,
    )
    settings = Settings(machine, Gpus(lock_names(devices, os.environ), place.gpus), python)
    check_machine(manifest, settings)
    return manifest, folder, settings


def _chosen(gpus: int | None, devices: list[str]) -> list[str]:
    """Return the GPUs to use; a number beyond those that were found names GPUs that nvidia-smi does not."""
    if gpus is None or gpus <= len(devices):
        return devices[:gpus]
    return [*devices, *(str(number) for number in range(gpus) if str(number) not in devices)][:gpus]


def _volume(text: str) -> tuple[str, Path]:
    from tuning_operator.local import LocalError

    name, _, path = text.partition("=")
    if not name or not path:
        raise LocalError(f"--volume {text}: use NAME=PATH, for example data=/data/images.")
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise LocalError(f"--volume {text}: {folder} is not a folder: create it, or correct the path.")
    return name, folder


def _announce(view: "View", manifest: "Manifest", settings: "Settings") -> None:
    from tuning_operator.local.session import ignored_fields

    if fields := ignored_fields(manifest, settings):
        view.say(f"No effect on this machine: {', '.join(fields)}", "dim")


def _run(view: "View", folder: "StudyFolder", manifest: "Manifest", settings: "Settings") -> int:
    from tuning_operator.local.session import Listener, opened

    def stopping(number: int) -> None:
        view.say(
            f"{signal.Signals(number).name}: stopping the trials. Send it again to end them immediately.",
            "yellow",
        )

    listener = Listener(
        on_event=view.event,
        on_waiting=lambda: view.say("Waiting for trials that a killed `tuning run` left behind to end"),
        on_stopping=stopping,
    )
    with opened(folder, manifest, settings, listener) as session:
        asyncio.run(_until_end(view, session, folder, listener))
        record = _kept_record(view, session, folder)
        if record and session.stopped_by is None and session.is_over:
            _draw_plots(view, session, folder, record)
    view.close()
    return _conclude(view, session, folder, manifest)


async def _until_end(view: "View", session: "Session", folder: "StudyFolder", listener: Any) -> None:
    from tuning_operator.local.session import run as run_session

    showing = asyncio.ensure_future(_show(view, session, folder))
    try:
        await run_session(session, folder, listener)
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show(view: "View", session: "Session", folder: "StudyFolder") -> None:
    from tuning_operator.local.home import NAMESPACE
    from tuning_operator.local.progress import running_trials
    from tuning_operator.protocol import StudyKey

    while view.is_live:
        view.update(session.body, await running_trials(session.server, StudyKey(NAMESPACE, folder.name)))
        await asyncio.sleep(VIEW_SECONDS)


def _kept_record(view: "View", session: "Session", folder: "StudyFolder") -> bytes | None:
    """Keep the record, so that commands that only read it need no database; return it, if there is one."""
    from tuning_operator.cli.local.studies import fetch
    from tuning_operator.local.home import write_private

    try:
        record = fetch(session.server.address, folder.name)
        write_private(folder.record, record)
    except NotFoundError:  # no trial has started
        return None
    except (PluginError, OSError) as error:
        view.say(f"record.json was not written: {error}. `tuning trials` will start the database.", "yellow")
        return None
    return record


def _draw_plots(view: "View", session: "Session", folder: "StudyFolder", record: bytes) -> None:
    from importlib.util import find_spec

    if find_spec("plotly") is None:
        return
    from tuning_operator.cli.commands.plot import save_plots
    from tuning_operator.cli.local.studies import parsed

    newest = folder.plots / "optimization-history.html"
    if newest.exists() and not session.has_changed:
        return
    view.update(session.body, [])
    save_plots(parsed(record), session.body, folder.plots)


def _conclude(view: "View", session: "Session", folder: "StudyFolder", manifest: "Manifest") -> int:
    """Print how the study ended; return the exit code."""
    from tuning_operator.cli.text.status_text import best_of, blocking_conditions, headline
    from tuning_operator.cli.text.tables import show_best

    body, status = session.body, session.body.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    if conditions.get("Accepted", {}).get("status") == "False":
        error = PluginError(f"{manifest.file} is not valid: {conditions['Accepted']['message']}")
        error.code = REFUSED
        raise error
    best = best_of(body)
    if best is not None:
        show_best(body, best, "tuning")
    else:
        view.say(headline(body))
        for text in blocking_conditions(body):
            view.say(text, "red")
    _say_places(view, folder)
    if session.stopped_by is not None:
        view.say("Stopped. The same command continues the study.", "yellow")
        return 128 + session.stopped_by
    refit_failed = (status.get("refit") or {}).get("phase") == "Failed"
    return FAILED if refit_failed or status.get("phase") != "Completed" else 0


def _say_places(view: "View", folder: "StudyFolder") -> None:
    if folder.plots.is_dir():
        view.say(f"Plots:   {folder.plots}{os.sep}*.html")
    if folder.runs.is_dir():
        view.say(f"Results: {folder.runs} (a folder for each trial, with its log and the files it wrote)")
