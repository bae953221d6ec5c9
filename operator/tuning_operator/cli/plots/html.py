"""Optuna's plotly plots as HTML files, which share one file with plotly's code and need no network."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna.visualization as plots
from plotly.colors import sample_colorscale, sequential

from tuning_operator.cli.plots.drawing import LIGHTEST, Drawing, color_range, log_ticks

LINE_OPACITY = 0.8
PIXELS_A_PANEL = 200
PIXELS_AROUND = 200
"""The title above a grid of panels, and the labels below."""


def save(drawing: Drawing, path: Path) -> None:
    """Draw a plot and save it."""
    figure_of(drawing).write_html(path, include_plotlyjs="directory")


def figure_of(drawing: Drawing) -> Any:
    """Draw a plot with a function of optuna.visualization; return plotly's figure."""
    figure = getattr(plots, drawing.function)(drawing.study, **drawing.options)
    figure.update_layout(title_text=drawing.title)
    match drawing.function:
        case "plot_parallel_coordinate":
            _darken_lines(figure)
        case "plot_slice":
            figure.for_each_xaxis(lambda axis: _set_log_ticks(figure, axis))
        case "plot_contour" | "plot_rank":
            _spread_grid(figure)
        case "plot_intermediate_values":
            figure.update_yaxes(title_text=drawing.metric)
        case "plot_param_importances":
            figure.update_xaxes(title_text=f"Importance for {drawing.metric}")
    return figure


def _spread_grid(figure: Any) -> None:
    """Make room for each panel and its labels."""
    rows = math.isqrt(len(list(figure.select_yaxes())))
    if rows > 1:
        figure.update_layout(height=PIXELS_A_PANEL * rows + PIXELS_AROUND)
    figure.for_each_xaxis(lambda axis: _set_log_ticks(figure, axis))
    figure.for_each_yaxis(lambda axis: _set_log_ticks(figure, axis))


def _set_log_ticks(figure: Any, axis: Any) -> None:
    if axis.type != "log":
        return
    if axis.range:  # of a grid's panels; those on its diagonal may have no points
        values = [10.0**exponent for exponent in axis.range]
    else:
        name = axis.plotly_name.replace("axis", "")
        values = [x for trace in figure.data if (trace.xaxis or "x") == name for x in trace.x]
    ticks = log_ticks(min(values), max(values))
    axis.update(tickvals=list(ticks), ticktext=list(ticks.values()))


def _darken_lines(figure: Any) -> None:
    """Give parallel coordinates colors that can be seen, and that differ despite outliers."""
    (scale,) = [trace.marker for trace in figure.data if trace.marker.showscale]
    lines = [trace for trace in figure.data if trace.customdata is not None]
    by_rank = scale.colorbar.tickvals is not None
    if by_rank:  # the Pareto rank, which is in the color only
        places, (low, high) = [_place(trace.line.color) for trace in lines], (0.0, 1.0)
    else:
        places = [1 - trace.y[0] if scale.reversescale else trace.y[0] for trace in lines]
        low, high = color_range(places, low_is_best=False)
    visible = sample_colorscale(sequential.Blues, np.linspace(LIGHTEST, 1, 9))
    for trace, place in zip(lines, places, strict=True):
        position = (place - low) / (high - low) if high > low else 1.0
        (color,) = sample_colorscale(visible, float(np.clip(position, 0, 1)))
        trace.update(line_color=color, opacity=LINE_OPACITY)
    ends = (1 - high, 1 - low) if scale.reversescale else (low, high)
    least, span = scale.cmin, scale.cmax - scale.cmin
    scale.update(colorscale=visible, cmin=least + ends[0] * span, cmax=least + ends[1] * span)


def _place(color: str) -> float:
    """Return where a color is on plotly's scale Blues, from 0 to 1."""
    darkness = [-_brightness(each) for each in sequential.Blues]
    return float(np.interp(-_brightness(color), darkness, np.linspace(0, 1, len(darkness))))


def _brightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)))
