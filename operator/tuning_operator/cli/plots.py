"""A study's plots: which there are, which of them a study can have, and Optuna's own drawing of them."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.cli.optuna_study import study_of
from tuning_operator.protocol import FinishedStudy

Format = Literal["html", "png"]

MOST_LINES = 1000
"""Trials in a plot that draws a line for each: more are no plot to look at, and no browser shows them."""


class Drawing(NamedTuple):
    """A plot that can be drawn."""

    name: str
    """Of its files."""
    function: str
    """In optuna.visualization and optuna.visualization.matplotlib."""
    study: optuna.Study
    options: dict[str, Any]
    remark: str | None = None


class Missing(NamedTuple):
    """A plot that the study cannot have."""

    name: str
    reason: str


class Plot(NamedTuple):
    """A kind of plot."""

    name: str
    function: str
    lacks: Callable[[optuna.Study], str | None]
    """Why a study cannot have it."""
    of_one_objective: bool = False
    """Whether a study of several objectives has one for each."""
    names_target: bool = False
    """Whether Optuna's function takes the metric's name; those that do not, find it in the study."""
    lines: Callable[[optuna.Study], list[FrozenTrial]] | None = None
    """The trials that have a line of their own in it."""


def left_out(record: FinishedStudy) -> int:
    """Return how many complete trials no plot can show, since a value is infinite."""
    return sum(trial.state == "COMPLETE" and not _finite(trial.values) for trial in record.trials)


def _finite(values: Sequence[float] | None) -> bool:
    return all(map(math.isfinite, values or ()))


def drawings(
    record: FinishedStudy, metrics: Sequence[str], names: Sequence[str]
) -> Iterator[Drawing | Missing]:
    """Yield each plot of these names, several where a study of several objectives has one for each.

    Args:
        record: the study.
        metrics: the objectives' names.
        names: of PLOTS.
    """
    study = cache(partial(study_of, record, metrics))  # most plots draw the same
    for plot in (PLOTS[name] for name in names):
        if plot.of_one_objective and len(metrics) > 1:
            for objective, metric in enumerate(metrics):
                yield _drawing(plot, f"{plot.name}-{metric}", metric, partial(study, objective))
        else:
            yield _drawing(plot, plot.name, metrics[0], partial(study, None))


def _drawing(
    plot: Plot, name: str, metric: str, make: Callable[[frozenset[int] | None], optuna.Study]
) -> Drawing | Missing:
    """Return a plot of the study that is made of the trials of these numbers, of all for None."""
    study = make(None)
    if reason := plot.lacks(study):
        return Missing(name, reason)
    named = {"target_name": metric} if plot.names_target else {}
    if plot.lines is None or len(lines := plot.lines(study)) <= MOST_LINES:
        return Drawing(name, plot.function, study, named)
    kept = _spread(study, lines)
    remark = (
        f"{len(kept)} of {len(lines)} trials are drawn, spread evenly over the study, the best among them"
    )
    return Drawing(name, plot.function, make(kept), named, remark)


def _spread(study: optuna.Study, trials: Sequence[FrozenTrial]) -> frozenset[int]:
    best = {trial.number for trial in study.best_trials}
    chosen = np.linspace(0, len(trials) - 1, MOST_LINES).astype(int)
    return frozenset({trials[i].number for i in chosen} | (best & {trial.number for trial in trials}))


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that a plot of values can show."""
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
    return f"no trial is complete yet ({counts or 'there is no trial'})"


def _no_parameters(study: optuna.Study) -> str | None:
    if reason := _no_value(study):
        return reason
    if any(trial.params for trial in _complete(study)):
        return None
    return "the trials have no parameters: the objective suggests none"


def _no_importances(study: optuna.Study) -> str | None:
    if reason := _no_parameters(study):
        return reason
    trials = _complete(study)
    if len(trials) == 1:
        return "only one trial is complete, and importances compare trials"
    if len({trial.value for trial in trials}) == 1:
        return f"every trial has the value {trials[0].value:g}, so no parameter made a difference"
    if all(kind.single() for trial in trials for kind in trial.distributions.values()):
        return "every parameter has one possible value, so none made a difference"
    return None


def _no_reports(study: optuna.Study) -> str | None:
    if _reporting(study):
        return None
    if len(study.directions) > 1:
        return "trials of several objectives report none"
    return "no trial reported any (trial.report in the objective, step=... beside a command's metrics)"


def _no_front(study: optuna.Study) -> str | None:
    objectives = len(study.directions)
    if objectives == 1:
        return "the study has one objective, so it has one best trial"
    if objectives > 3:
        return f"it shows two or three objectives, and the study has {objectives}"
    return _no_value(study)


PLOTS = {
    plot.name: plot
    for plot in (
        Plot("optimization-history", "plot_optimization_history", _no_value, True, True),
        Plot("param-importances", "plot_param_importances", _no_importances, of_one_objective=True),
        Plot(
            "parallel-coordinate",
            "plot_parallel_coordinate",
            _no_parameters,
            names_target=True,
            lines=_complete,
        ),
        Plot("slice", "plot_slice", _no_parameters, True, True),
        Plot("intermediate-values", "plot_intermediate_values", _no_reports, lines=_reporting),
        Plot("pareto-front", "plot_pareto_front", _no_front),
    )
}
"""By name, in the order in which they are drawn."""


def write(drawing: Drawing, folder: Path, form: Format) -> Path:
    """Write a plot as a file; return the file.

    Raises:
        Exception: whatever Optuna, plotly or matplotlib raise.
    """
    path = folder / f"{drawing.name}.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's word that its matplotlib plots are experimental, and hints
        _WRITERS[form](drawing, path)
    return path


def _write_html(drawing: Drawing, path: Path) -> None:
    """Write a page that needs nothing else, no network either."""
    import optuna.visualization as plotly_plots  # here: a second, and pictures alone may be wanted

    getattr(plotly_plots, drawing.function)(drawing.study, **drawing.options).write_html(path)


def _write_png(drawing: Drawing, path: Path) -> None:
    from tuning_operator.cli.pictures import save

    save(drawing.function, drawing.study, drawing.options, path)


_WRITERS: dict[Format, Callable[[Drawing, Path], None]] = {"html": _write_html, "png": _write_png}
