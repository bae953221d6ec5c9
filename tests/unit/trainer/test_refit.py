"""The refit: how each mode reports the model, and what the pod after a failed one does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tests.unit.trainer.pod import BARE, FULL, Pod

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin

both = pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])


SCRIPT = """
    import optuna

    study = optuna.create_study(direction="maximize")
    study.optimize(None, n_trials=100)
    study.set_user_attr("model", f"/models/{study.best_params['x']}")
    study.set_user_attr("epochs", [1, 2])
"""


@both
def test_what_a_script_sets_on_its_study_is_the_refits(
    refit: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    refit.write(SCRIPT)
    ended = refit.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert twin.study.trials[-1].user_attrs == {"model": "/models/0.25", "epochs": [1, 2]}
    assert [path for _, path, _ in twin.requests][-1] == "/result"


def test_a_thread_of_the_script_may_train_the_model(refit: Pod, twin: Twin) -> None:
    refit.write("""
        import threading
        import optuna

        study = optuna.create_study(direction="maximize")
        study.optimize(None, n_trials=100)
        ended = threading.Event()

        def train():
            ended.wait(1)  # longer than the rest of the script
            study.set_user_attr("model", "/models/final")

        threading.Thread(target=train).start()
    """)
    ended = refit.run("script", "train.py", timeout=240)
    assert ended.code == 0, ended
    assert twin.study.trials[-1].user_attrs == {"model": "/models/final"}


@both
def test_choices_that_json_lacks_are_those_of_the_study(
    refit: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    names = {"a": math.inf, "b": math.nan, "c": "NaN"}
    for name, choice in names.items():
        twin.trial.suggest_categorical(name, [choice])
    twin.study.tell(twin.trial, 0.9)
    twin.finished = twin.study.trials
    twin.trial = twin.study.ask()
    refit.write("""
        import optuna

        study = optuna.create_study(direction="maximize")
        study.optimize(None)
        print(study.best_params, [kind.choices for kind in study.best_trial.distributions.values()])
    """)
    ended = refit.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert ended.out.strip() == f"{names} {[(choice,) for choice in names.values()]}"


@both
def test_a_script_that_sets_none_and_exits_is_fine(refit: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    refit.write("import optuna, sys\noptuna.create_study().optimize(None)\nsys.exit()")
    assert refit.run("script", "train.py", python=python).code == 0
    assert twin.of("/attributes") == []
    assert twin.of("/result") == [{"state": "COMPLETE"}]


def test_an_attribute_that_is_not_json_is_an_error(refit: Pod, twin: Twin) -> None:
    refit.write("import optuna\ns = optuna.create_study()\ns.set_user_attr('model', object())")
    assert refit.run("script", "train.py", python=FULL).code == 1
    assert "'model' can't be stored" in twin.failure.message


def test_an_objective_names_its_model_on_the_trial(refit: Pod, twin: Twin) -> None:
    refit.write("def final(trial): trial.set_user_attr('model', '/models/final.pt')")
    assert refit.run("objective", "train:final", python=BARE).code == 0
    assert twin.study.trials[-1].user_attrs == {"model": "/models/final.pt"}


@pytest.mark.parametrize("final", [True, False], ids=["refit", "trial"])
def test_a_program_writes_its_attributes_to_a_file(pod: Pod, twin: Twin, final: bool) -> None:
    twin.final = final
    pod.environ["TUNING_ROLE"] = "final" if final else ""
    line = """echo accuracy=0.5; echo '{"model": "/models/a", "size": 3}' > $TUNING_RESULT_FILE"""
    ended = pod.run("command", "--", "sh", "-c", line, python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[-1].user_attrs == {"model": "/models/a", "size": 3}
    assert twin.result
    assert twin.result.values == [0.5]


@pytest.mark.parametrize("written", ["model.pt", "[1]"])
def test_a_program_whose_result_is_not_an_object_fails(pod: Pod, twin: Twin, written: str) -> None:
    line = f"echo accuracy=0.5; echo '{written}' > $TUNING_RESULT_FILE"
    assert pod.run("command", "--", "sh", "-c", line, python=BARE).code == 1
    assert twin.failure.category == "ResultFile"
    assert "TUNING_RESULT_FILE is not a JSON object" in twin.failure.message
    assert '{"model": ' in (twin.failure.remedy or "")


def test_the_pod_after_one_that_failed_trains_again(refit: Pod, twin: Twin) -> None:
    refit.write("def final(trial): trial.report(1.0, 1); raise RuntimeError('no space')")
    assert refit.run("objective", "train:final", python=BARE).code == 1
    twin.result = None  # the server keeps the failure of a try, and the state stays RUNNING
    refit.write(
        "def final(trial):\n    trial.report(1.0, 1)\n    assert not trial.should_prune()\n    return 0.5"
    )
    ended = refit.run("objective", "train:final", python=BARE)
    assert ended.code == 0, ended
    assert [result["state"] for result in twin.of("/result")] == ["FAIL", "COMPLETE"]


def test_the_pod_after_one_that_completed_does_nothing(refit: Pod, twin: Twin) -> None:
    twin.study.tell(twin.trial, 0.5)
    refit.write("raise SystemExit('must not be imported')")
    assert refit.run("objective", "train:final", python=BARE).code == 0
    assert twin.of("/result") == []


def test_attributes_that_are_not_finite_are_floats_in_the_refit(refit: Pod, twin: Twin) -> None:
    [trial] = twin.finished
    trial.set_user_attr("auc", float("nan"))
    trial.set_user_attr("folds", [0.5, float("inf"), {"worst": float("-inf")}])
    refit.write("""
        import optuna

        study = optuna.create_study(direction="maximize")
        study.optimize(None)
        print(study.best_trial.user_attrs)
        study.set_user_attr("mean auc", study.best_trial.user_attrs["auc"])
    """)
    ended = refit.run("script", "train.py")
    assert ended.code == 0, ended
    assert ended.out == "{'auc': nan, 'folds': [0.5, inf, {'worst': -inf}]}\n"


@pytest.mark.parametrize(
    ("objective", "remedy"),
    [
        ("global model\n    model = trial", "The objective sets model, but does not run in the refit."),
        ("models.append(trial)", "The objective does not run in the refit"),
    ],
)
@both
def test_a_global_that_the_objective_would_set_is_named(
    refit: Pod, twin: Twin, python: tuple[str, ...], objective: str, remedy: str
) -> None:
    refit.write(
        "import optuna\nmodel = None\nmodels = []\n\n"
        f"def objective(trial):\n    {objective}\n    return 1.0\n\n"
        "study = optuna.create_study(direction='maximize')\nstudy.optimize(objective)\n"
        "(model or models[0]).predict([1])\n"
    )
    assert refit.run("script", "train.py", python=python).code == 1
    assert "Error" in twin.failure.message
    assert remedy in (twin.failure.remedy or "")
    assert "study.best_params" in (twin.failure.remedy or "")


@both
def test_a_second_study_in_the_refit_is_rejected(refit: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    refit.write("""
        import optuna

        for name in ("a", "b"):
            optuna.create_study(study_name=name, direction="maximize").optimize(None)
    """)
    assert refit.run("script", "train.py", python=python).code == 1
    assert "optimizes a second study" in twin.failure.message


SHOW = """
    import pathlib
    import matplotlib.pyplot as plt
    import plotly.graph_objects as go

    pathlib.Path("MODEL").parent.mkdir(exist_ok=True)
    pathlib.Path("MODEL").write_text("weights")
    for _ in range(2):
        go.Figure(layout={"title": {"text": "Optimization History Plot"}}).show()
        plt.figure()
        plt.plot([1, 2])
        plt.show()
"""


def test_figures_that_a_script_shows_are_files_beside_the_model(refit: Pod, twin: Twin) -> None:
    model = refit.folder / "volume" / "model.pt"
    refit.write(
        SHOW.replace("MODEL", str(model))
        + f"""
    import optuna
    study = optuna.create_study(direction="maximize")
    study.optimize(None)
    study.set_user_attr("model", "{model}")
    """
    )
    ended = refit.run("script", "train.py")
    assert ended.code == 0, ended
    names = ["optimization-history-plot.html", "figure.png"]
    names += ["optimization-history-plot-2.html", "figure-2.png"]
    saved = twin.study.trials[-1].user_attrs["plots"]
    assert saved == [str(model.parent / "plots" / name) for name in names]
    assert all(f"tuning: figure: {file}\n" in ended.err for file in saved)
    assert {file.name for file in (model.parent / "plots").iterdir()} == {*names, "plotly.min.js"}
    assert not (refit.working_directory / "plots").exists()


def test_figures_without_a_model_stay_in_the_working_directory(refit: Pod, twin: Twin) -> None:
    refit.write("""
        def objective(trial):
            import matplotlib.pyplot as plt
            plt.title("Loss, all")
            plt.show()
    """)
    ended = refit.run()
    assert ended.code == 0, ended
    file = refit.working_directory / "plots" / "loss-all.png"
    assert twin.study.trials[-1].user_attrs == {"plots": [str(file)]}
