"""Script mode: whole Optuna scripts as people write them, with Optuna in the image and without."""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import optuna
import pytest
from optuna._convert_positional_args import convert_positional_args
from tuning_trainer.optuna_api.hook import _creating
from tuning_trainer.optuna_api.stand_in import POSITIONAL

from tests.unit.trainer.pod import BARE, FULL, Pod
from tests.unit.trainer.twin import status

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin

both = pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])

SCRIPT = """
    import optuna
    from optuna.trial import TrialState

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            trial.report(x, step)
            if trial.should_prune():
                raise optuna.TrialPruned()
        return x

    if __name__ == "__main__":
        study = optuna.create_study(direction="maximize", study_name="mine", storage="sqlite:///study.db",
                                    load_if_exists=True)
        study.set_user_attr("data", "v1")
        study.optimize(objective, n_trials=100, timeout=600)
        raise SystemExit("must not be reached")
"""


@both
def test_optimize_runs_the_pods_trial_and_ends_the_process(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write(SCRIPT)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.value == record.params["x"]
    assert len(record.intermediate_values) == 3
    assert "spec.maxTrials" in ended.err
    assert not (pod.folder / "study.db").exists()


@both
def test_without_a_guard_and_with_arguments_and_names_imported(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write("""
        import argparse
        from optuna import create_study
        from optuna.samplers import TPESampler
        from optuna.study import load_study

        parser = argparse.ArgumentParser()
        parser.add_argument("--low", type=float)
        low = parser.parse_args().low
        study = create_study(sampler=TPESampler(seed=1), direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("x", low, 1), n_trials=2)
        open("reached", "w")
    """)
    ended = pod.run("script", "train.py", "--low", "0.9", python=python)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value >= 0.9
    assert not (pod.folder / "reached").exists()


def test_load_study_and_a_study_made_by_hand(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        study = optuna.load_study(study_name="x", storage="sqlite:///nowhere.db")
        assert study.direction.name == "MAXIMIZE"
        assert len(study.trials) == 0
        study.enqueue_trial({"x": 0.5})
        study.optimize(lambda trial: 1.0)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended


def test_a_small_study_inside_the_objective_is_the_users_own(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            inner = optuna.create_study()
            inner.optimize(lambda t: t.suggest_float("y", 0, 1), n_trials=3)
            return len(inner.trials)

        study = optuna.create_study(direction="maximize")
        study.optimize(objective, n_trials=1)
    """)
    assert pod.run("script", "train.py").code == 0
    assert twin.study.trials[0].value == 3


@both
def test_ask_and_tell(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.write("""
        import optuna

        study = optuna.create_study(direction="maximize")
        for _ in range(10):
            trial = study.ask()
            study.tell(trial, trial.suggest_int("n", 1, 3))
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == twin.study.trials[0].params["n"]
    assert len(twin.of("/result")) == 1


ASKED = """
    import threading
    from concurrent.futures import ThreadPoolExecutor, as_completed
    import optuna

    study = optuna.create_study(direction="maximize")
    study.set_user_attr("data", "v1")

    def work():
        study.ask()
        raise RuntimeError("boom")

"""
WITHOUT_TELL = {
    "raises": ("work()", "RuntimeError: boom"),
    "ends": ("study.ask()", "ended without reporting a result"),
    "calls optimize": ("study.ask()\nstudy.optimize(print, n_jobs=2)", "n_jobs=2"),
    "in a thread": ("threading.Thread(target=work).start()", "ended without a result"),
    "in an executor": (
        "with ThreadPoolExecutor(2) as pool:\n"
        "    for done in as_completed([pool.submit(work) for _ in 'ab']): done.result()",
        "RuntimeError: boom",
    ),
    "in an executor that is not shut down": (
        "pool = ThreadPoolExecutor(1)\npool.submit(work).result()",
        "RuntimeError: boom",
    ),
}


@pytest.mark.parametrize(("code", "says"), WITHOUT_TELL.values(), ids=WITHOUT_TELL)
def test_a_script_that_asks_and_does_not_call_tell_fails(pod: Pod, twin: Twin, code: str, says: str) -> None:
    pod.write(textwrap.dedent(ASKED) + code)
    ended = pod.run("script", "train.py", timeout=240)
    assert ended.code == 1, ended
    assert says in twin.failure.message
    assert len(twin.of("/result")) == 1


def test_a_thread_may_tell_after_the_scripts_end(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import threading
        import optuna

        study = optuna.create_study(direction="maximize")

        def train(trial):
            threading.main_thread().join(1)
            study.tell(trial, 0.5)

        threading.Thread(target=train, args=(study.ask(),)).start()
    """)
    ended = pod.run("script", "train.py", timeout=240)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.5


def test_a_script_whose_study_the_server_refuses_fails(pod: Pod, twin: Twin) -> None:
    twin.faults.extend([lambda _: False, status(409)])  # the view is served, the attribute refused
    pod.write(textwrap.dedent(ASKED) + "study.optimize(print)")
    ended = pod.run("script", "train.py", timeout=240)
    assert ended.code == 1, ended
    assert "try again" in twin.failure.message


def test_the_result_holds_also_if_the_script_catches_the_end(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        study = optuna.create_study()
        try:
            study.optimize(lambda trial: 0.5)
        except BaseException:
            pass
        study.best_trial
    """)
    twin.study = optuna.create_study()
    twin.trial = twin.study.ask()
    assert pod.run("script", "train.py").code == 0
    assert twin.study.trials[0].value == 0.5


def test_a_process_that_the_script_forks_ends_without_a_result(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import os, sys
        import optuna

        child = os.fork()
        if not child:
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        optuna.create_study(direction="maximize").optimize(lambda trial: 1.0)
    """)
    ended = pod.run("script", "train.py", timeout=240)
    assert ended.code == 0, ended
    assert twin.of("/result") == [{"state": "COMPLETE", "values": [1.0]}]


@both
def test_an_objective_that_raises_is_reported_with_its_traceback(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            raise RuntimeError("the loss exploded")

        optuna.create_study().optimize(objective)
    """)
    assert pod.run("script", "train.py", python=python).code == 1
    assert twin.failure.message == "RuntimeError: the loss exploded"
    assert twin.failure.traceback
    assert 'train.py", line 5, in objective' in twin.failure.traceback
    assert "tuning_trainer" not in twin.failure.traceback


CONFIG = {
    "sampler": {"name": "TPESampler", "args": {"seed": 1}},
    "pruner": {"name": "MedianPruner", "args": {"n_warmup_steps": 5}},
}


@pytest.mark.parametrize(
    "call",
    [
        "direction='maximize'",
        "directions=['maximize']",
        "direction=optuna.study.StudyDirection.MAXIMIZE",
        "sampler=optuna.samplers.TPESampler(seed=1)",
        "sampler=optuna.samplers.TPESampler()",
        "pruner=optuna.pruners.MedianPruner(n_warmup_steps=5)",
    ],
)
@both
def test_the_script_may_repeat_what_the_manifest_has(
    pod: Pod, twin: Twin, python: tuple[str, ...], call: str
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(CONFIG)
    pod.write(f"import optuna\noptuna.create_study({call}).optimize(lambda trial: 0.5)")
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended


def test_a_samplers_arguments_may_be_positional_where_optuna_only_warns(pod: Pod, twin: Twin) -> None:
    sampler = {"name": "TPESampler", "args": {"n_startup_trials": 20}}
    pod.environ["TUNING_CONFIG"] = json.dumps({"sampler": sampler})
    pod.write("""
        import optuna

        sampler = optuna.samplers.TPESampler(None, None, None, None, 20)
        optuna.create_study(sampler=sampler).optimize(lambda trial: 0.5)
    """)
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended


def test_a_studys_arguments_may_be_positional_in_earlier_versions_of_optuna() -> None:
    def create_study(*, storage: Any = None, sampler: Any = None, directions: Any = None) -> None: ...

    create = _creating(
        convert_positional_args(
            previous_positional_arg_names=["storage", "sampler"],
            deprecated_version="3.0.0",
            removed_version="6.0.0",
        )(create_study),
        cast("Any", SimpleNamespace(inside=False, create=lambda _, arguments: arguments)),
    )
    given = {"storage": "sqlite://", "sampler": "TPE", "directions": ["minimize"]}
    assert create("sqlite://", "TPE", directions=["minimize"]) == given


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("direction='minimize'", "direction minimize, but the manifest has spec.objectives: maximize"),
        ("directions=['maximize', 'minimize']", "direction maximize, minimize, but"),
        ("sampler=optuna.samplers.RandomSampler(seed=3)", "the sampler RandomSampler(seed=3), but"),
        (
            "sampler=optuna.samplers.TPESampler(seed=2)",
            "the manifest has spec.sampler: TPESampler(seed=1)",
        ),
        (
            "pruner=optuna.pruners.MedianPruner(n_warmup_steps=6)",
            "MedianPruner(n_warmup_steps=5)",
        ),
        ("pruner=optuna.pruners.NopPruner()", "the pruner NopPruner(), but"),
    ],
)
@both
def test_a_contradiction_of_the_manifest_is_an_error(
    pod: Pod, twin: Twin, python: tuple[str, ...], call: str, says: str
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(CONFIG)
    pod.write(f"import optuna\noptuna.create_study({call}).optimize(lambda trial: 0.5)")
    assert pod.run("script", "train.py", python=python).code == 1
    assert twin.failure.category == "Script"
    assert says in twin.failure.message
    assert "The manifest takes precedence" in (twin.failure.remedy or "")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("study = optuna.create_study()", "ended without calling study.optimize"),
        ("raise SystemExit(0)", "ended without calling study.optimize"),
        ("study = optuna.create_study(); study.optimize(print, n_jobs=4)", "n_jobs=4"),
        (
            "study = optuna.create_study()\nstudy.optimize(print)\nstudy.optimize(print)",
            "more than once (line 3, 4)",
        ),
        ("s = optuna.create_study()\nfor _ in range(3):\n    s.optimize(print)", "more than once (line 4)"),
        (
            "def run(seed):\n    s = optuna.create_study()\n    s.optimize(print)\n\nrun(1)\nbest = run(2)",
            "more than once (line 6, 7)",
        ),
        (
            "def run():\n    s = optuna.create_study()\n    s.optimize(print)\n"
            "def main():\n    run()\nfor _ in 'ab':\n    main()",
            "more than once (line 8)",
        ),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def broken(:", "SyntaxError"),
        ("optuna.create_study().optimize(lambda trial: None)", "The value None could not be cast to float."),
    ],
)
@both
def test_a_script_that_cannot_be_a_trial_says_why(
    pod: Pod, twin: Twin, python: tuple[str, ...], code: str, says: str
) -> None:
    pod.write(f"import optuna\n{code}\n")
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 1, ended
    assert says in twin.failure.message


def test_a_script_that_is_not_there(pod: Pod, twin: Twin) -> None:
    assert pod.run("script", "trian.py", python=BARE).code == 1
    assert "Script 'trian.py' not found in" in twin.failure.message


def test_optimize_in_either_branch_is_one_call(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        study = optuna.create_study()
        if len(study.trials) == 0:
            study.optimize(lambda trial: 1.0, n_trials=5)
        else:
            study.optimize(lambda trial: 2.0, n_trials=5)
    """)
    assert pod.run("script", "train.py").code == 0


def test_the_objective_may_run_studies_of_its_own(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        def fold(trial, number):
            inner = optuna.create_study()
            inner.optimize(lambda t: t.suggest_float("y", 0, 1), n_trials=2)
            return len(inner.trials)

        def objective(trial):
            for number in range(2):
                inner = optuna.create_study()
                inner.optimize(lambda t: 1.0, n_trials=1)
            fold(trial, 0)
            return fold(trial, 1)

        def main():
            study = optuna.create_study(direction="maximize")
            study.optimize(objective)

        main()
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 2


def test_what_the_stand_in_lacks_is_named(pod: Pod, twin: Twin) -> None:
    pod.write("import optuna\noptuna.visualization.plot_slice")
    assert pod.run("script", "train.py", python=BARE).code == 1
    assert "Install optuna for it." in twin.failure.message


def test_processes_that_the_script_spawns_find_its_classes(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import multiprocessing, optuna

        def square(x):
            return x * x

        def objective(trial):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(square, (3,))

        if __name__ == "__main__":
            optuna.create_study(direction="maximize").optimize(objective)
    """)
    ended = pod.run("script", "train.py", python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 9


REFIT = """
    import json, optuna

    study = optuna.create_study(direction="maximize")
    study.optimize(None, n_trials=100)
    best = study.best_trial
    print(json.dumps([study.best_params, study.best_value, best.number, len(study.trials)]))
"""


@both
def test_in_the_refit_the_code_below_optimize_has_the_finished_study(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    twin.study.tell(twin.trial, state=optuna.trial.TrialState.FAIL)
    twin.study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    twin.trial = twin.study.ask()  # what the refit reports on
    twin.finished = twin.study.trials[:-1]
    twin.final = True
    pod.environ["TUNING_ROLE"] = "final"
    pod.write(REFIT)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    best = twin.study.best_trial
    assert json.loads(ended.out) == [best.params, best.value, best.number, 6]
    assert twin.of("/result") == [{"state": "COMPLETE"}]


def test_the_refits_study_is_optunas_own_with_all_that_the_record_has(pod: Pod, twin: Twin) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("note", [1])
        trial.set_constraint("c", -1)
        trial.report(0.5, 3)
        return trial.suggest_int("n", 1, 3) + len(trial.suggest_categorical("c", ["a", "bb"]))

    twin.study.tell(twin.trial, 0.1)
    twin.study.optimize(objective, n_trials=3)
    twin.finished = twin.study.trials
    twin.trial = twin.study.ask()
    twin.final = True
    pod.environ["TUNING_ROLE"] = "final"
    pod.write("""
        import optuna

        study = optuna.create_study()
        study.optimize(None)
        trial = study.trials[1]
        print([trial.params, trial.distributions, trial.user_attrs])
        print([trial.constraints, trial.intermediate_values])
        print(trial.datetime_start, trial.datetime_complete)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    trial = twin.finished[1]
    assert ended.out.splitlines() == [
        str([trial.params, trial.distributions, trial.user_attrs]),
        str([trial.constraints, trial.intermediate_values]),
        f"{trial.datetime_start} {trial.datetime_complete}",
    ]


@pytest.mark.parametrize("value", ["None", "0.5", "'a model'"])
def test_a_final_training_need_not_return_a_value(pod: Pod, twin: Twin, value: str) -> None:
    twin.final = True
    pod.environ["TUNING_ROLE"] = "final"
    pod.write(f"def final(trial): return {value}")
    assert pod.run("objective", "train:final", python=BARE).code == 0
    result = {"state": "COMPLETE", "values": [0.5]} if value == "0.5" else {"state": "COMPLETE"}
    assert twin.of("/result") == [result]


@both
def test_a_module_that_runs_a_study_when_imported_is_rejected(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            return 1.0

        study = optuna.create_study()
        study.optimize(objective, n_trials=100)
    """)
    assert pod.run(python=python).code == 1
    assert "runs a study (optimize, ask or tell) when it is imported" in twin.failure.message
    assert "__main__" in (twin.failure.remedy or "")


def test_an_objective_that_imports_optuna_runs_in_an_image_without_it(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna
        from optuna.trial import Trial, TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)

        def objective(trial: optuna.Trial):
            assert isinstance(trial, optuna.trial.BaseTrial)
            assert trial.study.direction == optuna.study.StudyDirection.MAXIMIZE
            raise optuna.TrialPruned
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "PRUNED"


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("study.sampler = optuna.samplers.RandomSampler(seed=7)", "the sampler RandomSampler(seed=7)"),
        ("study.sampler = optuna.samplers.TPESampler(seed=2)", "the manifest has spec.sampler: TPESampler"),
        ("study.pruner = optuna.pruners.NopPruner()", "the pruner NopPruner()"),
    ],
)
@both
def test_a_sampler_or_pruner_that_is_assigned_must_be_the_manifests(
    pod: Pod, twin: Twin, python: tuple[str, ...], assignment: str, says: str
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(CONFIG)
    run = "study.optimize(lambda trial: 0.5)"
    pod.write(f"import optuna\nstudy = optuna.create_study()\n{assignment}\n{run}\n")
    assert pod.run("script", "train.py", python=python).code == 1
    assert says in twin.failure.message


@both
def test_the_manifests_sampler_may_be_assigned(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(CONFIG)
    pod.write("""
        import optuna

        study = optuna.create_study()
        study.sampler = optuna.samplers.TPESampler(seed=1)
        study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=5)
        study.optimize(lambda trial: 0.5)
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended


def test_annotations_are_types_unless_the_script_says_otherwise(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import argparse, dataclasses, optuna

        @dataclasses.dataclass
        class Settings:
            low: int = 1

        parser = argparse.ArgumentParser()
        for field in dataclasses.fields(Settings):
            parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
        settings = Settings(**vars(parser.parse_args()))
        study = optuna.create_study(direction="maximize")
        study.optimize(lambda trial: trial.suggest_int("n", settings.low, 3))
    """)
    ended = pod.run("script", "train.py", "--low", "3", python=FULL)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 3


@both
def test_the_trials_study_is_the_scripts(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            assert trial.study.study_name == "mlp-v1"
            assert trial.study.user_attrs == {"data": "v1"}
            return 1.0

        study = optuna.create_study(study_name="mlp-v1", direction="maximize")
        study.set_user_attr("data", "v1")
        study.optimize(objective)
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended


@both
def test_attributes_of_the_study_reach_its_record(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            trial.study.set_user_attr("trial", trial.number)
            study.set_user_attr("rows", 7)
            return 1.0

        study = optuna.create_study(direction="maximize")
        study.set_user_attr("data", {"version": 1, "scale": float("inf")})
        study.set_user_attr("tokenizer", objective)
        study.optimize(objective)
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert twin.study.user_attrs == {"data": {"version": 1, "scale": math.inf}, "trial": 0, "rows": 7}
    assert "Not recorded with the study: The attribute 'tokenizer' can't be stored" in ended.err


def test_tell_is_ignored_once_the_trial_has_ended(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        study = optuna.create_study(direction="maximize")
        trial = study.ask()
        try:
            study.tell(trial, 0.5)
        finally:
            study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert twin.of("/result") == [{"state": "COMPLETE", "values": [0.5]}]


@both
def test_a_pruner_of_several_objectives_is_ignored(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    twin.study = optuna.create_study(directions=["maximize", "minimize"])
    twin.trial = twin.study.ask()
    pod.environ["TUNING_CONFIG"] = json.dumps({"pruner": {"name": "NopPruner", "args": {}}})
    pod.write("""
        import optuna

        study = optuna.create_study(directions=["maximize", "minimize"], pruner=optuna.pruners.MedianPruner())
        study.optimize(lambda trial: (1.0, 2.0))
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert "the script's pruner is ignored" in ended.err


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import optuna.visualization", "optuna.visualization"),
        ("from optuna.integration import LightGBMPruningCallback", "optuna.integration"),
        ("from optuna_integration import XGBoostPruningCallback", "optuna_integration"),
    ],
)
def test_a_module_that_the_stand_in_lacks_is_named(pod: Pod, twin: Twin, statement: str, name: str) -> None:
    pod.write(f"import optuna\n{statement}\n")
    assert pod.run("script", "train.py", python=BARE).code == 1
    assert f"{name} is not available: this Python has no Optuna" in twin.failure.message
    assert "Install optuna for it." in twin.failure.message


@pytest.mark.parametrize("arguments", [("script", "train.py"), ("objective", "train:objective")])
def test_a_study_of_the_objective_needs_optuna_in_the_image(
    pod: Pod, twin: Twin, arguments: tuple[str, ...]
) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            inner = optuna.create_study()
            inner.optimize(lambda t: t.suggest_float("y", 0, 1), n_trials=3)
            return inner.best_value

        if __name__ == "__main__":
            optuna.create_study(direction="maximize").optimize(objective)
    """)
    assert pod.run(*arguments, python=BARE).code == 1
    assert "runs a study of its own, which needs Optuna" in twin.failure.message


@both
def test_an_exception_that_optimize_catches_has_its_own_category(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            raise ValueError("too narrow")

        optuna.create_study(direction="maximize").optimize(objective, catch=(KeyError, ValueError))
    """)
    assert pod.run("script", "train.py", python=python).code == 1
    assert twin.failure.category == "Caught"
    assert twin.failure.message == "ValueError: too narrow"


def test_a_module_may_open_a_storage_and_create_a_study_when_imported(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        storage = optuna.storages.RDBStorage("postgresql://nobody@nowhere.invalid/none")
        study = optuna.create_study(study_name="mine", storage="sqlite:////nowhere/study.db")
        loaded = optuna.load_study(study_name="mine", storage=storage)

        def objective(trial):
            inner = optuna.create_study(storage="sqlite:///inner.db")
            inner.optimize(lambda t: t.suggest_float("y", 0, 1), n_trials=2)
            return len(inner.trials)
    """)
    ended = pod.run(python=FULL)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 2
    assert (pod.folder / "inner.db").exists(), "the objective's own studies are plain Optuna"


GRID = """
    import optuna

    grid = {"n": [9, 5, 1], "weights": ["uniform", "distance"], "alpha": [0.1, 0.2, 0.30000000000000004]}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid))
    study.optimize(lambda trial: trial.suggest_int("n", 1, 20))
"""


@both
@pytest.mark.parametrize("high", [9, 13])
def test_the_values_of_a_grid_are_those_of_the_search_space(
    pod: Pod, twin: Twin, python: tuple[str, ...], high: int
) -> None:
    twin.fixed = True
    twin.trial.suggest_int("n", 1, high, step=4)
    twin.trial.suggest_categorical("weights", ["uniform", "distance"])
    twin.trial.suggest_float("alpha", 0.1, 0.3, step=0.1)
    pod.environ["TUNING_CONFIG"] = json.dumps({"sampler": {"name": "GridSampler", "args": {}}})
    pod.write(GRID)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == (0 if high == 9 else 1), ended
    if high == 13:
        assert "The script has the sampler GridSampler(search_space={'n': [9, 5, 1]," in twin.failure.message
        assert "spec.sampler: GridSampler(search_space={'n': [1, 5, 9, 13]," in twin.failure.message


def test_the_stand_in_names_arguments_as_optuna_does() -> None:
    for name, arguments in POSITIONAL.items():
        kind = getattr(optuna.samplers, name, None) or getattr(optuna.pruners, name)
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        assert arguments == tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)
