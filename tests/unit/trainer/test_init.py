"""`init`: the studies of scripts as people write them, recorded with Optuna and without."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import optuna
import pytest
from tuning_operator.trainer_archive import trainer_archive

from tests.unit.trainer.pod import BARE, FULL

both = pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trainer.zip").write_bytes(trainer_archive().content)
    return tmp_path


def init(folder: Path, code: str, *arguments: str, python: tuple[str, ...] = FULL) -> dict[str, Any]:
    """Run `init` with nothing of a pod's environment; return the document."""
    (folder / "train.py").write_text(textwrap.dedent(code))
    command = [*python, "trainer.zip", "init", "--output", "asked.json", "train.py", *arguments]
    ended = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, timeout=240)
    assert (folder / "asked.json").exists(), ended.stderr
    document = json.loads((folder / "asked.json").read_text())
    assert ended.returncode == (1 if document["failure"] else 0), ended.stderr
    assert "tuning" not in ended.stdout
    assert (document["study"] is None) == (document["failure"] is not None)
    return document


WHOLE = """
    import optuna

    def objective(trial):
        raise SystemExit("must not run")

    if __name__ == "__main__":
        print("loading")
        study = optuna.create_study(
            study_name="mine", direction="maximize", storage="postgresql://nobody@nowhere.invalid/none",
            sampler=optuna.samplers.TPESampler(seed=42, multivariate=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=10), load_if_exists=True,
        )
        study.set_metric_names(["accuracy"])
        study.enqueue_trial({"lr": 0.01, "layers": 2})
        study.optimize(objective, n_trials=100, timeout=3600)
        raise SystemExit("must not be reached")
"""


@both
def test_a_whole_script(folder: Path, python: tuple[str, ...]) -> None:
    document = init(folder, WHOLE, python=python)
    study = document["study"]
    notes = study.pop("notes")
    assert study == {
        "call": "optimize",
        "studyName": "mine",
        "directions": ["maximize"],
        "metricNames": ["accuracy"],
        "sampler": {"name": "TPESampler", "args": {"seed": 42, "multivariate": True}},
        "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 5, "n_warmup_steps": 10}},
        "nTrials": 100,
        "timeout": 3600.0,
        "initialTrials": [{"lr": 0.01, "layers": 2}],
    }
    assert document["optuna"] == (optuna.__version__ if python == FULL else None)
    assert any("storage is ignored" in note for note in notes)


@both
def test_a_script_that_says_nothing_gets_optunas_defaults(folder: Path, python: tuple[str, ...]) -> None:
    study = init(folder, "import optuna\noptuna.create_study().optimize(print)", python=python)["study"]
    assert study == {
        "call": "optimize",
        "studyName": None,
        "directions": ["minimize"],
        "metricNames": None,
        "sampler": None,
        "pruner": None,
        "nTrials": None,
        "timeout": None,
        "initialTrials": [],
        "notes": [],
    }


def test_several_objectives_and_arguments_of_the_script(folder: Path) -> None:
    code = """
        import optuna, sys

        assert __name__ == "__main__"
        study = optuna.create_study(directions=["maximize", "minimize"])
        study.optimize(print, n_trials=int(sys.argv[1]))
    """
    study = init(folder, code, "7")["study"]
    assert (study["directions"], study["nTrials"]) == (["maximize", "minimize"], 7)


def test_objects_in_arguments_and_an_assignment(folder: Path) -> None:
    code = """
        import optuna
        from optuna.samplers.nsgaii import SBXCrossover
        from optuna.study import MaxTrialsCallback

        study = optuna.create_study(
            pruner=optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_warmup_steps=3), patience=1))
        study.sampler = optuna.samplers.NSGAIISampler(crossover=SBXCrossover(eta=2.0))
        study.optimize(print, callbacks=[MaxTrialsCallback(30), lambda study, trial: None])
    """
    study = init(folder, code)["study"]
    assert study["nTrials"] == 30
    assert study["pruner"] == {
        "name": "PatientPruner",
        "args": {"wrapped_pruner": {"name": "MedianPruner", "args": {"n_warmup_steps": 3}}, "patience": 1},
    }
    crossover = {"name": "SBXCrossover", "args": {"eta": 2.0}}
    assert study["sampler"] == {"name": "NSGAIISampler", "args": {"crossover": crossover}}
    assert [note for note in study["notes"] if "<lambda> runs in each trial" in note]


@pytest.mark.parametrize(
    ("code", "note"),
    [
        (
            "study = optuna.create_study(sampler=optuna.samplers.TPESampler(constraints_func=print))",
            "constraints_func stays in the script",
        ),
        ("optuna.create_study()\nstudy = optuna.create_study()", "the script also creates another study"),
        (
            "study = optuna.load_study(study_name='a', storage='sqlite:///a.db')",
            "its directions are unknown",
        ),
        (
            "study = optuna.create_study()\nstudy.add_trial(optuna.trial.create_trial(value=1.0))",
            "1 trial from add_trial left out",
        ),
        (
            "study = optuna.create_study()\nstudy.add_trials([optuna.trial.create_trial(value=1.0)] * 2)",
            "2 trials from add_trial left out",
        ),
        ("study = optuna.create_study()\nstudy.enqueue_trial({'x': None})", "omits x: only numbers"),
    ],
)
def test_what_a_manifest_cannot_express_is_noted(folder: Path, code: str, note: str) -> None:
    study = init(folder, f"import optuna\n{code}\nstudy.optimize(print)\n")["study"]
    assert [one for one in study["notes"] if note in one], study["notes"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("optuna.create_study().optimize(print, n_jobs=4)", "calls optimize with n_jobs=4"),
        ("optuna.create_study().optimize(print, n_jobs=-1)", "calls optimize with n_jobs=-1"),
        (
            "optuna.create_study(sampler=optuna.samplers.TPESampler(gamma=lambda n: 3)).optimize(print)",
            "The script's sampler TPESampler has gamma of type function, which a manifest can't express",
        ),
        (
            "class Mine(optuna.samplers.RandomSampler): pass\n"
            "optuna.create_study(sampler=Mine()).optimize(print)",
            "The script's sampler Mine is not one of optuna.samplers",
        ),
    ],
)
def test_what_each_trial_would_fail_on_is_refused(folder: Path, code: str, says: str) -> None:
    assert says in init(folder, f"import optuna\n{code}\n")["failure"]["message"]


def test_a_pruner_of_several_objectives_is_left_out(folder: Path) -> None:
    code = (
        "optuna.create_study(directions=['minimize'] * 2, pruner=optuna.pruners.NopPruner()).optimize(print)"
    )
    study = init(folder, f"import optuna\n{code}\n")["study"]
    assert study["pruner"] is None
    assert "the script's pruner is ignored" in study["notes"][0]


def test_a_study_that_is_created_and_loaded_is_one(folder: Path) -> None:
    code = """
        import optuna
        optuna.create_study(study_name="a", storage="sqlite:///a.db", direction="maximize")
        study = optuna.load_study(study_name="a", storage="sqlite:///a.db")
        study.optimize(print)
    """
    study = init(folder, code)["study"]
    assert study["directions"] == ["maximize"]
    assert study["notes"] == ["the script's storage is ignored: the study server keeps the study"]


WORKERS = {
    "a pool": """
        from multiprocessing import get_context
        with get_context(START).Pool(2) as pool:
            pool.map(run, range(4))
    """,
    "an executor": """
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        with ProcessPoolExecutor(2, mp_context=get_context(START)) as pool:
            for future in [pool.submit(run, number) for number in range(4)]:
                future.result()
    """,
    "processes": """
        from multiprocessing import get_context
        for number in range(2):
            get_context(START).Process(target=run, args=(number,)).start()
    """,
    "the study's own method": """
        from multiprocessing import get_context
        process = get_context(START).Process(target=make().optimize, args=(objective,))
        process.start()
        process.join()
    """,
    "threads": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(2) as pool:
            for number in range(4):
                pool.submit(run, number)
    """,
}


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("code", WORKERS.values(), ids=WORKERS)
def test_a_study_of_worker_processes_is_recorded(folder: Path, code: str, start: str) -> None:
    main = textwrap.indent(textwrap.dedent(code).replace("START", repr(start)), "    ")
    script = f"""\
import optuna

def objective(trial):
    raise SystemExit("must not run")

def make():
    sampler = optuna.samplers.TPESampler(seed=4)
    return optuna.create_study(study_name="mine", direction="maximize", sampler=sampler)

def run(number):
    make().optimize(objective, n_trials=5)

if __name__ == "__main__":
{main}
"""
    study = init(folder, script)["study"]
    assert (study["studyName"], study["directions"]) == ("mine", ["maximize"])
    assert study["sampler"] == {"name": "TPESampler", "args": {"seed": 4}}


def test_a_worker_says_why_a_study_is_refused(folder: Path) -> None:
    code = """
        import multiprocessing, optuna

        def run():
            optuna.create_study().optimize(print, n_jobs=2)

        if __name__ == "__main__":
            process = multiprocessing.Process(target=run)
            process.start()
            process.join()
    """
    assert "n_jobs=2" in init(folder, code)["failure"]["message"]


def test_one_of_several_studies_is_chosen(folder: Path) -> None:
    code = """
        import optuna

        def tune(name, seed):
            study = optuna.create_study(study_name=name, sampler=optuna.samplers.TPESampler(seed=seed))
            study.optimize(print, n_trials=seed)
            return study.best_params

        print({name: tune(name, seed) for name, seed in {"low": 2, "high": 3}.items()})
    """
    assert "Use --study NAME" in init(folder, code)["failure"]["remedy"]
    (folder / "train.py").write_text(textwrap.dedent(code))
    command = [*FULL, "trainer.zip", "init", "--output", "asked.json", "--study", "high", "train.py"]
    subprocess.run(command, cwd=folder, env={}, check=True, capture_output=True, timeout=240)
    study = json.loads((folder / "asked.json").read_text())["study"]
    assert (study["studyName"], study["nTrials"], study["notes"]) == ("high", 3, [])


@both
def test_ask_and_tell_is_recorded(folder: Path, python: tuple[str, ...]) -> None:
    study = init(folder, "import optuna\noptuna.create_study().ask()", python=python)["study"]
    assert study["call"] == "ask"
    assert "ask and tell" in study["notes"][0]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("study = optuna.create_study()", "train.py ended without calling study.optimize"),
        ("import no_such_package", "train.py ended before it called study.optimize: ModuleNotFoundError"),
        ("raise SystemExit(2)", "train.py ended before it called study.optimize: SystemExit: 2"),
        (
            "a = optuna.create_study()\nb = optuna.create_study()\na.optimize(1)\nb.optimize(1)",
            "more than once (line 4, 5)",
        ),
        ("optuna.create_study(direction='up')", "ValueError: `directions` must be a list of"),
    ],
)
def test_a_script_without_one_study_says_why(folder: Path, code: str, says: str) -> None:
    failure = init(folder, f"import optuna\n{code}\n")["failure"]
    assert says in failure["message"]


@both
def test_a_script_that_needs_arguments_is_refused(folder: Path, python: tuple[str, ...]) -> None:
    code = """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--data", required=True)
        parser.parse_args()
    """
    failure = init(folder, code, python=python)["failure"]
    assert failure["message"] == "train.py ended before it called study.optimize: SystemExit: 2"
    assert failure["remedy"].endswith("for example `script: train.py --epochs 3`, or give each a default.")


def test_a_file_that_is_not_there_and_wrong_arguments(folder: Path) -> None:
    command = [*BARE, "trainer.zip", "init", "--output", "asked.json"]
    missing = subprocess.run([*command, "trian.py"], cwd=folder, capture_output=True, text=True, timeout=240)
    assert missing.returncode == 1
    assert (
        "Script 'trian.py' not found in"
        in json.loads((folder / "asked.json").read_text())["failure"]["message"]
    )
    wrong = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert wrong.returncode == 2
    assert "usage: trainer.zip init" in wrong.stderr


def test_a_function_of_a_variable_without_a_value_yet(folder: Path) -> None:
    code = """
        import optuna

        def main():
            def report():
                print("best", result)

            study = optuna.create_study(direction="maximize")
            study.optimize(print, n_trials=10)
            result = study.best_value
            report()

        main()
    """
    assert init(folder, code)["study"]["nTrials"] == 10
