"""The tables of docs/benchmarks.md as JSON, and its plots."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

Rows = Sequence[Mapping[str, str]]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Curves:
    """Columns of a table over another one."""

    x: str
    unit: str
    columns: Mapping[str, str]
    """The columns to draw, with their names in the legend."""

    yscale: Literal["log", "linear"] = "log"

    def draw(self, axes: Axes, rows: Rows) -> None:
        """Draw over a logarithmic scale."""
        for column, name in self.columns.items():
            known = [row for row in rows if row[column]]
            xs, ys = ([number(row[cell]) for row in known] for cell in (self.x, column))
            axes.plot(xs, ys, marker="o", label=name)
        axes.set(xlabel=self.x, ylabel=self.unit, xscale="log", yscale=self.yscale)
        if self.yscale == "linear":
            axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend()


@dataclass(frozen=True)
class Bars:
    """A column of a table, with a bar for each row."""

    name: str
    column: str

    def draw(self, axes: Axes, rows: Rows) -> None:
        """Draw from the top to the bottom."""
        values = [number(row[self.column]) for row in rows]
        bars = axes.barh([row[self.name] for row in rows], values)
        axes.bar_label(bars, [row[self.column] for row in rows], padding=3)
        axes.set(xlabel=self.column, xlim=(0, 1.2 * max(values)))
        axes.invert_yaxis()


def number(cell: str) -> float:
    """Return the number that a cell starts with."""
    found = NUMBER.match(cell)
    if found is None:
        raise ValueError(f"there is no number in {cell!r}")
    return float(found[0].replace(",", ""))


def tables(section: str) -> list[list[dict[str, str]]]:
    """Return the rows of each Markdown table of a section."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE):
        head, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        )
        found.append([dict(zip(head, line, strict=True)) for line in lines])
    return found


def as_json(sections: Mapping[str, str]) -> str:
    """Return what all sections have measured: for each, where, and the rows of its tables."""
    found = {}
    for title, section in sections.items():
        command, _, where = section.splitlines()[2].partition("; ")
        rows = [[_values(row) for row in table] for table in tables(section)]
        found[title] = {"command": command.strip("`"), "measured": where.removesuffix("."), "tables": rows}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _values(row: Mapping[str, str]) -> dict[str, Any]:
    """Return numbers without a unit as numbers."""
    return {name: number(cell) if NUMBER.fullmatch(cell) else (cell or None) for name, cell in row.items()}


def draw(plot: Curves | Bars, section: str, file: Path) -> None:
    """Draw the first table of a section."""
    with mpl.rc_context({"svg.hashsalt": file.name, "font.size": 9}):  # the same numbers give the same file
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        plot.draw(axes, tables(section)[0])
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})
