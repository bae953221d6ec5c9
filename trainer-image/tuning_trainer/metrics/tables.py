"""Tables that programs print: with pipes or lines, by columns, as CSV."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Union

from tuning_trainer.metrics.values import Unreadable, read_value

if TYPE_CHECKING:
    from collections.abc import Iterable

Cells = list[tuple[str, Union[str, Unreadable]]]
"""Cells with the names that they have."""

OF_CLASSES = frozenset({"precision", "recall", "support"})
"""Columns of scikit-learn's classification report, with a row for each class, and for averages."""

_PIPES = re.compile(r"[|│┃║]")
_SPLITS = (
    _PIPES,
    re.compile(r";"),
    re.compile(r","),
    re.compile(r"\s{2,}|\t"),
    re.compile(r"\s+"),
)
_NUMERAL = re.compile(
    r"[-+]?[0-9][0-9.,:/%_'eE+\-]*|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?%?|[-+]?(?:nan|inf)|none|null|-",
    re.IGNORECASE,
)


class Table:
    """The table that a stream of lines is in, if it is in one with a column or a row for a metric."""

    def __init__(self, metrics: Iterable[str]) -> None:
        self._names = {name.casefold() for name in metrics}
        self._columns: list[str] = []
        self._split = _PIPES
        self._has_rows = False
        self._indented = self._bordered = False

    def read(self, line: str) -> Cells | None:
        """Return a row's cells by column, or a metric and the one number beside it; None for other lines."""
        if not any(map(str.isalnum, line)):
            return None  # a rule of the table, or a blank line
        row = self._row(line) if self._columns else None
        if row is not None:
            self._has_rows = True
            return row
        if self._split is not _PIPES and not self._has_rows:
            self._columns = []  # a sentence: a row would follow at once
        cells = _cells(_PIPES, line)
        place = next((i for i, cell in enumerate(cells) if cell.casefold() in self._names), None)
        if place is not None and len(cells) > 1:
            numbers = [cell for cell in cells[place + 1 :] if read_value(cell) is not None]
            if numbers:
                several = Unreadable(f"{', '.join(numbers)}: the row has several values")
                return [(cells[place], numbers[0] if len(numbers) == 1 else several)]
        self._begin(line)
        return None

    def _row(self, line: str) -> Cells | None:
        cells = _cells(self._split, line)
        if self._split is _PIPES and _is_bordered(line) != self._bordered:
            return None
        if self._indented and len(cells) == len(self._columns) + 1 and cells[0].isdecimal():
            del cells[0]  # a data frame's index has no heading
        numerals = [cell for cell in cells if _NUMERAL.fullmatch(cell)]
        complete = numerals if self._split is _PIPES else len(numerals) == len(cells)
        return list(zip(self._columns, cells)) if complete and len(cells) == len(self._columns) else None

    def _begin(self, line: str) -> None:
        for split in _SPLITS:
            cells = _cells(split, line)
            named = any(cell.casefold() in self._names for cell in cells)
            by_class = OF_CLASSES.issubset(map(str.casefold, cells))
            if named and not by_class and cells != [line.strip()] and not any(map(_NUMERAL.fullmatch, cells)):
                self._columns, self._split, self._has_rows = cells, split, False
                self._indented = split is not _PIPES and line[:1].isspace()
                self._bordered = _is_bordered(line)
                if split is _SPLITS[3]:
                    self._split = _SPLITS[4]  # wide gaps are for names with spaces; numbers have none
                return


def _is_bordered(line: str) -> bool:
    return _PIPES.match(line.lstrip()) is not None


def _cells(split: re.Pattern[str], line: str) -> list[str]:
    cells = [cell.strip() for cell in split.split(line.strip())]
    if split is _PIPES and len(cells) > 1:
        cells = cells[not cells[0] : len(cells) - (not cells[-1])]
    return cells
