"""The runtime and the real study server, speaking the protocol to each other."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.study_server import RunningServer, running_server, study_server  # noqa: F401
from tests.unit.trainer.pod import BARE, Pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASK = {"parallelism": 1, "maxTrials": 12}

OBJECTIVE = """
    def objective(trial):
        layers = trial.suggest_int("n_layers", 1, 3)
        rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        dropout = trial.suggest_float("dropout", 0.1, 0.5, step=0.1)
        kind = trial.suggest_categorical("optimizer", ["Adam", None, True, 2, 0.5])
        units = [trial.suggest_int(f"units_{i}", 64, 256, step=64) for i in range(layers)]
        score = sum(units) / 256 - dropout + rate + (kind == "Adam")
        for step in range(5):
            trial.report(score * step, step)
            if trial.should_prune():
                import optuna

                raise optuna.TrialPruned
        return score
"""


def declare(server: RunningServer, **definition: Any) -> Callable[[], dict[str, Any]]:
    """Declare the study; return a function that asks for its next trial and returns the summary."""
    operator = server.operator()
    base = {"objectives": [{"metric": "accuracy", "direction": "maximize"}]}
    done = operator.put("/v1/studies/ml/mnist", json={**base, **definition})
    assert done.status_code == 200, done.text
    return lambda: operator.post("/v1/studies/ml/mnist/ask", json=ASK).raise_for_status().json()


def pod_of(server: RunningServer, folder: Path, number: int = 0) -> Pod:
    pod = Pod(folder, server.trial_url("ml", "mnist", number))
    pod.token.write_text(server.pod_token("ml", "mnist", number))
    return pod


def view(server: RunningServer, number: int = 0) -> dict[str, Any]:
    """Return a trial as its pod sees it."""
    return server.pod("ml", "mnist", number).get(server.trial_url("ml", "mnist", number)).json()


def record(server: RunningServer, number: int = 0) -> dict[str, Any]:
    return view(server, number)["trial"]


def test_a_study_is_exactly_that_of_study_optimize(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    args = {"seed": 7, "n_startup_trials": 4}
    ask = declare(
        study_server,
        sampler={"name": "TPESampler", "args": args},
        pruner={"name": "MedianPruner", "args": {"n_startup_trials": 3}},
    )
    while running := ask()["running"]:
        pod = pod_of(study_server, tmp_path, running[0]["number"])
        pod.write(OBJECTIVE)
        ended = pod.run(python=BARE)
        assert ended.code == 0, ended
    space: dict[str, Any] = {}
    exec(textwrap.dedent(OBJECTIVE), space)
    plain = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(**args),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    plain.optimize(space["objective"], n_trials=ASK["maxTrials"])
    records = [record(study_server, number) for number in range(ASK["maxTrials"])]
    assert [one["parameters"] for one in records] == [trial.params for trial in plain.trials]
    assert [one["state"] for one in records] == [trial.state.name for trial in plain.trials]
    assert [one["values"] for one in records] == [trial.values for trial in plain.trials]
    assert {"COMPLETE", "PRUNED"} == {one["state"] for one in records}


def test_a_server_that_restarts_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    code = """
        import pathlib, time

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            for step in range(40):
                trial.report(x + step, step)
                trial.should_prune()
                pathlib.Path(f"step-{step}").touch()
                time.sleep(0.02)
            return x
    """
    with running_server(store) as server:
        declare(server)()
        pod = pod_of(server, tmp_path)
        pod.write(code)
        process = pod.start(python=BARE)
        while not (tmp_path / "step-3").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        port = int(server.url.rpartition(":")[2])
    with running_server(store, port) as server:
        assert process.wait(240) == 0, process.communicate()
        seen = view(server)
    assert seen["trial"]["state"] == "COMPLETE"
    assert seen["trial"]["values"] == [seen["trial"]["parameters"]["x"]]
    assert len(seen["reported"]) == 40


def test_values_that_json_lacks(study_server: RunningServer, tmp_path: Path) -> None:  # noqa: F811
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        import math

        def objective(trial):
            trial.report(math.nan, 0)
            trial.report(-math.inf, 1)
            trial.set_user_attr("loss", [math.nan])
            trial.set_constraint("c", math.inf)
            choice = trial.suggest_categorical("c", [math.inf])
            assert choice == math.inf
            assert math.isnan(trial.suggest_categorical("n", [math.nan]))
            assert trial.suggest_categorical("t", [(1, 2)]) == (1, 2)
            return math.inf
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    seen = view(study_server)
    assert seen["trial"]["values"] == ["Infinity"]
    assert seen["reported"] == {"0": "NaN", "1": "-Infinity"}
    assert seen["constraints"] == {"c": "Infinity"}


def test_a_trial_that_the_operator_has_ended_stops(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        import pathlib, time, tuning_trainer

        def objective(trial):
            for step in range(10_000):
                trial.report(step, step)
                pathlib.Path("begun").touch()
                if trial.should_prune():
                    raise tuning_trainer.TrialPruned
                time.sleep(0.01)
    """)
    process = pod.start(python=BARE)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    result = {"state": "FAIL", "failure": {"category": "Timeout", "message": "too long"}}
    url = study_server.trial_url("ml", "mnist", 0)
    study_server.operator().post(f"{url}/result", json=result).raise_for_status()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "the trial already has a result, which is kept: FAIL" in err
    assert pod.run(python=BARE).code == 1, "its next pod has nothing to do"


def test_a_declared_space_reaches_a_program(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    declare(
        study_server,
        searchSpace=[
            {"name": "lr", "type": "float", "low": 0.1, "high": 0.9},
            {"name": "bias", "type": "categorical", "choices": [True]},
        ],
    )()
    pod = pod_of(study_server, tmp_path)
    line = "echo accuracy={{lr}} $TUNING_PARAM_BIAS"
    assert pod.run("command", "--", "sh", "-c", line, python=BARE).code == 0
    result = record(study_server)
    assert result["values"] == [result["parameters"]["lr"]]


def test_a_script_of_several_objectives(study_server: RunningServer, tmp_path: Path) -> None:  # noqa: F811
    declare(
        study_server,
        objectives=[
            {"metric": "accuracy", "direction": "maximize"},
            {"metric": "latency", "direction": "minimize"},
        ],
    )()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        import optuna

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            return x, 1 - x

        study = optuna.create_study(directions=["maximize", "minimize"])
        study.optimize(objective, n_trials=10)
    """)
    assert pod.run("script", "train.py", python=(sys.executable,)).code == 0
    assert len(record(study_server)["values"]) == 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise RuntimeError('the loss exploded')", "the loss exploded"),
        ("trial.suggest_float('x', 0, 1); trial.suggest_int('x', 0, 1)", "different distribution kind"),
    ],
)
def test_a_failure_is_in_the_record(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
    body: str,
    says: str,
) -> None:
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.write(f"def objective(trial):\n    {body}\n")
    assert pod.run(python=BARE).code == 1
    result = record(study_server)
    assert result["state"] == "FAIL"
    assert says in result["failure"]["message"]
    assert "train.py" in result["failure"]["traceback"]


def test_text_that_is_not_valid_unicode_is_in_the_record(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        import os

        def objective(trial):
            name = os.fsdecode(b"caf\\xe9.png")
            trial.set_user_attr("worst", name)
            raise ValueError(f"can't decode {name}")
    """)
    assert pod.run(python=BARE).code == 1
    seen = view(study_server)
    assert seen["trial"]["failure"]["category"] == "Exception"
    assert seen["trial"]["failure"]["message"] == "ValueError: can't decode caf?.png"
    assert seen["userAttrs"]["worst"] == "caf?.png"
    assert pod.termination()["category"] == "Exception"


def test_another_trials_token_is_refused(study_server: RunningServer, tmp_path: Path) -> None:  # noqa: F811
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.token.write_text(study_server.pod_token("ml", "mnist", 1))
    assert pod.run(python=BARE).code == 1
    assert pod.termination()["category"] == "StudyServerRefused"
    assert json.loads(json.dumps(record(study_server)))["state"] == "RUNNING"


def test_a_trial_that_the_database_has_lost_does_not_become_another_one(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The record is replaced while the pod runs, and another trial gets its number."""
    space = [{"name": "x", "type": "float", "low": 0, "high": 1}]
    declare(study_server, searchSpace=space, deletionPolicy="Delete")()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        from pathlib import Path
        from time import sleep

        def objective(trial):
            Path("begun").touch()
            while not Path("replaced").exists():
                sleep(0.01)
            return trial.params["x"]
    """)
    process = pod.start(python=BARE)
    study_server.wait_until("begun", (tmp_path / "begun").exists)
    study_server.operator().delete("/v1/studies/ml/mnist").raise_for_status()
    declare(study_server, searchSpace=space)()
    other = record(study_server)
    (tmp_path / "replaced").touch()
    _, log = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "refused the result, which is in the pod's termination message" in log
    assert "the database has lost trial 0 of this pod" in log
    assert pod.termination()["state"] == "COMPLETE"
    assert record(study_server) == other


def test_what_the_server_cannot_keep_holds_nothing_up(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Neither do the values that are sent with it get lost, nor does the trial end."""
    declare(study_server)()
    pod = pod_of(study_server, tmp_path)
    pod.write("""
        def objective(trial):
            for step in (0, 2**31, 1):
                trial.report(0.5, step)
            with trial._outbox.gathering():
                for step in (2, 3, 2**40, 4, 5):
                    trial.report(0.5, step)
            trial.set_user_attr("k" * 513, 1)
            trial.set_user_attr("large", "x" * 20 * 2**20)
            trial.set_user_attr("after", 1)
            return 0.5
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    seen = view(study_server)
    assert seen["trial"]["state"] == "COMPLETE"
    assert seen["reported"] == dict.fromkeys("012345", 0.5)
    assert seen["userAttrs"] == {"after": 1}
    for line in (
        "rejected the value of step 2147483648, which is lost: values: The step 2147483648 is too large",
        "rejected the value of step 1099511627776, which is lost",
        "rejected the user attribute 'kkkkkkkkkk",
        "rejected the user attribute 'large', which is lost: body: the request is larger than 1024 KiB",
    ):
        assert ended.err.count(line) == 1, ended.err
