"""A running study as it is shown by `watch`."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuning_operator.cli.progress import Progress
from tuning_operator.cli.text import status_text
from tuning_operator.cli.text.grid import GAP, STATE_STYLES
from tuning_operator.cli.text.values import NOTHING, pairs, shown, span

MOST_RUNNING = 15
"""The most running trials that are listed."""


def view(progress: Progress, note: str = "") -> Group:
    """Return the study as it is now, with a note below, for example on a lost connection."""
    parts: list[RenderableType] = [_title(progress), _bar(progress), _facts(progress)]
    if running := progress.running:
        parts += [Text(), _running(progress)]
        if len(running) > MOST_RUNNING:
            parts.append(Text(f"and {len(running) - MOST_RUNNING} more"))
    parts += [Text(line, "red") for line in status_text.blocking_conditions(progress.study)]
    return Group(*parts, *([Text(note, "yellow")] if note else []))


def _title(progress: Progress) -> Text:
    phase = progress.phase or status_text.before_begin(progress.study)
    name = progress.study["metadata"]["name"]
    return Text(f"{name}  ", "bold") + Text(phase, STATE_STYLES.get(phase, "default"))


def _bar(progress: Progress) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_column()
    row.add_column(no_wrap=True)  # on a narrow terminal, the bar is shorter
    bar = ProgressBar(total=progress.total, completed=progress.finished, width=40)
    states = [trial.state for trial in progress.trials]
    counts = Text(f"{progress.finished}/{progress.total} trials")
    for state in dict.fromkeys(("complete", "pruned", "failed", "running", "waiting")):
        if number := states.count(state):
            counts += Text(", " if len(counts) > 12 else "  ") + Text(
                f"{number} {state}", STATE_STYLES.get(state, "")
            )
    row.add_row(bar, counts)
    return row


def _facts(progress: Progress) -> Table:
    rows = Table.grid(padding=(0, 2))
    for name, value in _lines(progress):
        rows.add_row(Text(name, "bold"), Text(value))
    return rows


def _lines(progress: Progress) -> Iterator[tuple[str, str]]:
    best = status_text.best_of(progress.study)
    if isinstance(best, list):
        yield "Best", f"Pareto {progress.study['status']['bestValue']}"
    elif best:
        values = ", ".join(f"{metric} {shown(value)}" for metric, value in best["values"].items())
        yield "Best", f"{values} (trial {best['number']})  {pairs(best['parameters'].items())}"
    if rate := progress.rate():
        left = progress.remaining()
        until = "" if left is None else f", about {span(left)} left"
        yield "Rate", f"{rate * 60:.3g} trials/min{until}"
    if hours := progress.gpu_hours():
        used, saved = hours
        yield "GPU time", f"{span(used * 3600)} used, about {span(saved * 3600)} saved by pruning"
    if refit := progress.study.get("status", {}).get("refit"):
        yield "Refit", " ".join(filter(None, (refit["phase"], refit.get("message"), refit.get("model"))))


def _running(progress: Progress) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for header in ("RUNNING", "FOR", "STEP", "VALUE"):
        table.add_column(header, no_wrap=True)
    table.add_column("PARAMETERS")  # on a narrow terminal, only this column is cut
    for trial in progress.running[:MOST_RUNNING]:
        table.add_row(
            str(trial.number),
            NOTHING if trial.seconds is None else span(trial.seconds),
            NOTHING if trial.last_step is None else str(trial.last_step),
            NOTHING if trial.last_value is None else shown(trial.last_value),
            Text(pairs(trial.record.parameters.items()), no_wrap=True, overflow="ellipsis"),
        )
    return table
