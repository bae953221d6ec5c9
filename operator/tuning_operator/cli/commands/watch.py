"""The command `watch`."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tuning_operator.cli import NotFoundError, NotReachableError, PluginError
from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.studies import STOPPED, Record, Studies
from tuning_operator.cli.text import status_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuning_operator.cli.progress import Progress


def watch(
    studies: Studies,
    study: Study,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
) -> None:
    """Follow a study until it and its refit have ended: progress, running trials, best so far, time left.

    Without a terminal, a line is printed for each change. The exit code is 1 if the study or its refit fails.

    Examples:

        {program} watch mnist

        {program} watch mnist && {program} best mnist -o json > best.json
    """
    from rich.console import Console

    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt):  # the study goes on
        progress = _follow_live(studies, study, interval) if console.is_terminal else None
        progress = progress or _follow_in_lines(studies, study, interval)
        if progress.phase == STOPPED:
            raise PluginError(f"{study} is not running: to continue it, use `tuning run` with its manifest")
        if progress.failed:
            raise typer.Exit(1)


def _follow_live(studies: Studies, study: str, interval: float) -> "Progress":
    from rich.live import Live

    from tuning_operator.cli.text.live import view

    with Live(auto_refresh=False) as live:
        for progress, note in updates(studies, study, interval):
            live.update(view(progress, note), refresh=True)
    return progress


def _follow_in_lines(studies: Studies, study: str, interval: float) -> "Progress":
    last = None
    for progress, note in updates(studies, study, interval):
        line = note or status_text.headline(progress.study)
        if line != last:
            typer.echo(line)
        last = line
    return progress


def updates(studies: Studies, study: str, interval: float) -> "Iterator[tuple[Progress, str]]":
    """Yield the study's progress and a note about the connection, until the study is over."""
    from tuning_operator.cli.progress import Progress

    progress = Progress(studies.get(study))  # a study that does not exist is an error
    with _Connection(studies) as connection:
        while True:
            note = ""
            try:
                progress.study = studies.get(study)
                connection.read(progress)
            except PluginError as error:
                if error.code != NotReachableError.code:
                    raise
                note = f"no connection, trying again: {str(error).splitlines()[0]}"
            yield progress, note
            if progress.over and not note:
                return
            time.sleep(interval)


class _Connection(contextlib.ExitStack):
    """A connection to a study's record that is made again after a failure."""

    def __init__(self, studies: Studies) -> None:
        super().__init__()
        self._studies = studies
        self._record: Record | None = None

    def read(self, progress: "Progress") -> None:
        """Read what is new. Raises PluginError."""
        try:
            if self._record is None:
                self._record = self.enter_context(self._studies.record(progress.study))
            progress.read(self._record)
        except NotFoundError:  # before the first trial
            return
        except PluginError:
            self.close()
            self._record = None
            raise
