"""Tables like kubectl's: never cut, with colors on a terminal only."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

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


def console() -> Console:
    """Return a console for standard output, on which long lines are wrapped by the terminal."""
    return Console(highlight=False, soft_wrap=True)


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; cells that are states or phases are colored."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, STATE_STYLES.get(cell, "")) for cell in row))
    return table


def print_grid(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, as wide as it is."""
    out, table = console(), grid(headers, rows)
    out.width = max(out.width, out.measure(table, options=out.options.update(max_width=100_000)).maximum)
    out.print(table)
