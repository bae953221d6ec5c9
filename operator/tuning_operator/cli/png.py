"""Optuna's matplotlib plots as PNG files: no window, no browser."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna

mpl.use("agg")

from matplotlib import pyplot as plt
from optuna.visualization import matplotlib as plots

DOTS_PER_INCH = 150
LEGEND_LINES = 15
"""With more trials than this, the legend leaves no room for the plot."""
INCHES_AN_AXIS = 1.5
INCHES_A_LETTER = 0.09
BAR_GAP = 0.4
"""Inches that Optuna leaves between the last axis and the color bar."""


def save(function: str, study: optuna.Study, options: dict[str, Any], path: Path) -> None:
    """Draw a plot with a function of optuna.visualization.matplotlib and save it."""
    with mpl.rc_context():  # some of Optuna's plots set a style, which would affect the next ones
        axes = np.ravel(getattr(plots, function)(study, **options))
        figure = axes[0].figure
        if function == "plot_parallel_coordinate":
            _spread_parallel(figure, axes[0])
        if function == "plot_slice":
            for each in axes:
                each.tick_params(axis="x", rotation=30)  # names of choices may be long
        legend = axes[0].get_legend()
        if legend and len(legend.get_texts()) > LEGEND_LINES:
            legend.remove()
        figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
        plt.close(figure)


def _spread_parallel(figure: Any, axes: Any) -> None:
    """Make room for each axis, the labels of the last one, and the note on feasible trials."""
    figure.set_figwidth(max(figure.get_figwidth(), INCHES_AN_AXIS * len(figure.axes)))
    title = axes.get_title()
    axes.set_title("")
    axes.set_title(title, loc="left", y=1.03)
    labels = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    names = [label for label in labels if "$" not in label]  # others are powers of ten, which are short
    gap = INCHES_A_LETTER * max(map(len, names), default=0) - BAR_GAP
    for bar in (each for each in figure.axes if each.get_label() == "<colorbar>"):
        place = bar.get_position()
        bar.set_position(place.translated(max(gap, 0) / figure.get_figwidth(), 0))
