"""Objective mode, run as in a pod: what the objective does, and what the record then says."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING

import optuna
import pytest

from tests.unit.trainer.pod import BARE, FULL, Pod

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin


@pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])
def test_a_value_is_delivered(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.write("""
        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.set_user_attr("note", {"a": [1, 2]})
            return x
    """)
    ended = pod.run(python=python)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.state.name == "COMPLETE"
    assert record.value == record.params["x"]
    assert record.user_attrs == {"note": {"a": [1, 2]}}
    left = json.loads(pod.log.read_bytes())  # for the operator, should the pod have been unable to send it
    assert (left["state"], left["values"]) == ("COMPLETE", [record.value])


@pytest.mark.parametrize(
    ("own", "then"),
    [("", gc.get_threshold()), ("gc.set_threshold(500, 5, 5)", (500, 5, 5))],
    ids=["python's", "own"],
)
def test_garbage_is_collected_less_often_during_the_import_only(
    pod: Pod, twin: Twin, own: str, then: tuple[int, ...]
) -> None:
    pod.write(f"""
        import gc

        before = gc.get_threshold()
        {own}

        def objective(trial):
            trial.set_user_attr("thresholds", [before, gc.get_threshold()])
            return 1
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    during, after = twin.study.trials[0].user_attrs["thresholds"]
    assert during[0] > 10 * gc.get_threshold()[0]
    assert tuple(after) == then


@pytest.mark.parametrize(
    ("python", "module"), [(BARE, "tuning_trainer"), (FULL, "optuna")], ids=["ours", "theirs"]
)
def test_an_unpromising_trial_is_pruned(pod: Pod, twin: Twin, python: tuple[str, ...], module: str) -> None:
    for _ in range(5):
        done = twin.study.ask()
        for step in range(10):
            done.report(0.9, step)
        twin.study.tell(done, 0.9)
    pod.write(f"""
        import {module}

        def objective(trial):
            for step in range(10):
                trial.report(0.1, step)
                if trial.should_prune():
                    raise {module}.TrialPruned()
            return 0.1
    """)
    ended = pod.run(python=python)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.state.name == "PRUNED"
    assert record.intermediate_values == {0: 0.1}


def test_an_exception_is_reported_with_its_traceback(pod: Pod, twin: Twin) -> None:
    pod.write("""
        def inner():
            raise RuntimeError("the loss exploded")

        def objective(trial):
            inner()
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 1
    failure = twin.failure
    assert failure.category == "Exception"
    assert failure.message == "RuntimeError: the loss exploded"
    assert failure.traceback
    assert 'train.py", line 3, in inner' in failure.traceback
    assert "tuning_trainer" not in failure.traceback, "the user reads their own code"
    assert pod.termination()["message"] == failure.message
    assert "in inner" in ended.err


@pytest.mark.parametrize(
    "replace",
    [
        "with open('train.log', 'w') as sys.stderr: print('training', file=sys.stderr)",
        "sys.stderr = type('Tee', (), {'write': lambda self, text: None})()",
        "sys.stderr = None",
        "sys.stderr.close()",
    ],
    ids=["a closed file", "an object without flush", "nothing", "itself, closed"],
)
def test_standard_error_may_be_replaced(pod: Pod, twin: Twin, replace: str) -> None:
    pod.write(f"import sys\n\ndef objective(trial):\n    {replace}\n    return 0.5\n")
    ended = pod.run(python=BARE)
    assert twin.result, ended
    assert twin.result.values == [0.5]
    assert ("tuning: COMPLETE: 0.5\n" in ended.err) == (replace != "sys.stderr.close()")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "The value None could not be cast to float."),
        ("pass", "The value None could not be cast to float."),
        ("return 'good'", "The value 'good' could not be cast to float"),
        ("return float('nan')", "The value nan is not acceptable"),
        ("return 1.0, 2.0", "The number of the values 2 did not match the number of the objectives 1"),
        ("return {}", "The value {} could not be cast to float"),
    ],
)
def test_no_value_is_a_failure_in_optunas_words(pod: Pod, twin: Twin, body: str, message: str) -> None:
    pod.write(f"def objective(trial):\n    {body}\n")
    ended = pod.run(python=BARE)
    assert ended.code == 1
    assert twin.failure.message == message
    assert twin.failure.remedy
    assert "accuracy" in twin.failure.remedy


def test_several_objectives(pod: Pod, twin: Twin) -> None:
    twin.study = optuna.create_study(directions=["maximize", "minimize"])
    twin.trial = twin.study.ask()
    pod.write("""
        def objective(trial):
            assert [d.name for d in trial.study.directions] == ["MAXIMIZE", "MINIMIZE"]
            try:
                trial.report(1.0, 0)
            except NotImplementedError as error:
                assert "multi-objective" in str(error)
            return 0.5, float("inf")
    """)
    assert pod.run(python=BARE).code == 0
    assert twin.study.trials[0].values == [0.5, float("inf")]


@pytest.mark.parametrize(
    ("code", "target", "says"),
    [
        ("x = 1", "trian:objective", ["Module 'trian' not found", "train.py"]),
        ("import no_such_package", "train:objective", ["no_such_package"]),
        ("def objective(trial:", "train:objective", ["SyntaxError"]),
        ("1 / 0", "train:objective", ["ZeroDivisionError"]),
        ("raise SystemExit(3)", "train:objective", ["SystemExit: 3"]),
        ("def other(trial): ...", "train:objective", ["no 'objective'", "other"]),
        ("objective = 3", "train:objective", ["of type int, not a function"]),
        ("def objective(): ...", "train:objective", ["one argument, the trial", "signature is ()"]),
        ("def objective(trial, data): ...", "train:objective", ["(trial, data)"]),
        ("class objective: ...", "train:objective", ["is a class"]),
    ],
)
def test_an_objective_that_cannot_be_called_is_reported_clearly(
    pod: Pod, twin: Twin, code: str, target: str, says: list[str]
) -> None:
    pod.write(code)
    ended = pod.run("objective", target, python=BARE)
    assert ended.code == 1
    for words in says:
        assert words in twin.failure.message
    assert twin.failure.remedy


def test_the_source_comes_before_the_working_directory(pod: Pod, twin: Twin) -> None:
    (pod.folder / "train.py").write_text("def objective(trial): return 1.0")
    (pod.folder / "helper.py").write_text("VALUE = 3.0")
    pod.write("import helper\ndef objective(trial): return helper.VALUE")
    assert pod.run(python=BARE).code == 0
    assert twin.study.trials[0].value == 3.0


def test_a_trial_that_is_over_is_not_run_again(pod: Pod, twin: Twin) -> None:
    twin.study.tell(twin.trial, 0.5)
    pod.write("raise SystemExit('must not be imported')")
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.result is None


def test_sys_exit_is_a_failure_and_not_a_silent_end(pod: Pod, twin: Twin) -> None:
    pod.write("import sys\ndef objective(trial): sys.exit(0)")
    assert pod.run(python=BARE).code == 1
    assert twin.study.trials[0].state.name == "FAIL"


@pytest.mark.parametrize(
    "environ",
    [
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2"},  # Lightning
        {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"},  # torchrun
        {"LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "2"},
    ],
    ids=str,
)
def test_a_worker_of_distributed_training_gets_the_trial_and_reports_nothing(
    pod: Pod, twin: Twin, environ: dict[str, str]
) -> None:
    pod.environ |= environ
    pod.write("""
        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.report(x, 1)
            trial.set_user_attr("rank", 1)
            assert not trial.should_prune()
            return x
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert {path for _, path, _ in twin.requests} == {"", "/suggest"}
    assert "COMPLETE" in ended.err


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "8"},
        {"LOCAL_RANK": "8"},
        {"RANK": "8", "WORLD_SIZE": "16"},
        {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"},
    ],
    ids=str,
)
def test_what_is_not_a_later_worker_reports_its_result(pod: Pod, twin: Twin, environ: dict[str, str]) -> None:
    """RANK alone is a hyperparameter, for example the rank of LoRA matrices."""
    pod.environ |= environ
    pod.write("def objective(trial): return 0.5")
    assert pod.run(python=BARE).code == 0
    assert twin.study.trials[0].value == 0.5


def test_the_runtime_can_be_started_again_by_its_own_command_line(pod: Pod, twin: Twin) -> None:
    """As Lightning's ddp does: python -m MODULE where __main__ has a spec, else python argv[0]."""
    pod.write("""
        import os, subprocess, sys
        import __main__

        def objective(trial):
            if os.environ.get("LOCAL_RANK"):
                return 0.25
            assert __main__.__spec__ is None
            again = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
            environ = {**os.environ, "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
            done = subprocess.run(again, env=environ, capture_output=True, text=True)
            assert "COMPLETE: 0.25" in done.stderr
            return 0.5
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.5


FORKING = """
    import os, sys

    def objective(trial):
        child = os.fork()
        if not child:
            END
        assert os.waitpid(child, 0)[1] == 0
        return 1.0
"""


@pytest.mark.parametrize("end", ["sys.exit()", "return 2.0"])
def test_a_process_that_the_objective_forks_ends_without_a_result(pod: Pod, twin: Twin, end: str) -> None:
    pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 500}'
    pod.write(FORKING.replace("END", end))
    ended = pod.run(python=BARE, timeout=240)
    assert ended.code == 0, ended
    assert twin.of("/result") == [{"state": "COMPLETE", "values": [1.0]}]
