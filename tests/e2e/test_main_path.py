"""The main path: trials run as Jobs with GPUs, some are pruned, the best parameters are reported."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.e2e.kit import LIMIT, Kubectl, code, optuna_record, phase, study

PRUNABLE = """
    import time

    def objective(trial):
        x = trial.suggest_float("x", 0, 10)
        for step in range(30):
            trial.report(x + 1 / (step + 1), step)
            if trial.should_prune():
                import tuning_trainer
                raise tuning_trainer.TrialPruned()
            time.sleep(0.1)
        return x
"""


class JobWatch(threading.Thread):
    """Watches the Jobs of a study and records all their states."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        super().__init__(daemon=True)
        self._kubectl, self._name = kubectl, name
        self.names: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):  # a watch ends early if the API server does
            with self._kubectl.watch("jobs", None, LIMIT, f"tuning.dev/study={self._name}") as jobs:
                for job in jobs:
                    self.names.add(job["metadata"]["uid"] + "/" + job["metadata"]["name"])


def running_at_once(trials: list[Any]) -> int:
    """Return the largest number of trials that ran at the same time, according to the record."""
    moments = [(t.datetime_start, 1) for t in trials] + [(t.datetime_complete, -1) for t in trials]
    running = most = 0
    for _, change in sorted(moments, key=lambda moment: (moment[0], moment[1])):
        running += change
        most = max(most, running)
    return most


def test_study_completes_prunes_and_reports_the_best_trial(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        code("sweep-code", PRUNABLE),
        study("sweep", image, maxTrials=12, parallelism=3,
              pruner={"name": "MedianPruner", "args": {"n_startup_trials": 3, "n_warmup_steps": 2}}),
    )  # fmt: skip
    watch = JobWatch(kubectl, "sweep")
    watch.start()
    done = kubectl.wait("sweep", phase("Completed", "Failed"))
    status = done["status"]
    assert status["phase"] == "Completed", kubectl.diagnostics("sweep")
    assert status["progress"] == "12/12"
    assert status["trials"]["failed"] == 0, kubectl.diagnostics("sweep")
    assert status["trials"]["pruned"] > 0
    assert status["trials"]["running"] == 0

    with optuna_record(kubectl, "sweep") as record:
        trials = record.trials
        assert [t.number for t in trials] == list(range(12))
        assert running_at_once(trials) == 3
        assert status["best"]["number"] == record.best_trial.number
        assert status["best"]["values"] == [record.best_value]
        assert status["best"]["parameters"]["x"] == record.best_params["x"]
        pruned = [t for t in trials if t.state.name == "PRUNED"]
        assert len(pruned) == status["trials"]["pruned"]
        assert min(len(trial.intermediate_values) for trial in pruned) < 30, "one was stopped early"
        for trial in pruned:  # its pod exited with 0
            pod = f"tuning.dev/study=sweep,tuning.dev/trial={trial.number}"
            kubectl.wait_for("jsonpath={.status.phase}=Succeeded", "pod", "-l", pod)
            assert len(kubectl.items("pods", pod)) == 1

    deadline = time.monotonic() + LIMIT
    while len(watch.names) < 12 and time.monotonic() < deadline:
        time.sleep(0.1)  # kubectl prints a moment later
    watch.over.set()
    by_name = {name.partition("/")[2] for name in watch.names}
    assert by_name == {f"sweep-{n}" for n in range(12)}
    assert len(watch.names) == 12, "a trial had two Jobs"

    table = kubectl.run("get", "tuningstudies")
    header = table.splitlines()[0].split()
    for column in ("PHASE", "RUNNING", "PRUNED", "FAILED", "BEST", "AGE"):
        assert column in header, table
    assert "12/12" in table
    described = kubectl.run("describe", "tuningstudy", "sweep")
    assert "Completed" in described.partition("Events:")[2], described


def test_every_trial_requested_its_gpu(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        code("gpu-code", "def objective(trial):\n    return trial.params['x']\n"), study("gpu", image)
    )
    kubectl.wait("gpu", phase("Completed"))
    pods = kubectl.items("pods", "tuning.dev/study=gpu")
    assert len(pods) == 4
    for pod in pods:
        container = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["spec"]["nodeName"]


def test_two_studies_at_once_are_independent(kubectl: Kubectl, image: str) -> None:
    objective = "def objective(trial):\n    return trial.params['x']\n"
    kubectl.apply(
        code("red-code", objective),
        code("blue-code", objective),
        study(
            "red", image, maxTrials=3, parallelism=2, sampler={"name": "RandomSampler", "args": {"seed": 7}}
        ),
        study(
            "blue", image, maxTrials=3, parallelism=2, sampler={"name": "RandomSampler", "args": {"seed": 8}}
        ),
    )
    for name in ("red", "blue"):
        assert kubectl.wait(name, phase("Completed", "Failed"))["status"]["progress"] == "3/3"
    with optuna_record(kubectl, "red") as red, optuna_record(kubectl, "blue") as blue:
        assert len(red.trials) == len(blue.trials) == 3
        assert {t.params["x"] for t in red.trials}.isdisjoint({t.params["x"] for t in blue.trials})


def test_objective_suggests_its_own_parameters(kubectl: Kubectl, image: str) -> None:
    source = """
        def objective(trial):
            layers = trial.suggest_int("layers", 1, 3)
            units = [trial.suggest_int(f"units_{i}", 4, 64, log=True) for i in range(layers)]
            kind = trial.suggest_categorical("kind", ["relu", "tanh"])
            return sum(units) + (kind == "relu")
    """
    manifest = study("own", image, maxTrials=5)
    del manifest["spec"]["searchSpace"]
    kubectl.apply(code("own-code", source), manifest)
    kubectl.wait("own", phase("Completed"))
    with optuna_record(kubectl, "own") as record:
        for trial in record.trials:
            assert trial.state.name == "COMPLETE"
            assert {f"units_{i}" for i in range(trial.params["layers"])} <= set(trial.params)
            assert set(trial.params) == {"layers", "kind"} | {
                f"units_{i}" for i in range(trial.params["layers"])
            }
