"""Optuna's matplotlib plots as PNG files: no window, no browser."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import AutoLocator, FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from optuna.visualization import matplotlib as plots

from tuning_operator.cli.plots.drawing import LIGHTEST, Drawing, color_range, log_ticks

DOTS_PER_INCH = 150
LEGEND_LINES = 15
"""With more trials than this, the legend leaves no room for the plot."""
INCHES_AN_AXIS = 1.5
INCHES_A_PANEL = 2.2
INCHES_A_LETTER = 0.09
BAR_GAP = 0.4
"""Inches that Optuna leaves between the last axis and the color bar."""


def save(drawing: Drawing, path: Path) -> None:
    """Draw a plot with a function of optuna.visualization.matplotlib and save it."""
    with mpl.rc_context():  # some of Optuna's plots set a style, which would affect the next ones
        axes = np.ravel(getattr(plots, drawing.function)(drawing.study, **drawing.options))
        figure = axes[0].figure
        _set_title(figure, axes, drawing.title)
        match drawing.function:
            case "plot_parallel_coordinate":
                for each in figure.axes[1:]:
                    _set_ticks(each.yaxis)
                _spread_parallel(figure, axes[0])
                _darken_lines(axes[0])
            case "plot_slice":
                for each in axes:
                    _set_ticks(each.xaxis)
            case "plot_contour" | "plot_rank":
                _spread_grid(figure, axes)
            case "plot_intermediate_values":
                axes[0].set_ylabel(drawing.metric)
            case "plot_param_importances":
                axes[0].set_xlabel(f"Importance for {drawing.metric}")
        legend = axes[0].get_legend()
        if legend and len(legend.get_texts()) > LEGEND_LINES:
            legend.remove()
        figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
        plt.close(figure)


def _set_title(figure: Any, axes: Any, title: str) -> None:
    if len(axes) > 1:
        figure.suptitle(title)
    else:
        axes[0].set_title("", loc="left")
        axes[0].set_title(title)


def _set_ticks(axis: Any) -> None:
    """Make the values of a parameter readable."""
    if axis.get_scale() == "log":
        ticks = log_ticks(*axis.get_view_interval())
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FixedFormatter(list(ticks.values())))
        axis.set_minor_locator(NullLocator())
    elif isinstance(axis.get_major_locator(), StrCategoryLocator):
        _slant_labels(axis)  # names of choices may be long
    elif isinstance(axis.get_major_locator(), AutoLocator) and not any(axis.get_view_interval() % 1):
        axis.set_major_locator(MaxNLocator("auto", integer=True))


def _slant_labels(axis: Any) -> None:
    axis.set_tick_params(rotation=60)
    for label in axis.get_ticklabels():
        label.set_horizontalalignment("right")


def _darken_lines(axes: Any) -> None:
    """Give parallel coordinates colors that can be seen, and that differ despite outliers."""
    (lines,) = [each for each in axes.collections if isinstance(each, LineCollection)]
    reverse = lines.get_cmap().name.endswith("_r")
    colors = plt.get_cmap("Blues")(np.linspace(LIGHTEST, 1, 256))
    lines.set_cmap(ListedColormap(colors[::-1] if reverse else colors))
    if not isinstance(lines.norm, BoundaryNorm):  # that of Pareto ranks
        lines.set_clim(*color_range(np.asarray(lines.get_array()), low_is_best=reverse))


def _spread_grid(figure: Any, axes: Any) -> None:
    """Make room for each panel, and label only the outer ones."""
    side = math.isqrt(len(axes))
    figure.set_size_inches(*(max(size, INCHES_A_PANEL * side) for size in figure.get_size_inches()))
    for each in axes:
        _set_ticks(each.xaxis)
        _set_ticks(each.yaxis)
        _slant_labels(each.xaxis)
        each.label_outer(remove_inner_ticks=True)


def _spread_parallel(figure: Any, axes: Any) -> None:
    """Make room for each axis, the labels of the last one, and the note on feasible trials."""
    figure.set_figwidth(max(figure.get_figwidth(), INCHES_AN_AXIS * len(figure.axes)))
    title = axes.get_title()
    axes.set_title("")
    axes.set_title(title, loc="left", y=1.03)
    lengths = [len(label.get_text()) for label in figure.axes[-1].get_yticklabels()]
    gap = INCHES_A_LETTER * max(lengths, default=0) - BAR_GAP
    for bar in (each for each in figure.axes if each.get_label() == "<colorbar>"):
        place = bar.get_position()
        bar.set_position(place.translated(max(gap, 0) / figure.get_figwidth(), 0))
