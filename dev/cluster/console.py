"""What a person sees of long work: one line a step, with its time, on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console

console = Console(stderr=True, highlight=False)


class Lacking(Exception):
    """The machine lacks something; the message says what, and the mend."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Show a step while it runs, and how long it took."""
    began = time.monotonic()
    if not console.is_terminal:
        console.print(f"  … {name}")
    with console.status(name):
        try:
            yield
        except BaseException:
            console.print(f"  [red]✗[/] {name} ({time.monotonic() - began:.0f} s)")
            raise
    console.print(f"  [green]✓[/] {name} ({time.monotonic() - began:.0f} s)")
