"""Which plots a study can have, and their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.cli import plots
from tuning_operator.cli.plots import PLOTS, Drawing, Missing, drawings, write
from tuning_operator.cli.plugin import PlotName

from tests.unit.cli import records

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
TWO = {"directions": ["maximize", "minimize"]}


def found(ran: optuna.Study, metrics: list[str] | None = None) -> dict[str, Drawing | Missing]:
    return {plot.name: plot for plot in drawings(records.record(ran), metrics or ["loss"], list(PLOTS))}


def reason(ran: optuna.Study, name: str) -> str:
    missing = found(ran)[name]
    assert isinstance(missing, Missing)
    return missing.reason


def data(page: bytes) -> bytes:
    """Return what plotly draws, without plotly's own code."""
    return page.rpartition(b"Plotly.newPlot(")[2]


def test_the_command_offers_every_plot() -> None:
    assert [name.value for name in PlotName] == list(PLOTS)


@pytest.mark.parametrize("form", ["html", "png"])
def test_one_objective(tmp_path: Path, form: plots.Format) -> None:
    plotted = found(records.study(records.pruning, 25))
    assert isinstance(plotted.pop("pareto-front"), Missing)
    for name, drawing in plotted.items():
        assert isinstance(drawing, Drawing), name
        content = write(drawing, tmp_path, form).read_bytes()
        if form == "png":
            assert content.startswith(PNG)
            assert len(content) > 10_000
        else:
            expected = {"param-importances": b"layers", "intermediate-values": b"Trial24"}.get(name, b"loss")
            assert expected in data(content)


def test_several_objectives_have_each_its_own(tmp_path: Path) -> None:
    assert "slice-val-mAP50-95-B" in found(records.study(records.two, 12, **TWO), ["val/mAP50-95(B)", "time"])
    plotted = found(records.study(records.two, 12, **TWO), ["accuracy", "latency"])
    assert [name for name, plot in plotted.items() if isinstance(plot, Drawing)] == [
        *("optimization-history-accuracy", "optimization-history-latency"),
        *("param-importances-accuracy", "param-importances-latency"),
        "parallel-coordinate",
        *("slice-accuracy", "slice-latency"),
        "pareto-front",
    ]
    assert "several objectives" in plotted["intermediate-values"].reason  # type: ignore[union-attr]
    for name in ("pareto-front", "parallel-coordinate", "param-importances-latency"):
        page = write(plotted[name], tmp_path, "html").read_bytes()  # type: ignore[arg-type]
        assert b"latency" in data(page) or name == "param-importances-latency"
        assert (b"accuracy" in data(page)) == (name != "param-importances-latency")
        assert write(plotted[name], tmp_path, "png").read_bytes().startswith(PNG)  # type: ignore[arg-type]


def test_importances_look_towards_the_better_values_of_a_maximized_metric() -> None:
    """Optuna's own several-objective importances take every metric as minimized."""

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, other = trial.suggest_float("x", 0, 1), trial.suggest_float("other", 0, 1)
        # The best values depend only on x, and the worst only on `other`.
        return (x if x > 0.9 else 0.0) - (other if other > 0.9 else 0.0), x

    ran = records.study(objective, 200, **TWO)
    drawing = found(ran, ["score", "cost"])["param-importances-score"]
    assert isinstance(drawing, Drawing)
    assert next(iter(optuna.importance.get_param_importances(drawing.study))) == "x"


@pytest.mark.parametrize(
    ("objective", "trials", "message"),
    [
        (records.one, 0, "no trials"),
        (records.one, 1, "at least two complete trials are needed"),
        (lambda trial: 0.5 + 0 * trial.suggest_float("x", 0, 1), 4, "all trials have the value 0.5"),
        (lambda trial: trial.suggest_int("x", 1, 1) + trial.number, 4, "a single possible value"),
        (lambda trial: float(trial.number), 4, "have no parameters"),
    ],
)
def test_no_importances(objective: Any, trials: int, message: str) -> None:
    assert message in reason(records.study(objective, trials), "param-importances")


def test_no_other_plots() -> None:
    def failing(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        if trial.number:
            raise optuna.TrialPruned
        raise ValueError

    ended = records.study(failing, 3)
    for name in ("optimization-history", "parallel-coordinate", "slice"):
        assert reason(ended, name) == "no trial completed yet (1 fail, 2 pruned)"
    assert "trial.report" in reason(records.study(records.one, 2), "intermediate-values")
    assert "single objective" in reason(records.study(records.one, 2), "pareto-front")
    four = records.study(lambda trial: [trial.suggest_float("x", 0, 1)] * 4, 2, directions=["minimize"] * 4)
    assert "4" in found(four, list("abcd"))["pareto-front"].reason  # type: ignore[union-attr]


def test_lines_are_thinned_and_the_best_trial_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plots, "MOST_LINES", 10)
    ran = records.study(records.pruning, 60)
    plotted = found(ran)
    for name in ("parallel-coordinate", "intermediate-values"):
        drawing = plotted[name]
        assert isinstance(drawing, Drawing)
        drawn = [trial.number for trial in drawing.study.trials if trial.params]
        assert 10 <= len(drawn) <= 11
        assert ran.best_trial.number in drawn
        assert max(drawn) > 50
        assert f"{len(drawn)} of " in (drawing.remark or "")
    history = plotted["optimization-history"]
    assert isinstance(history, Drawing)
    assert len([trial for trial in history.study.trials if trial.params]) == 60
