"""Scripts that optimize several studies are rejected before any training; those that only seem to run."""

from __future__ import annotations

import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import optuna
import pytest
from tuning_trainer.modes.lookahead import check_only_call

from tests.unit.trainer.pod import BARE, FULL, Pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    "twice in a line": """
        a = optuna.create_study(direction="maximize"); a.optimize(objective); a.optimize(objective)
    """,
    "a loop in a line": """
        for name in "ab": optuna.create_study(study_name=name, direction="maximize").optimize(objective)
    """,
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
    "loop over a part of a configuration": """
        CONFIG = {"targets": ["a", "b"], "epochs": 3}
        for name in CONFIG["targets"]:
            tune(name)
    """,
    "loop over a function's list": """
        def targets():
            return ["a", "b"]
        for name in targets():
            tune(name)
    """,
    "recursion": """
        def run(names):
            if not names:
                return
            tune(names[0])
            run(names[1:])
        run(["a", "b"])
    """,
    "dict of callables": """
        jobs = {"a": lambda: tune("a"), "b": lambda: tune("b")}
        results = {}
        for k, job in jobs.items():
            results[k] = job()
    """,
    "list of functions": """
        for f in (tune_forest, functools.partial(tune, "x")):
            f()
    """,
    "generator function": """
        def all_studies():
            for n in ("a", "b"):
                study = optuna.create_study(study_name=n, direction="maximize")
                study.optimize(objective)
                yield study
        print(list(all_studies()))
    """,
    "class stages": """
        class Pipeline:
            def __init__(self):
                self.results = {}
            def _tune(self, name):
                self.study = optuna.create_study(study_name=name, direction="maximize")
                self.study.optimize(objective, n_trials=3)
                self.results[name] = self.study.best_params
            def run(self):
                self._tune("a")
                self._tune("b")
        Pipeline().run()
    """,
    "function that takes the study": """
        def go(study):
            study.optimize(objective, n_trials=3)
            return study
        go(optuna.create_study(study_name="a", direction="maximize"))
        go(optuna.create_study(study_name="b", direction="maximize"))
    """,
    "studies in a dict": """
        studies = {}
        studies["a"] = optuna.create_study(study_name="a", direction="maximize")
        studies["b"] = optuna.create_study(study_name="b", direction="maximize")
        studies["a"].optimize(objective)
        studies["b"].optimize(objective)
    """,
    "itertools product": """
        import itertools
        for a, b in itertools.product(["x", "y"], [0.1, 0.2]):
            tune(a + str(b), b)
    """,
    "assignment expression in while": """
        queue = ["a", "b"]
        while (n := queue.pop() if queue else None):
            tune(n)
    """,
    "modules that optimize when they are imported": """
        import first
        import second
    """,
    "coarse, then fine": """
        coarse = optuna.create_study(study_name="coarse", direction="maximize")
        coarse.optimize(objective, n_trials=5)
        x = coarse.best_params["x"]
        fine = optuna.create_study(study_name="fine", direction="maximize")
        fine.optimize(lambda t: t.suggest_float("x", x - 0.1, x + 0.1), n_trials=5)
    """,
    "condition on the environment": """
        import os
        tune("a")
        if os.environ.get("SECOND", "yes") == "yes":
            tune("b")
    """,
    "reduce": """
        best = functools.reduce(lambda acc, n: acc + [tune(n)], ["a", "b"], [])
    """,
    "objects that are called": """
        from dataclasses import dataclass
        @dataclass
        class Exp:
            name: str
            def __call__(self):
                return tune(self.name)
        a, b = Exp("a"), Exp("b")
        a()
        b()
    """,
    "property": """
        class Exp:
            def __init__(self, n): self.n = n
            @property
            def best(self):
                return tune(self.n)
        print(Exp("a").best, Exp("b").best)
    """,
    "function defined later": """
        tune("a")
        def second():
            study = optuna.create_study(study_name="b", direction="maximize")
            study.optimize(objective, n_trials=2)
        second()
    """,
    "items added later": """
        tune("a")
        rest = []
        rest.append("b")
        for n in rest:
            tune(n)
    """,
    "yield from": """
        def names():
            yield from ["a", "b"]
        for n in names():
            tune(n)
    """,
    "enumeration": """
        import enum
        class M(enum.Enum):
            A = "a"
            B = "b"
        for m in M:
            tune(m.value)
    """,
    "unknown condition in a loop": """
        import os
        for m in ["a", "b"]:
            if not os.path.exists(m + ".done"):
                tune(m)
    """,
    "two of three in a loop": """
        CFG = {"a": {"on": True}, "b": {"on": True}, "c": {"on": False}}
        for k, v in CFG.items():
            if v["on"]:
                tune(k)
    """,
    "closures": """
        def main():
            def one(n):
                tune(n)
            one("a")
            one("b")
        main()
    """,
    "keyword arguments": """
        def main(**kw):
            for n in kw["names"]:
                tune(n)
        main(names=["a", "b"])
    """,
    "comprehension with a condition": """
        out = {
            n: tune(n)
            for n in ("a", "b", "c")
            if n != "c"
        }
    """,
    "while True": """
        import os
        i = 0
        while True:
            tune("s%d" % i)
            i += 1
            if i > 2: break
    """,
    "field of a dataclass": """
        from dataclasses import dataclass, field
        @dataclass
        class E:
            names: list = field(default_factory=lambda: ["a", "b"])
            def run(self):
                return {n: self.one(n) for n in self.names}
            def one(self, n):
                s = optuna.create_study(study_name=n, direction="maximize")
                s.optimize(objective, n_trials=2)
                return s.best_value
        print(E().run())
    """,
    "method in a variable of its name": """
        run = Tuner("a").run
        run()
        other = Tuner("b")
        other.run()
    """,
    "function of a module whose value is unknown": """
        import importlib
        importlib.import_module("tuning86").tune_model("a")
        importlib.import_module("tuning86").tune_model("b")
    """,
    "static method of a class whose value is unknown": """
        class Static:
            @staticmethod
            def run_all(name):
                tune(name)
        kinds = iter([Static, Static])
        next(kinds).run_all("a")
        next(kinds).run_all("b")
    """,
    "one study in parts": """
        s = optuna.create_study(direction="maximize")
        for n in (5, 10):
            s.optimize(objective, n_trials=n)
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


REJECTED = "train.py calls optimize more than once (line "


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], BaseException | None]:
    """Run a script in a thread until its first optimize that is not rejected."""

    def optimize(*_: object, **__: object) -> None:
        check_only_call(sys._getframe(1))
        raise Training

    def run(code: str) -> BaseException | None:
        (tmp_path / "tuning86.py").write_text(textwrap.dedent(IMPORTED))
        (tmp_path / "first.py").write_text("import optuna\noptuna.create_study().optimize(print)")
        (tmp_path / "second.py").write_text("import optuna\nrun = optuna.create_study()\nrun.optimize(print)")
        train = tmp_path / "train.py"
        train.write_text(START + textwrap.dedent(code))
        with ThreadPoolExecutor(1) as pool:  # a stack without the test's own functions
            run_script = compile(train.read_text(), train, "exec")
            return pool.submit(exec, run_script, {"__name__": "__main__"}).exception()

    monkeypatch.setattr(optuna.Study, "optimize", optimize)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for module in ("tuning86", "first", "second"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return run


class Training(BaseException):
    """The objective would run now."""


@pytest.mark.parametrize("code", SEVERAL.values(), ids=SEVERAL)
def test_a_script_that_will_optimize_again_is_found(
    script: Callable[[str], BaseException | None], code: str
) -> None:
    assert REJECTED in str(script(code))


IN_PODS = {
    "dict comprehension": SEVERAL["dict comprehension"],
    "imported function, twice": SEVERAL["imported function, twice"],
    "the rejection is caught": """
        for name in ["a", "b"]:
            try:
                tune(name)
            except Exception as error:
                print(error)
    """,
    "the second in finally": "try:\n    tune('a')\nfinally:\n    tune('b')",
}


@pytest.mark.parametrize("code", IN_PODS.values(), ids=IN_PODS)
def test_a_script_that_will_optimize_again_is_rejected_before_training(
    pod: Pod, twin: Twin, code: str
) -> None:
    pod.write(IMPORTED, "tuning86.py")
    pod.write(START + textwrap.dedent(code))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 1, ended
    assert twin.failure.category == "Script"
    assert REJECTED in twin.failure.message
    assert (twin.failure.remedy or "").startswith("Set trial.study to the study_name of the study to tune")
    assert not (pod.folder / "trained").exists()


ONE = {
    "several statements in a line": """
        study = optuna.create_study(direction="maximize"); study.optimize(objective); print("done")
        if study: print("all"); print(len(study.trials))
    """,
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
    "a method with the name of a function": """
        import importlib
        def fit():
            tune("a")
        fit()
        model = importlib.import_module("models").Model()
        model.fit()
    """,
    "one of a dict, chosen by the environment": """
        import os
        MODELS = {"svm": 0.1, "tree": 0.2}
        wanted = os.environ.get("MODEL", "svm")
        for name, t in MODELS.items():
            if name != wanted:
                continue
            tune(name, t)
    """,
    "one of a list, chosen by an option": """
        import argparse
        p = argparse.ArgumentParser(); p.add_argument("--model", default="tree"); args = p.parse_args()
        for name in ["svm", "tree"]:
            if name == args.model:
                tune(name)
    """,
    "a function's list of one": """
        def targets():
            return ["a"]
        for name in targets():
            tune(name)
    """,
    "a configuration's list of one": """
        CONFIG = {"targets": ["a"]}
        for name in CONFIG["targets"]:
            tune(name)
    """,
    "text split into one": """
        import os
        for name in os.environ.get("TARGETS", "a").split(","):
            tune(name)
    """,
    "slice": """
        names = ["a", "b", "c"]
        for name in names[:1]:
            tune(name)
    """,
    "while with a flag": """
        done = False
        while not done:
            tune("a")
            done = True
    """,
    "while True with else": """
        while True:
            try:
                tune("a")
            except ValueError:
                continue
            else:
                break
    """,
    "a second one only with an option": """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--two-stage", action="store_true")
        args = parser.parse_args()
        tune("a")
        if args.two_stage:
            tune("b")
    """,
    "early return": """
        def main(quick=True):
            tune("a")
            if quick:
                return
            tune("b")
        main()
    """,
    "after sys.exit": """
        tune("a")
        sys.exit(0)
        tune("b")
    """,
    "after exit in a function": """
        def main():
            tune("a")
            exit()
            tune("b")
        main()
    """,
    "other classes with optimize": """
        class Portfolio:
            def __init__(self): self.weights = []
            def optimize(self, n=3): return n
        p = Portfolio()
        tune("a")
        p.optimize()
        scipy_like = type("m", (), {"optimize": staticmethod(lambda f: 1)})
        scipy_like.optimize(abs)
    """,
    "generator of one": """
        def g():
            yield "a"
        for n in g():
            tune(n)
    """,
    "break on a condition": """
        for n in ["a", "b", "c"]:
            tune(n)
            if n == "a":
                break
    """,
    "retries with else": """
        for attempt in range(3):
            try:
                tune("a")
            except ValueError:
                pass
            else:
                break
    """,
    "all, or one": """
        import argparse
        p = argparse.ArgumentParser(); p.add_argument("--target", default="a"); args = p.parse_args()
        if args.target == "all":
            for t in "ab":
                tune(t)
        elif args.target in ("a", "b"):
            tune(args.target)
        else:
            raise SystemExit(2)
    """,
    "a list of all, or of one": """
        import argparse
        p = argparse.ArgumentParser(); p.add_argument("--target", default="a"); args = p.parse_args()
        targets = ["a", "b"] if args.target == "all" else [args.target]
        print({t: tune(t) for t in targets})
    """,
    "comprehension with a condition that holds once": """
        import os
        print([tune(n) for n in ["a", "b"] if n == os.environ.get("X", "b")])
    """,
    "one of two in a loop": """
        CFG = {"a": {"on": True}, "b": {"on": False}}
        for k, v in CFG.items():
            if v["on"]:
                tune(k)
    """,
    "subcommands": """
        import argparse
        p = argparse.ArgumentParser()
        sub = p.add_subparsers(dest="cmd")
        sub.add_parser("a"); sub.add_parser("b")
        args = p.parse_args()
        if args.cmd in (None, "a"):
            tune("a")
        if args.cmd == "b":
            tune("b")
    """,
    "islice": """
        import itertools
        for n in itertools.islice(["a", "b"], 1):
            tune(n)
    """,
    "a number from the environment": """
        import os
        for i in range(int(os.environ.get("REPEATS", "1"))):
            tune(str(i))
    """,
    "options as a dict": """
        import argparse
        p = argparse.ArgumentParser()
        p.add_argument("--a", action="store_true")
        p.add_argument("--b", action="store_true", default=True)
        args = vars(p.parse_args())
        for n in ("a", "b"):
            if args[n]:
                tune(n)
    """,
    "function of a variable without a value yet": """
        def main():
            def report():
                print("best", result)
            result = tune("a")
            report()
        main()
    """,
    "object that raises when it is called": """
        class Strict:
            @property
            def __call__(self):
                raise RuntimeError("not ready")
        def main():
            tune("a")
            Strict()()
        main()
    """,
    "retries with a flag": """
        finished = False
        while not finished:
            try:
                tune("a")
                finished = True
            except RuntimeError:
                pass
    """,
}


@pytest.mark.parametrize("code", ONE.values(), ids=ONE)
def test_a_script_that_optimizes_one_study_is_not_rejected(
    script: Callable[[str], BaseException | None], code: str
) -> None:
    assert isinstance(script(code), Training)


@pytest.mark.parametrize("case", ["nested study", "loop over the choice of an option"])
def test_a_script_that_optimizes_one_study_runs(pod: Pod, twin: Twin, case: str) -> None:
    pod.write(START + textwrap.dedent(ONE[case]))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"


CHOSEN = {
    "a comprehension that reads the results": """
        best = {name: round(tune(name, x), 2) for name, x in {"low": 0.2, "high": 0.8}.items()}
        print(f"best: {best}", file=sys.stderr)
    """,
    "objects": "for name in ['low', 'high']:\n    print(Tuner(name).run())",
    "an imported function": "import tuning86\nfor name in ('low', 'high'):\n    tuning86.tune_model(name)",
    "a single study, in a loop of unknown length": "for name in str.split('high'):\n    tune(name)",
    "one study twice": """
        study = optuna.create_study(study_name="high", direction="maximize")
        study.optimize(objective)
        study.optimize(objective)
    """,
    "workers": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(2) as pool:
            print(list(pool.map(tune, ["low", "high"])))
    """,
    "created and loaded": """
        optuna.create_study(study_name="high", storage="sqlite:///a.db", direction="maximize")
        optuna.create_study(study_name="low", direction="minimize").optimize(objective)
        optuna.load_study(study_name="high", storage="sqlite:///a.db").optimize(objective)
    """,
}


@pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])
@pytest.mark.parametrize("code", CHOSEN.values(), ids=CHOSEN)
def test_the_study_that_trial_study_names_is_tuned(
    pod: Pod, twin: Twin, code: str, python: tuple[str, ...]
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"study": "high"})
    pod.write(IMPORTED, "tuning86.py")
    pod.write(START + textwrap.dedent(code))
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"
    assert ("the study low is skipped, since trial.study is high" in ended.err) == ("low" in code)


def test_a_study_without_a_name_is_chosen_by_its_position(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"study": "2"})
    pod.write(START + "Tuner('a').run()\ntune_forest()")
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert "the study a is skipped" in ended.err


def test_a_script_without_the_chosen_study_lists_those_that_it_has(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"study": "medium"})
    pod.write(START + "for name in ['low', 'high']:\n    Tuner(name).run()")
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert twin.failure.message == (
        "train.py ended without optimizing the study medium (trial.study): it created the studies low, high."
    )
    assert not (pod.folder / "trained").exists()


@pytest.mark.parametrize(
    "use",
    [
        "print(float(low.best_params['x']))",
        "dict(**low.best_params)",
        "len(low.trials)",
        "low.best_trial.value > 0.5",
        "low.get_trials()[0].value + 1",
        "low.trials_dataframe().to_csv('a.csv') or [row for row in low.trials_dataframe()]",
    ],
)
def test_results_of_a_study_that_is_skipped_cannot_be_used(pod: Pod, twin: Twin, use: str) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"study": "high"})
    pod.write(f"{START}low = Tuner('low').study\nlow.optimize(objective)\n{use}\nTuner('high').run()")
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert "of the study low, which is skipped because trial.study is high" in twin.failure.message


def test_ask_and_tell_cannot_be_skipped(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"study": "high"})
    pod.write("import optuna\noptuna.create_study(study_name='low').ask()")
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert "uses ask and tell with the study low, but trial.study is high" in twin.failure.message


@pytest.mark.parametrize("chosen", ["low", "high"])
def test_the_refit_has_the_results_of_the_chosen_study_only(refit: Pod, chosen: str) -> None:
    refit.environ["TUNING_CONFIG"] = json.dumps({"study": chosen})
    refit.write(START + "print([round(tune(name), 2) for name in ('low', 'high')])")
    ended = refit.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    other = "<unknown: the study {} is skipped>"
    expected = [0.25, other.format("high")] if chosen == "low" else [other.format("low"), 0.25]
    assert ended.out.strip() == f"[{', '.join(map(str, expected))}]"


def test_a_refit_whose_script_catches_the_rejection_of_a_second_study_fails(refit: Pod, twin: Twin) -> None:
    refit.write(START + textwrap.dedent(IN_PODS["the rejection is caught"]))
    assert refit.run("script", "train.py", python=FULL).code == 1
    assert "optimizes a second study" in twin.failure.message


NESTED = """
    import optuna

    study = optuna.create_study(study_name="outer", direction="maximize")
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    inner = optuna.create_study(study_name="threshold", direction="minimize")
    inner.optimize(lambda t: 100 + t.suggest_float("y", 0, 1), n_trials=5, n_jobs=2)
    study.tell(trial, x + (inner.best_value < 100))
"""


@pytest.mark.parametrize("config", [{}, {"study": "outer"}], ids=["any study", "trial.study"])
def test_a_study_between_ask_and_tell_is_the_users_own(pod: Pod, twin: Twin, config: dict[str, str]) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(config)
    pod.write(NESTED)
    ended = pod.run("script", "train.py", python=FULL, timeout=240)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.params.keys() == {"x"}
    assert record.value == record.params["x"]


@pytest.mark.parametrize("call", ["optimize(lambda t: 1.0)", "tell(trial, 1.0)"])
def test_another_study_of_the_script_between_ask_and_tell_is_rejected(
    pod: Pod, twin: Twin, call: str
) -> None:
    pod.write(f"""
        import optuna

        outer = optuna.create_study(study_name="outer", direction="maximize")
        other = optuna.create_study(study_name="other", direction="maximize")
        trial = outer.ask()
        other.{call}
        outer.tell(trial, 0.5)
    """)
    assert pod.run("script", "train.py", python=FULL, timeout=240).code == 1
    assert "the study other between ask and tell of the study outer" in twin.failure.message


@pytest.mark.parametrize(
    ("config", "python"), [({"study": "1"}, BARE), ({}, FULL)], ids=["chosen", "the only one"]
)
def test_the_study_that_asked_may_be_loaded_to_tell(
    pod: Pod, twin: Twin, config: dict[str, str], python: tuple[str, ...]
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps(config)
    pod.write("""
        import optuna

        URL = "sqlite:////nowhere/study.db"
        study = optuna.create_study(direction="maximize", storage=URL)
        trial = study.ask()
        optuna.load_study(study_name=study.study_name, storage=URL).tell(trial, 1.0)
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 1.0
