"""Optuna's plotly plots as text: points, lines and bars."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import plotext

from tuning_operator.cli.plots.drawing import Drawing, log_ticks
from tuning_operator.cli.plots.html import figure_of

HEIGHT = 15
"""Lines of a plot with axes."""
POINT = "●"
LINE = "braille"
MOST_TICKS = 7
DRAWABLE = (
    "plot_optimization_history",
    "plot_param_importances",
    "plot_slice",
    "plot_intermediate_values",
    "plot_edf",
    "plot_hypervolume_history",
    "plot_terminator_improvement",
)
"""Optuna's functions whose plots have points, lines or bars of two dimensions."""


def can_draw(drawing: Drawing) -> bool:
    """Return whether a plot can be drawn as text."""
    flat_front = drawing.function == "plot_pareto_front" and len(drawing.study.directions) == 2
    return drawing.function in DRAWABLE or flat_front


def text_of(drawing: Drawing, width: int, *, colors: bool) -> str:
    """Draw a plot, or one below the other if it has several panels."""
    figure = figure_of(drawing)
    if drawing.function == "plot_param_importances":
        return "\n".join([drawing.title, *_bars(figure.data[0], width)])
    traces: dict[str, list[Any]] = {}
    for trace in figure.data:
        traces.setdefault(trace.xaxis or "x", []).append(trace)
    panels = [_panel(figure, name, found, width) for name, found in traces.items()]
    text = "\n".join([drawing.title, *panels])
    return text if colors else str(plotext.uncolorize(text))


def _bars(trace: Any, width: int) -> Iterator[str]:
    margin = max(len(str(name)) for name in trace.y)
    longest = max(*trace.x, 1e-12)
    for name, value in reversed([*zip(trace.y, trace.x, strict=True)]):
        length = round(value / longest * max(width - margin - 10, 10))
        yield f"{name:>{margin}} {'█' * length or '▏'} {value:.3f}"


def _panel(figure: Any, name: str, traces: Sequence[Any], width: int) -> str:
    horizontal = figure.layout[name.replace("x", "xaxis", 1)]
    vertical = figure.layout[(traces[0].yaxis or "y").replace("y", "yaxis", 1)]
    canvas = plotext.figure
    canvas.clear()
    canvas.theme("simple")
    canvas.plot_size(width, HEIGHT)
    columns = _Axis(horizontal, [trace.x for trace in traces])
    rows = _Axis(vertical, [trace.y for trace in traces])
    for trace in sorted(traces, key=_is_line, reverse=True):  # points on top
        points = zip(columns.places(trace.x), rows.places(trace.y), strict=True)
        shown = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        lines = _is_line(trace)
        if shown:
            signal = canvas.signal(*zip(*shown, strict=True), marker=LINE if lines else POINT)
            if lines:
                signal.lines()
            canvas.draw(signal)
    for axis, made in enumerate((columns, rows)):
        if made.ticks:
            canvas.ruler(axis, 0).ticks(*map(list, zip(*made.ticks.items(), strict=True)))
    canvas.label(horizontal.title.text, "x")
    canvas.label(vertical.title.text or figure.layout.yaxis.title.text, "y")
    return str(canvas.build()).rstrip("\n")


def _is_line(trace: Any) -> bool:
    return "lines" in (trace.mode or "lines")


class _Axis:
    """Where values are on an axis: numbers, also on a logarithmic scale, or names."""

    def __init__(self, axis: Any, given: Sequence[Sequence[Any] | None]) -> None:
        values = [*itertools.chain.from_iterable(each for each in given if each is not None)]
        self._names: list[Any] = []
        self._log = axis.type == "log"
        self.ticks: dict[float, str] = {}
        if not all(isinstance(value, int | float) for value in values):
            self._names = list(dict.fromkeys(axis.categoryarray or values))
            self.ticks = {float(place): str(each).strip("'") for place, each in enumerate(self._names)}
        elif self._log:
            ticks = log_ticks(min(values), max(values))
            self.ticks = {math.log10(value): label for value, label in ticks.items()}
        elif all(float(value).is_integer() for value in values):
            low, high = int(min(values)), int(max(values))
            step = math.ceil(max(high - low, 1) / MOST_TICKS)
            self.ticks = {float(value): str(value) for value in range(low, high + 1, step)}

    def places(self, values: Sequence[Any]) -> list[float]:
        """Return the place of each value."""
        if self._names:
            return [float(self._names.index(value)) for value in values]
        return [math.log10(value) if self._log else float(value) for value in values]
