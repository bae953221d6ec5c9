"""The view of a study that runs: on a terminal it is redrawn in place, elsewhere it is lines."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuning_operator.cli.studies import metrics_of
from tuning_operator.cli.text.status_text import best_of, headline

if TYPE_CHECKING:
    from tuning_operator.local.progress import RunningTrial

QUIET = frozenset({"TrialPruned", "StudyRunning", "StudyStarted", "Running", "Completed", "Failed"})
"""Events that the view shows in another way."""
SHOWN_TRIALS = 12
BAR_WIDTH = 30


class View:
    """Shows a study's progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is redrawn; lines can still be printed."""
        if self._live:
            self._live.stop()
            self._live = None

    @property
    def is_live(self) -> bool:
        """Whether the running trials are shown."""
        return self._live is not None

    def say(self, text: str, style: str = "") -> None:
        """Print a line, above the view if there is one."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what happened."""
        if event["reason"] not in QUIET:
            warning = event["type"] == "Warning"
            self.say(event["message"], "yellow" if warning else "dim" if self._live else "")

    def update(self, study: Mapping[str, Any], running: Sequence["RunningTrial"]) -> None:
        """Show the study as it is now."""
        if self._live:
            self._live.update(_drawn(study, running), refresh=True)


def _drawn(study: Mapping[str, Any], running: Sequence["RunningTrial"]) -> RenderableType:
    counts = study.get("status", {}).get("trials") or {}
    done, wanted = _done(counts), study["spec"]["maxTrials"]
    head = Table.grid(padding=(0, 1))
    head.add_row(ProgressBar(total=wanted, completed=done, width=BAR_WIDTH), Text(headline(study)))
    parts: list[RenderableType] = [head]
    if best := _best(study):
        parts.append(Text(best, style="bold green"))
    if running:
        parts.append(_table(study, running))
    return Group(*parts)


def _done(counts: Mapping[str, int]) -> int:
    return sum(counts.get(kind, 0) for kind in ("complete", "pruned", "failed"))


def _best(study: Mapping[str, Any]) -> str | None:
    best = best_of(study)
    if isinstance(best, list):
        return f"Pareto front so far: {len(best)} {'trial' if len(best) == 1 else 'trials'}"
    if best is None:
        return None
    return (
        f"best so far: trial {best['number']}, {_listed(best['values'])} with {_listed(best['parameters'])}"
    )


def _table(study: Mapping[str, Any], running: Sequence["RunningTrial"]) -> Table:
    metrics = metrics_of(study)
    table = Table("TRIAL", "TIME", "STEP", metrics[0].upper() if len(metrics) == 1 else "VALUE", "PARAMETERS",
                  box=None, padding=(0, 2, 0, 0), header_style="bold")  # fmt: skip
    for trial in running[:SHOWN_TRIALS]:
        table.add_row(
            str(trial.number),
            _since(trial.started),
            "" if trial.step is None else str(trial.step),
            "" if trial.value is None else shown(trial.value),
            Text(_listed(trial.parameters), no_wrap=True, overflow="ellipsis"),
        )
    if len(running) > SHOWN_TRIALS:
        table.add_row(f"and {len(running) - SHOWN_TRIALS} more")
    return table


def _since(started: datetime | None) -> str:
    if started is None:
        return ""
    seconds = max(int((datetime.now(UTC) - started).total_seconds()), 0)
    return f"{seconds // 60}:{seconds % 60:02}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """Return a value as shown to people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
