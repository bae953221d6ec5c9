"""Progress output on standard error: one line per step, with the time that it took."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

console = Console(stderr=True, highlight=False)


class RequirementError(Exception):
    """The machine doesn't meet a requirement; the message says which, and what to do."""


class _Board:
    """The steps in progress, each with its elapsed time. Steps may nest and run in parallel threads."""

    def __init__(self) -> None:
        self._columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def add(self, name: str) -> TaskID:
        with self._lock:
            if self._progress is None:
                self._progress = Progress(*self._columns, console=console, transient=True)
                self._progress.start()
            return self._progress.add_task(escape(name), total=None)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            if self._progress is None:
                return
            self._progress.remove_task(task)
            if not self._progress.tasks:
                self._progress.stop()
                self._progress = None


_board = _Board()


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Show a step while it runs, then the time that it took."""
    began = time.monotonic()
    if not console.is_terminal:
        console.print(f"  … {escape(name)}")
    task = _board.add(name) if console.is_terminal else None
    mark = "[red]✗[/]"
    try:
        yield
        mark = "[green]✓[/]"
    finally:
        if task is not None:
            _board.remove(task)
        console.print(f"  {mark} {escape(name)} ({time.monotonic() - began:.0f} s)")


def note(text: str) -> None:
    """Print a line that explains the steps that follow."""
    console.print(f"  [yellow]i[/] {escape(text)}")
