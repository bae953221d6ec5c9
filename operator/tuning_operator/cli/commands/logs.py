"""The command `logs`."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from queue import SimpleQueue
from typing import Annotated

import typer

from tuning_operator.cli import NotFoundError, PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.commands.trials import State
from tuning_operator.cli.commands.watch import updates
from tuning_operator.cli.studies import ENDED, STOPPED, Resource, Run, Studies
from tuning_operator.cli.text.status_text import headline
from tuning_operator.resource import names

COLORS = ("cyan", "green", "yellow", "magenta", "blue", "red")
UPDATE_SECONDS = 2.0
"""How often to look whether trials have started."""


def logs(
    studies: Studies,
    study: Study,
    trials: Annotated[
        list[str] | None,
        typer.Argument(metavar="TRIAL", help="Numbers of trials, or `refit`.", show_default=False),
    ] = None,
    state: Annotated[
        list[State] | None, typer.Option(help="All trials in this state; can be repeated.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Wait for the trials to start, and print until they end. Without TRIAL: all that run, and "
            "those that start until the study ends.",
        ),
    ] = False,
) -> None:
    """Print the logs of trials or the refit, including finished ones as long as their logs are kept.

    If there are several, each log has a header that says how the trial ended. With `-f`, lines are printed as
    they come, with the number of their trial.

    Examples:

        {program} logs mnist 7

        {program} logs mnist --state failed

        {program} logs mnist -f

        {program} logs mnist refit
    """
    runs = [_run(text) for text in trials or ()]
    if not (runs or state or follow):
        message = f"name trials, or use --state, for example `{studies.program} logs {study} --state failed`"
        raise typer.BadParameter(f"{message}; -f follows all that run", param_hint="TRIAL")
    if state and (runs or follow):
        raise typer.BadParameter("use it without TRIAL and without -f", param_hint="--state")
    found = studies.get(study)
    if len(runs) == 1:
        for line in studies.log(found, runs[0], follow=follow):
            _write(line)
    elif follow:
        _follow(studies, found, runs)
    else:
        _print_in_turn(studies, found, runs, state)


def _run(text: str) -> Run:
    if text == names.REFIT:
        return "refit"
    if not text.isdecimal():
        raise typer.BadParameter("use the number of a trial, or refit", param_hint="TRIAL")
    return int(text)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_in_turn(
    studies: Studies, study: Resource, runs: Sequence[Run], states: Sequence[str] | None
) -> None:
    from tuning_operator.cli.trials import trials_of

    with studies.record(study) as reader:
        trials = {trial.number: trial for trial in trials_of(study, reader.read())}
    if states:
        runs = [number for number, trial in trials.items() if trial.state in states]
        if not runs:
            typer.echo(f"No {' or '.join(states)} trials.", err=True)
    for place, run in enumerate(runs):
        trial = trials.get(run) if isinstance(run, int) else None
        reason = f": {trial.reason.splitlines()[0]}" if trial and trial.reason else ""
        title = f"{_name(run)}, {trial.state}{reason}" if trial else _name(run)
        _write(("\n" if place else "") + f"==> {title} <==\n")
        try:
            for line in studies.log(study, run, follow=False):
                _write(line)
        except NotFoundError as error:
            typer.echo(f"({error})", err=True)


def _name(run: Run) -> str:
    return "refit" if run == names.REFIT else f"trial {run}"


def _follow(studies: Studies, study: Resource, runs: Sequence[Run]) -> None:
    """Print the logs of these runs, or of all that run until the study ends, each line with its run."""
    from tuning_operator.cli.text.grid import console

    colored = console().color_system is not None
    colors, prefixes = cycle(COLORS), dict[Run, str]()
    if not runs and study.get("status", {}).get("phase") in (*ENDED, STOPPED):
        typer.echo(f"No trial is running.\n{headline(study)}", err=True)
        return
    for run, line in _Readers(studies, study).lines(runs or _started(studies, study)):
        if run not in prefixes:
            prefix = f"[{_name(run)}]"
            prefixes[run] = typer.style(prefix, fg=next(colors)) if colored else prefix
        _write(f"{prefixes[run]} {line.rstrip()}\n")


def _started(studies: Studies, study: Resource) -> Iterator[Run]:
    """Yield the runs of a study that are running, and those that start, until it ends."""
    before: set[Run] = set()
    first = True
    for progress, note in updates(studies, study["metadata"]["name"], UPDATE_SECONDS):
        if note:
            typer.echo(note, err=True)
        refit = progress.study.get("status", {}).get("refit") or {}
        running: set[Run] = {trial.number for trial in (progress.running if first else progress.trials)}
        if refit.get("phase") == "Running":
            running.add("refit")
        yield from sorted(running - before, key=str)
        before |= {trial.number for trial in progress.trials} | running
        first = False


class _Readers:
    """Threads that read the logs of runs at the same time, and one that looks which runs there are."""

    def __init__(self, studies: Studies, study: Resource) -> None:
        self._studies, self._study = studies, study
        self._threads: list[threading.Thread] = []
        self._found = SimpleQueue[tuple[Run, str] | PluginError | None]()
        """What they find; None: one of them has ended."""

    def lines(self, runs: Iterable[Run]) -> Iterator[tuple[Run, str]]:
        """Yield the lines of the logs of runs, as they come. Raises PluginError."""
        self._start(self._read_all, runs)
        ended = 0
        while ended < len(self._threads):
            item = self._found.get()
            if isinstance(item, PluginError):
                raise item
            if item is None:
                ended += 1
            else:
                yield item

    def _start(self, target: Callable[..., None], argument: object) -> None:
        self._threads.append(threading.Thread(target=target, args=[argument], daemon=True))
        self._threads[-1].start()

    def _read_all(self, runs: Iterable[Run]) -> None:
        try:
            for run in runs:
                self._start(self._read, run)
        except PluginError as error:
            self._found.put(error)
        finally:
            self._found.put(None)

    def _read(self, run: Run) -> None:
        try:
            for line in self._studies.log(self._study, run, follow=True):
                self._found.put((run, line))
        except PluginError as error:
            self._found.put((run, f"error: {error}"))
        finally:
            self._found.put(None)
