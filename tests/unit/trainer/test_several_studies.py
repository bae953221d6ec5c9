"""Scripts that optimize several studies are rejected before any training; those that only seem to run."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.unit.trainer.pod import FULL, Pod

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin

START = """
import functools, sys
import optuna

def objective(trial, target=0.5):
    open("trained", "a").write("x")
    return abs(trial.suggest_float("x", 0, 1) - target)

def tune(name, target=0.5):
    study = optuna.create_study(study_name=name, direction="maximize")
    study.optimize(functools.partial(objective, target=target), n_trials=15)
    return study.best_params["x"]

class Tuner:
    def __init__(self, name):
        self.study = optuna.create_study(study_name=name, direction="maximize")

    def run(self):
        self.study.optimize(objective, n_trials=3)
        return self.study.best_params

class Other(Tuner):
    def run(self):
        self.study.optimize(objective, n_trials=5)

def tune_forest():
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=10)

"""

SEVERAL = {
    "dict comprehension": "best = {name: tune(name, x) for name, x in {1: 0.2, 2: 0.8}.items()}",
    "list comprehension in a function": """
        def main(names):
            return [tune(name) for name in names]
        main(["a", "b"])
    """,
    "generator": "print(dict((name, tune(name)) for name in ('a', 'b')))",
    "loop": "for name in ['a', 'b']:\n    print(tune(name))",
    "loop over what a function returns": "for name in str.split('a b'):\n    tune(name)",
    "nested loop": "for name in ['a']:\n    for target in (0.2, 0.8):\n        tune(name, target)",
    "loop that may end early": "for name in 'ab':\n    if tune(name) > 0.9:\n        break",
    "while": "names = ['a', 'b']\nwhile names:\n    tune(names.pop())",
    "map": "print(list(map(tune, ['a', 'b'])))",
    "twice": "a = tune('a')\nb = tune('b')",
    "twice in one statement": "print(tune('a'), tune('b'))",
    "twice in main": """
        def main():
            first = tune("a")
            print(first)
            return tune("b")
        if __name__ == "__main__":
            main()
    """,
    "the second in try": "tune('a')\ntry:\n    tune('b')\nexcept ValueError:\n    pass",
    "the second in with": "tune('a')\nwith open('log', 'w'):\n    tune('b')",
    "the second in a later loop": "tune('a')\nfor name in ['b']:\n    tune(name)",
    "another function": "tune('a')\ntune_forest()",
    "objects in a loop": "for name in ['a', 'b']:\n    Tuner(name).run()",
    "objects one after another": "one = Tuner('a')\none.run()\ntwo = Tuner('b')\ntwo.run()",
    "objects of another class": "Tuner('a').run()\nOther('b').run()",
    "dict of objects": """
        tuners = {name: Tuner(name) for name in "ab"}
        for name, tuner in tuners.items():
            tuner.run()
    """,
    "studies at module level": """
        a = optuna.create_study(direction="maximize")
        b = optuna.create_study(direction="maximize")
        a.optimize(objective)
        b.optimize(objective)
    """,
    "imported function, twice": "from tuning86 import tune_model\na = tune_model('a')\nb = tune_model('b')",
    "imported function in a comprehension": """
        import tuning86
        best = [tuning86.tune_model(kind) for kind in ("svm", "tree")]
    """,
    "through a wrapper": """
        def logged(function):
            @functools.wraps(function)
            def wrapper(*args):
                print("tuning", args)
                return function(*args)
            return wrapper

        tune_logged = logged(tune)
        tune_logged("a")
        tune_logged("b")
    """,
}

IMPORTED = """
    import optuna

    def tune_model(kind):
        def objective(trial):
            open("trained", "a").write("x")
            return trial.suggest_float("C", 0, 1)

        run = optuna.create_study(study_name=kind, direction="maximize")
        run.optimize(objective, n_trials=3)
        return run.best_params
"""


@pytest.mark.parametrize("code", SEVERAL.values(), ids=SEVERAL)
def test_a_script_that_will_optimize_again_is_rejected_before_training(
    pod: Pod, twin: Twin, code: str
) -> None:
    pod.write(IMPORTED, "tuning86.py")
    pod.write(START + textwrap.dedent(code))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 1, ended
    assert twin.failure.category == "Script"
    assert "train.py calls optimize more than once (line " in twin.failure.message
    assert "Give each study its own script" in (twin.failure.remedy or "")
    assert not (pod.folder / "trained").exists()


ONE = {
    "nested study": """
        def outer(t):
            scores = []
            for fold in range(2):
                tuned = optuna.create_study(direction="maximize")
                tuned.optimize(lambda s: s.suggest_float("alpha", 0, 1), n_trials=3)
                scores.append(tuned.best_value)
            return sum(scores) + t.suggest_float("x", 0, 1)

        optuna.create_study(direction="maximize").optimize(outer, n_trials=4)
    """,
    "loop in a function that is never called": """
        def all_of_them():
            for name in ["a", "b"]:
                tune(name)
            tune("c")

        tune("a")
    """,
    "imported function, once": "from tuning86 import tune_model\nprint(tune_model('svm'))",
    "loop of one": "for name in ['a']:\n    tune(name)",
    "loop over the choice of an option": """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--models", nargs="+", default=["svm"])
        args = parser.parse_args()
        for model in args.models:
            tune(model)
    """,
    "comprehension of one": "print({name: tune(name) for name in ('a',)})",
    "retries": """
        for attempt in range(3):
            try:
                tune("a")
                break
            except ConnectionError:
                print("again")
    """,
    "choice by an option": """
        mode = "a"
        if mode == "a":
            tune("a")
        if mode == "b":
            tune("b")
    """,
    "choice of a function": """
        def a():
            tune("a")
        def b():
            tune("b")
        {"a": a, "b": b}["b"]()
    """,
    "either branch": "if len(sys.argv) > 5:\n    tune('a')\nelse:\n    tune('b')",
    "after return": """
        def main():
            if True:
                return tune("a")
            return tune("b")
        main()
    """,
    "after exit": "tune('a')\nraise SystemExit\ntune('b')",
    "several studies, one of them optimized": """
        old = optuna.create_study(study_name="old", direction="maximize")
        tune("new")
        print(len(old.trials))
    """,
    "scipy's optimize": """
        class optimize:
            @staticmethod
            def minimize(function):
                return function(0)
        class Model:
            def optimize(self, steps):
                return steps
        tune("a")
        optimize.minimize(abs)
        Model().optimize(3)
    """,
    "other methods of the same name": """
        import subprocess
        Tuner("a").run()
        subprocess.run(["true"])
    """,
}


@pytest.mark.parametrize("code", ONE.values(), ids=ONE)
def test_a_script_that_optimizes_one_study_runs(pod: Pod, twin: Twin, code: str) -> None:
    pod.write(IMPORTED, "tuning86.py")
    pod.write(START + textwrap.dedent(code))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"
