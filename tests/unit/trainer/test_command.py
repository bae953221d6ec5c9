"""Command mode: programs of any kind, run as in a pod."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from tests.unit.trainer.pod import BARE, Ended, Pod

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin


@pytest.fixture(autouse=True)
def parameters(twin: Twin) -> None:
    twin.fixed = True
    twin.trial.suggest_float("lr", 0.5, 0.5)
    twin.trial.suggest_categorical("use-bias", [True])
    twin.trial.suggest_categorical("optimizer", ["Adam"])


def run(pod: Pod, *command: str) -> Ended:
    return pod.run("command", "--", *command, python=BARE)


def shell(pod: Pod, line: str) -> Ended:
    return run(pod, "sh", "-c", line)


def test_parameters_reach_a_program_in_three_ways(pod: Pod, twin: Twin) -> None:
    ended = shell(
        pod,
        'echo "$TUNING_PARAM_LR $TUNING_PARAM_USE_BIAS $TUNING_PARAM_OPTIMIZER {{lr}} --b={{ use-bias }}";'
        "cat $TUNING_PARAMETERS_FILE; echo; echo accuracy=0.9; echo warned >&2",
    )
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert lines[0] == "0.5 true Adam 0.5 --b=true"
    assert json.loads(lines[1]) == {"lr": 0.5, "use-bias": True, "optimizer": "Adam"}
    assert "warned" in ended.err
    assert twin.study.trials[0].value == 0.9


def test_metrics_are_reported_as_they_come_and_the_last_is_the_value(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "for i in 0 1 2; do echo epoch=$i accuracy=0.$i; done; echo done")
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.intermediate_values == {0: 0.0, 1: 0.1, 2: 0.2}
    assert record.value == 0.2


def test_metrics_from_a_file_of_json_lines(pod: Pod, twin: Twin) -> None:
    ended = shell(
        pod,
        """for i in 0 1; do echo '{"accuracy": 0.'$i', "step": '$i'}' >> $TUNING_METRICS_FILE; done;"""
        """printf '{"accuracy": 0.7, "step": 2}' >> $TUNING_METRICS_FILE""",
    )
    assert ended.code == 0, ended
    assert twin.study.trials[0].intermediate_values == {0: 0.0, 1: 0.1, 2: 0.7}


def test_the_file_and_the_pattern_may_be_the_users_own(pod: Pod, twin: Twin) -> None:
    file = pod.folder / "log.txt"
    file.write_text("from the last run: top1 0.1\n")
    pod.environ["TUNING_CONFIG"] = json.dumps({"metrics": {"file": str(file), "pattern": r"top1 (\S+)"}})
    ended = shell(pod, f"echo accuracy=0.1; echo top1 0.8 >> {file}")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.8


def test_a_program_written_in_python_is_heard_at_once(pod: Pod, twin: Twin) -> None:
    """Its output would be held back otherwise, as to any pipe."""
    pod.write("""
        import os, threading
        print("accuracy=0.5")
        threading.Event().wait(60)
    """)
    process = pod.start("command", "--", sys.executable, "train.py", python=BARE)
    twin.wait_for(lambda: bool(twin.of("/report")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert twin.told is None


SAVES_AND_STOPS = """
    trap 'echo saved > checkpoint; exit 3' TERM
    echo accuracy=0.1
    while :; do sleep 0.1; done
"""


def hopeless(twin: Twin) -> None:
    twin.trial.should_prune = lambda: True  # type: ignore[method-assign]


def test_a_hopeless_program_is_asked_to_stop(pod: Pod, twin: Twin) -> None:
    hopeless(twin)
    ended = shell(
        pod, "trap 'echo saved > checkpoint; exit 3' TERM; echo accuracy=0.1; while :; do sleep 0.1; done"
    )
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "PRUNED"
    assert (pod.folder / "checkpoint").read_text() == "saved\n"


def test_a_hopeless_program_that_goes_on_is_killed_with_its_children(pod: Pod, twin: Twin) -> None:
    hopeless(twin)
    pod.environ["TUNING_CONFIG"] = '{"pruneGraceSeconds": 0.5}'
    child = f"{sys.executable} -c 'import time; time.sleep(60)'"
    ended = shell(pod, f"trap '' TERM; echo accuracy=0.1; {child} & echo $! > child; {child}; {child}")
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "PRUNED"
    wait_until_gone(int((pod.folder / "child").read_text()))


def wait_until_gone(pid: int) -> None:
    """Wait until a process has ended, also if its parent has not heard of it yet."""
    process = Path(f"/proc/{pid}/stat")
    give_up = time.monotonic() + 10
    while process.exists() and ") Z " not in process.read_text():
        assert time.monotonic() < give_up, process.read_text()


def test_sigterm_reaches_the_program_and_nothing_is_told(pod: Pod, twin: Twin) -> None:
    process = pod.start("command", "--", "sh", "-c", SAVES_AND_STOPS, python=BARE)
    twin.wait_for(lambda: bool(twin.of("/report")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (pod.folder / "checkpoint").read_text() == "saved\n"
    assert twin.told is None


@pytest.mark.parametrize(
    ("line", "category", "says"),
    [
        ("echo oops >&2; exit 3", "ExitCode", "exit code 3; its last line: oops"),
        ("kill -9 $$", "Killed", "signal 9"),
        ("echo loss=0.1", "MetricMissing", "never wrote the metric accuracy"),
        ("echo accuracy=nan", "BadValue", "The value nan is not acceptable"),
        ("echo {{momentum}}", "Parameters", "{{momentum}}, but the trial's parameters are: lr"),
    ],
)
def test_a_program_that_fails_says_why(pod: Pod, twin: Twin, line: str, category: str, says: str) -> None:
    ended = shell(pod, line)
    assert ended.code == 1
    assert twin.failure.category == category
    assert says in twin.failure.message
    assert twin.failure.remedy
    assert pod.termination()["category"] == category


def test_the_last_lines_are_kept(pod: Pod, twin: Twin) -> None:
    shell(pod, "for i in $(seq 100); do echo line $i; done; exit 1")
    assert twin.failure.traceback
    kept = twin.failure.traceback.splitlines()
    assert kept[-1] == "line 100"
    assert len(kept) == 40


def test_a_program_that_is_not_there(pod: Pod, twin: Twin) -> None:
    assert run(pod, "no-such-program").code == 1
    assert "'no-such-program' cannot be run: No such file" in twin.failure.message


def test_several_objectives_take_the_last_of_each(pod: Pod, twin: Twin) -> None:
    twin.study = optuna.create_study(directions=["maximize", "minimize"])
    twin.trial = twin.study.ask()
    ended = shell(pod, "echo value0=0.1; echo value1=7; echo value0=0.2")
    assert ended.code == 0, ended
    assert twin.study.trials[0].values == [0.2, 7.0]
    assert twin.of("/report") == []


def test_a_child_that_holds_the_pipe_does_not_hold_the_trial(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "echo accuracy=0.4; sleep 60 & exit 0")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.4
