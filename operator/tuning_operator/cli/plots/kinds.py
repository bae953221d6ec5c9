"""The plots of a study, drawn by Optuna: which there are, and which a given study can have."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.cli.plots.drawing import Drawing
from tuning_operator.cli.plots.optuna_study import study_of, with_pruned
from tuning_operator.protocol import FinishedStudy

Format = Literal["html", "png"]
MOST_PAIRED = 4
"""The most parameters in a plot with a panel for each pair of them."""

MOST_LINES = 1000
"""The most trials in a plot with a line for each; browsers can't show many more."""


class Missing(NamedTuple):
    """A plot that the study can't have, and why."""

    name: str
    reason: str


class Plot(NamedTuple):
    """A kind of plot."""

    name: str
    function: str
    title: str
    lacks: Callable[[optuna.Study], str | None]
    """Returns why a study can't have it; None if it can."""
    of_one_objective: bool = False
    """Whether a study with several objectives gets one for each."""
    names_target: bool = False
    """Whether Optuna's function takes the metric's name; others find it in the study."""
    lines: Callable[[optuna.Study], list[FrozenTrial]] | None = None
    """Returns the trials that have a line in it."""
    pruned: bool = False
    """Whether it shows pruned trials too, with the last values that they reported."""
    options: Callable[[optuna.Study], dict[str, Any]] | None = None
    """Returns further arguments of Optuna's function."""


def left_out(record: FinishedStudy) -> int:
    """Return the number of complete trials that can't be plotted, since a value is infinite."""
    return sum(trial.state == "COMPLETE" and not _finite(trial.values) for trial in record.trials)


def _finite(values: Sequence[float] | None) -> bool:
    return all(map(math.isfinite, values or ()))


def drawings(
    record: FinishedStudy, name: str, metrics: Sequence[str], names: Sequence[str]
) -> Iterator[Drawing | Missing]:
    """Yield the plots with these names; some are drawn once per objective.

    Args:
        record: the study.
        name: its name, for titles.
        metrics: the names of the objectives.
        names: keys of PLOTS.
    """
    study = cache(partial(study_of, record, metrics))  # most plots use the same
    for plot in (PLOTS[each] for each in names):
        title = f"{name}: {plot.title}"
        if plot.of_one_objective and len(metrics) > 1:
            for objective, metric in enumerate(metrics):
                file = re.sub(r"[^\w.]+", "-", f"{plot.name}-{metric}").strip("-")
                yield _drawing(plot, file, f"{title} of {metric}", metric, partial(study, objective))
        else:
            yield _drawing(plot, plot.name, title, metrics[0], partial(study, None))


def failed(name: str, error: Exception) -> Missing:
    """Return that a plot can't be drawn, since a function of Optuna, plotly or matplotlib raised this."""
    return Missing(name, f"{type(error).__name__}: {error}")


def _drawing(
    plot: Plot,
    name: str,
    title: str,
    metric: str,
    make: Callable[[frozenset[int] | None], optuna.Study],
) -> Drawing | Missing:
    """Return a plot; `make` returns the study with the given trials, or with all for None."""
    try:
        study = make(None)
        if reason := plot.lacks(study):
            return Missing(name, reason)
        options = {"target_name": metric} if plot.names_target else {}
        options |= plot.options(study) if plot.options else {}
        remark = None
        shown = with_pruned(study) if plot.pruned else study
        if plot.lines and len(lines := plot.lines(shown)) > MOST_LINES:
            kept = _spread(study, lines)
            shown = with_pruned(make(kept)) if plot.pruned else make(kept)
            some = f"{len(kept)} of {len(lines)} trials"
            remark = f"showing {some}, spread evenly over the study and including the best"
    except Exception as error:  # noqa: BLE001  whatever Optuna raises; the others are still drawn
        return failed(name, error)
    return Drawing(name, plot.function, shown, title, metric, options, remark)


def _spread(study: optuna.Study, trials: Sequence[FrozenTrial]) -> frozenset[int]:
    best = {trial.number for trial in study.best_trials}
    chosen = np.linspace(0, len(trials) - 1, MOST_LINES).astype(int)
    return frozenset({trials[i].number for i in chosen} | (best & {trial.number for trial in trials}))


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials with finite values."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return [trial for trial in trials if _finite(trial.values)]


def _reporting(study: optuna.Study) -> list[FrozenTrial]:
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if trial.intermediate_values]


def _no_value(study: optuna.Study) -> str | None:
    if _complete(study):
        return None
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"no trial completed yet ({counts or 'no trials'})"


def _no_parameters(study: optuna.Study) -> str | None:
    if reason := _no_value(study):
        return reason
    if any(trial.params for trial in _complete(study)):
        return None
    return "the trials have no parameters"


def _no_importances(study: optuna.Study) -> str | None:
    if reason := _no_parameters(study):
        return reason
    trials = _complete(study)
    if len(trials) == 1:
        return "at least two complete trials are needed"
    if len({trial.value for trial in trials}) == 1:
        return f"all trials have the value {trials[0].value:g}, so no parameter has an influence"
    if all(kind.single() for trial in trials for kind in trial.distributions.values()):
        return "each parameter has a single possible value"
    return None


def _no_pairs(study: optuna.Study) -> str | None:
    if reason := _no_parameters(study):
        return reason
    if len(_varied(study)) < 2:
        return "at least two parameters with several values are needed"
    return None


def _varied(study: optuna.Study) -> list[str]:
    """Return the parameters that have several values in the complete trials."""
    values: dict[str, set[Any]] = {}
    for trial in _complete(study):
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


def _pairs(study: optuna.Study) -> dict[str, Any]:
    """Return the parameters to pair: the most important ones, if there are many."""
    names = _varied(study)
    if len(names) > MOST_PAIRED and not _no_importances(study):
        importances = optuna.importance.get_param_importances(study)
        names = [name for name in importances if name in names]
    return {"params": names[:MOST_PAIRED]}


def _no_times(study: optuna.Study) -> str | None:
    started = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
    return None if started else "no trial has started yet"


def _no_hypervolume(study: optuna.Study) -> str | None:
    return "the study has a single objective" if len(study.directions) == 1 else _no_value(study)


def _worst_values(study: optuna.Study) -> dict[str, Any]:
    values = np.array([trial.values for trial in _complete(study)])
    maximized = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
    return {"reference_point": np.where(maximized, values.min(axis=0), values.max(axis=0)).tolist()}


def _no_improvement(study: optuna.Study) -> str | None:
    if len(study.directions) > 1:
        return "the study has several objectives"
    if reason := _no_parameters(study):
        return reason
    if find_spec("torch") is None:
        return "it needs PyTorch: pip install torch"
    return None


def _no_reports(study: optuna.Study) -> str | None:
    if _reporting(study):
        return None
    if len(study.directions) > 1:
        return "trials with several objectives can't report intermediate values"
    return (
        "no trial reported intermediate values (trial.report in an objective, step=... in a command's output)"
    )


def _no_front(study: optuna.Study) -> str | None:
    objectives = len(study.directions)
    if objectives == 1:
        return "the study has a single objective"
    if objectives > 3:
        return f"the study has {objectives} objectives, and the plot supports two or three"
    return _no_value(study)


PLOTS = {
    plot.name: plot
    for plot in (
        Plot(
            "optimization-history", "plot_optimization_history", "optimization history", _no_value, True, True
        ),
        Plot(
            "param-importances",
            "plot_param_importances",
            "parameter importances",
            _no_importances,
            of_one_objective=True,
        ),
        Plot(
            "parallel-coordinate",
            "plot_parallel_coordinate",
            "parallel coordinates",
            _no_parameters,
            names_target=True,
            lines=_complete,
            pruned=True,
        ),
        Plot("slice", "plot_slice", "slices", _no_parameters, True, True),
        Plot(
            "intermediate-values",
            "plot_intermediate_values",
            "intermediate values",
            _no_reports,
            lines=_reporting,
        ),
        Plot("pareto-front", "plot_pareto_front", "Pareto front", _no_front),
        Plot("contour", "plot_contour", "contours", _no_pairs, True, True, options=_pairs),
        Plot("rank", "plot_rank", "ranks", _no_pairs, True, True, options=_pairs),
        Plot("edf", "plot_edf", "empirical distribution", _no_value, True, True),
        Plot("timeline", "plot_timeline", "timeline", _no_times),
        Plot(
            "hypervolume-history",
            "plot_hypervolume_history",
            "hypervolume history",
            _no_hypervolume,
            options=_worst_values,
        ),
        Plot(
            "terminator-improvement",
            "plot_terminator_improvement",
            "room for improvement",
            _no_improvement,
        ),
    )
}
"""The plots by name, in drawing order."""


def text_of(drawing: Drawing, width: int, *, colors: bool) -> str | Missing:
    """Draw a plot as text of this width; with colors, it has a terminal's escape sequences."""
    from tuning_operator.cli.plots import terminal

    if not terminal.can_draw(drawing):
        return Missing(drawing.name, "it can't be drawn in a terminal: use --format html")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return terminal.text_of(drawing, width, colors=colors)


def write(drawing: Drawing, folder: Path, form: Format) -> Path:
    """Write a plot to a file, and return the file.

    Raises:
        Exception: whatever Optuna, plotly or matplotlib raise.
    """
    path = folder / f"{drawing.name}.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that its matplotlib plots are experimental
        _WRITERS[form](drawing, path)
    return path


def _write_html(drawing: Drawing, path: Path) -> None:
    from tuning_operator.cli.plots.html import (
        save,
    )  # here, since it takes a second, and only PNG may be wanted

    save(drawing, path)


def _write_png(drawing: Drawing, path: Path) -> None:
    from tuning_operator.cli.plots.png import save

    save(drawing, path)


_WRITERS: dict[Format, Callable[[Drawing, Path], None]] = {"html": _write_html, "png": _write_png}
