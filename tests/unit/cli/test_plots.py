"""Which plots a study can have, and their files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tuning_operator.cli.commands.plot import PlotName, save_plots
from tuning_operator.cli.plots import kinds as plots
from tuning_operator.cli.plots.drawing import Drawing, log_ticks
from tuning_operator.cli.plots.kinds import PLOTS, Missing, drawings, write

from tests.unit.cli import records

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
TWO = {"directions": ["maximize", "minimize"]}


def found(ran: optuna.Study, metrics: list[str] | None = None) -> dict[str, Drawing | Missing]:
    plotted = drawings(records.record(ran), "mnist", metrics or ["loss"], list(PLOTS))
    return {plot.name: plot for plot in plotted}


def reason(ran: optuna.Study, name: str) -> str:
    missing = found(ran)[name]
    assert isinstance(missing, Missing)
    return missing.reason


def data(page: bytes) -> bytes:
    """Return what plotly draws, without plotly's own code."""
    return page.rpartition(b"Plotly.newPlot(")[2]


def test_the_command_offers_every_plot() -> None:
    assert [name.value for name in PlotName] == list(PLOTS)


OF_SEVERAL_OBJECTIVES = ("pareto-front", "hypervolume-history")


def of_one_objective(ran: optuna.Study) -> dict[str, Drawing | Missing]:
    """Return the plots that a study with one objective has without PyTorch."""
    plotted = found(ran)
    for name in (*OF_SEVERAL_OBJECTIVES, "terminator-improvement"):
        assert isinstance(plotted.pop(name), Missing)
    return plotted


@pytest.mark.parametrize("form", ["html", "png"])
def test_one_objective(tmp_path: Path, form: plots.Format) -> None:
    shown = {"param-importances": b"layers", "intermediate-values": b"Trial24"}
    shown |= {"rank": b"layers", "timeline": b"PRUNED"}
    plotted = of_one_objective(records.study(records.pruning, 25))
    for name, drawing in plotted.items():
        assert isinstance(drawing, Drawing), name
        content = write(drawing, tmp_path, form).read_bytes()
        if form == "png":
            assert content.startswith(PNG)
            assert len(content) > 10_000
        else:
            assert shown.get(name, b"loss") in data(content), name


def layered(trial: optuna.Trial) -> float:
    """Trials 3 and 8 are pruned, trial 5 is by far the worst, and trial 9 fails."""
    value = trial.suggest_float("lr", 1e-5, 1e-1, log=True) * trial.suggest_int("layers", 1, 3)
    trial.report(value, 0)
    if trial.number in (3, 8):
        raise optuna.TrialPruned
    if trial.number == 9:
        raise ValueError
    return 1e6 if trial.number == 5 else value


def figure(drawing: Drawing | Missing, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Return plotly's figure as it is written."""
    written: list[Any] = []
    monkeypatch.setattr(go.Figure, "write_html", lambda self, *_, **__: written.append(self))
    assert isinstance(drawing, Drawing)
    write(drawing, folder, "html")
    return written[0]


def axes(drawing: Drawing | Missing, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Axes]:
    """Return matplotlib's axes as they are saved."""
    saved: list[list[Axes]] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self.axes))
    assert isinstance(drawing, Drawing)
    write(drawing, folder, "png")
    return saved[0]


def test_titles_name_the_study_and_axes_the_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, drawing in of_one_objective(records.study(records.pruning, 25)).items():
        page = figure(drawing, monkeypatch, tmp_path)
        image = axes(drawing, monkeypatch, tmp_path)
        suptitle = image[0].get_figure().get_suptitle()  # type: ignore[union-attr]
        assert page.layout.title.text.startswith("mnist: ")
        titles = [suptitle, image[0].get_title(), image[0].get_title("left")]
        assert [title for title in titles if title] == [page.layout.title.text]
        if name not in ("parallel-coordinate", "contour", "rank", "timeline"):
            labels = [page.layout.xaxis.title.text, page.layout.yaxis.title.text]
            assert "loss" in " ".join(labels).split(), name
            assert [image[0].get_xlabel(), image[0].get_ylabel()] == labels


def test_log_axes_have_a_few_plain_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawing = found(records.study(layered, 30))["slice"]
    page = figure(drawing, monkeypatch, tmp_path)
    image = axes(drawing, monkeypatch, tmp_path)
    (lr,) = [axis for axis in image if axis.get_xlabel() == "lr"]
    assert [label.get_text() for label in lr.get_xticklabels()] == [
        *("1e-5", "1e-4", "0.001", "0.01", "0.1")  # matplotlib's axis is a little wider than the data
    ]
    assert not lr.get_xticks(minor=True).size
    assert page.layout.xaxis2.ticktext == ("1e-4", "0.001", "0.01")


@pytest.mark.parametrize("name", ["contour", "rank"])
def test_grids_have_room_for_plain_labels(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("kind", ["a", "b"])
        return layered(trial)

    drawing = found(records.study(objective, 30))[name]
    page = figure(drawing, monkeypatch, tmp_path)
    assert page.layout.height == 800
    scales = [*page.select_xaxes({"type": "log"}), *page.select_yaxes({"type": "log"})]
    assert {axis.ticktext for axis in scales} == {("1e-5", "1e-4", "0.001", "0.01")}
    image = axes(drawing, monkeypatch, tmp_path)
    (lr,) = [axis for axis in image if axis.get_xlabel() == "lr"]
    labels = {label.get_text(): label.get_rotation() for label in lr.get_xticklabels()}
    assert labels == dict.fromkeys(["1e-5", "1e-4", "0.001", "0.01"], 60)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e-5, 1e-1, "1e-5 1e-4 0.001 0.01 0.1"),
        (1e-8, 1, "1e-8 1e-6 1e-4 0.01 1"),
        (16, 1024, "30 100 300 1000"),
        (16, 128, "20 50 100"),
        (1, 3, "1 2 3"),
        (2e-4, 3e-4, "2e-4 3e-4"),
        (5, 5, "5"),
        (1, 1e6, "1 100 10000 1e6"),
    ],
)
def test_ticks(low: float, high: float, labels: str) -> None:
    assert " ".join(log_ticks(low, high).values()) == labels


def test_parallel_coordinates_show_pruned_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = records.study(layered, 30)
    drawing = found(ran)["parallel-coordinate"]
    lines = [line for line in figure(drawing, monkeypatch, tmp_path).data if line.customdata is not None]
    assert len(lines) == 29  # all but the one that failed
    shown = [dict(line.customdata) for line in lines]
    assert [each["state"] for each in shown].count("pruned") == 2
    assert len(axes(drawing, monkeypatch, tmp_path)[0].collections[0].get_paths()) == 29
    complete = found(records.study(records.one, 5))["parallel-coordinate"]
    assert isinstance(complete, Drawing)
    assert "state" not in complete.study.trials[0].params


def diverging(trial: optuna.Trial) -> float:
    """An objective of which trial 1 is pruned after 0.5 and NaN, and trial 2 after NaN alone."""
    x = trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)
    for step, value in enumerate({1: (0.5, math.nan), 2: (math.nan,)}.get(trial.number, ())):
        trial.report(value, step)
    if trial.number in (1, 2):
        raise optuna.TrialPruned
    return x


def test_a_pruned_trial_has_its_last_value_that_is_a_number() -> None:
    drawing = found(records.study(diverging, 5))["parallel-coordinate"]
    assert isinstance(drawing, Drawing)
    states = {trial.number: trial.params.get("state") for trial in drawing.study.trials}
    assert states == {0: "complete", 1: "pruned", 2: None, 3: "complete", 4: "complete"}
    assert drawing.study.trials[1].value == 0.5


def huge(trial: optuna.Trial) -> float:
    """Values that are finite, but whose differences are not: Optuna's parallel coordinates raise an error."""
    trial.suggest_float("x", 0, 1)
    return 1e308 if trial.number % 2 else -1e308


def test_a_run_ends_with_the_plots_that_can_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = [{"metric": "loss", "direction": "minimize"}]
    resource = {"metadata": {"name": "mnist"}, "spec": {"objectives": objectives}}
    save_plots(records.record(records.study(huge, 4)), resource, tmp_path)
    assert "no parallel-coordinate: " in capsys.readouterr().err
    assert (tmp_path / "optimization-history.html").exists()
    assert (tmp_path / "timeline.html").exists()


def darkness(color: str) -> float:
    return 765 - sum(float(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


def test_the_worst_trial_can_be_seen_and_hides_no_differences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawing = found(records.study(layered, 30))["parallel-coordinate"]
    page = figure(drawing, monkeypatch, tmp_path)
    colors = [line.line.color for line in page.data if line.customdata is not None]
    assert min(map(darkness, colors)) > 100
    assert len(set(colors)) > 10
    (scale,) = [trace.marker for trace in page.data if trace.marker.showscale]
    assert scale.cmax < 1
    collection = axes(drawing, monkeypatch, tmp_path)[0].collections[0]
    assert max(map(min, collection.to_rgba([0, 1e6]))) < 0.8  # none is near white
    assert collection.get_clim()[1] == pytest.approx(scale.cmax)


def test_pages_share_one_file_with_plotlys_code(tmp_path: Path) -> None:
    for drawing in found(records.study(records.pruning, 25)).values():
        if isinstance(drawing, Drawing):
            assert write(drawing, tmp_path, "html").stat().st_size < 100_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_several_objectives_have_each_its_own(tmp_path: Path) -> None:
    assert "slice-val-mAP50-95-B" in found(records.study(records.two, 12, **TWO), ["val/mAP50-95(B)", "time"])
    plotted = found(records.study(records.two, 12, **TWO), ["accuracy", "latency"])
    assert [name for name, plot in plotted.items() if isinstance(plot, Drawing)] == [
        *("optimization-history-accuracy", "optimization-history-latency"),
        *("param-importances-accuracy", "param-importances-latency"),
        "parallel-coordinate",
        *("slice-accuracy", "slice-latency"),
        "pareto-front",
        *("contour-accuracy", "contour-latency", "rank-accuracy", "rank-latency"),
        *("edf-accuracy", "edf-latency", "timeline", "hypervolume-history"),
    ]
    assert "several objectives" in plotted["intermediate-values"].reason  # type: ignore[union-attr]
    hypervolumes = write(plotted["hypervolume-history"], tmp_path, "html").read_bytes()  # type: ignore[arg-type]
    assert b"Hypervolume" in data(hypervolumes)
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


def many(trial: optuna.Trial) -> float:
    """Six parameters, of which `p0` to `p2` matter, and one that never varies."""
    values = [trial.suggest_float(f"p{i}", 0, 1) for i in reversed(range(6))]
    trial.suggest_categorical("fixed", ["only"])
    return sum(value * weight for value, weight in zip(values, (0, 0.01, 0.02, 1, 2, 4), strict=True))


def test_pairs_are_those_of_the_most_important_parameters() -> None:
    plotted = found(records.study(many, 40))
    for name in ("contour", "rank"):
        drawing = plotted[name]
        assert isinstance(drawing, Drawing)
        assert len(drawing.options["params"]) == 4
        assert {"p0", "p1", "p2"} <= {*drawing.options["params"]}
    assert "two parameters with several values" in reason(records.study(records.one, 3), "contour")


def test_a_timeline_has_the_times_of_the_trials() -> None:
    ran = records.study(records.pruning, 5)
    drawing = found(ran)["timeline"]
    assert isinstance(drawing, Drawing)
    assert [t.datetime_complete for t in drawing.study.trials] == [t.datetime_complete for t in ran.trials]


def test_room_for_improvement_needs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = records.study(records.pruning, 5)
    assert reason(ran, "terminator-improvement") == "it needs PyTorch: pip install torch"
    monkeypatch.setattr(plots, "find_spec", lambda _name: object())
    assert isinstance(found(ran)["terminator-improvement"], Drawing)


def text(drawing: Drawing | Missing) -> str:
    assert isinstance(drawing, Drawing)
    drawn = plots.text_of(drawing, 80, colors=False)
    assert isinstance(drawn, str)
    return drawn


def test_plots_as_text() -> None:
    ran = records.study(records.pruning, 25)
    plotted = found(ran)
    history = text(plotted["optimization-history"])
    assert history.startswith("mnist: optimization history\n")
    assert history.count("●") >= 5
    assert {*history} & {*map(chr, range(0x2801, 0x2900))}  # the line of the best value
    assert max(map(len, history.splitlines())) <= 80
    importances = text(plotted["param-importances"]).splitlines()[1:]
    assert [line.split()[0] for line in importances] == [
        *optuna.importance.get_param_importances(plotted["param-importances"].study)  # type: ignore[union-attr]
    ]
    assert importances[0].count("█") > importances[-1].count("█")
    slices = text(plotted["slice"])
    assert slices.count("└") == 4
    for label in ("a", "None", "3", "layers", "0.1", "1"):  # names, and round numbers on a logarithmic axis
        assert f" {label} " in slices, label
    assert "Step" in text(plotted["intermediate-values"])
    assert "Cumulative Probability" in text(plotted["edf"])
    missing = plots.text_of(plotted["timeline"], 80, colors=False)  # type: ignore[arg-type]
    assert missing == Missing("timeline", "it can't be drawn in a terminal: use --format html")
    front = text(found(records.study(records.two, 12, **TWO), ["accuracy", "latency"])["pareto-front"])
    assert "accuracy" in front
    assert "●" in front
