"""Tables like kubectl's: never cut, with colors on a terminal only."""

from collections.abc import Iterable, Sequence

import typer
from rich.cells import cell_len
from rich.console import Console

STATE_STYLES = {
    "complete": "green",
    "Completed": "green",
    "pruned": "yellow",
    "Suspended": "yellow",
    "failed": "red",
    "Failed": "red",
    "running": "cyan",
    "Running": "cyan",
}
"""Colors of trials' states and studies' phases."""


GAP = 3
"""Spaces between columns, as in kubectl's tables."""


def console() -> Console:
    """Return a console for standard output: the terminal wraps long lines, and `:100:` stays as it is."""
    return Console(highlight=False, soft_wrap=True, emoji=False)


def print_pairs(out: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns, each pair in one line however long it is."""
    rows = list(pairs)
    width = max((cell_len(name) for name, _ in rows), default=0)
    for name, value in rows:
        out.print(f"  {name}{' ' * (width - cell_len(name))}    {value}", markup=False)


def print_grid(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, as wide as it is. Not by rich, which takes a millisecond for each row."""
    out = console()
    colored = out.is_terminal and not out.no_color
    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    lines = []
    for row in (headers, *rows):
        cells = [f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(row, widths, strict=True)]
        if colored:
            cells = [
                typer.style(padded, fg=STATE_STYLES.get(cell), bold=row is headers)
                for padded, cell in zip(cells, row, strict=True)
            ]
        lines.append((" " * GAP).join(cells).rstrip())
    typer.echo("\n".join(lines), color=colored)
