"""Command mode: programs of any kind, run as in a pod."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from tests.unit.trainer.pod import BARE, Ended, Pod, wait_until_gone

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


def test_a_file_that_is_written_again_is_read_again(pod: Pod, twin: Twin) -> None:
    file = pod.folder / "metrics.json"
    file.write_text('{"accuracy": 0.9}')
    pod.environ["TUNING_CONFIG"] = json.dumps({"metrics": {"file": str(file)}})
    for text, value in (
        ('{"accuracy": 0.5}', 0.5),
        ('{"accuracy": 0.4321}', 0.4321),
        ('{"accuracy": 1}', 1.0),
        ('{"accuracy": 1}', 1.0),
    ):
        twin.trial, twin.result = twin.study.ask(), None
        ended = shell(pod, f"echo '{text}' > {file}")
        assert ended.code == 0, ended
        assert twin.study.trials[-1].value == value


@pytest.mark.parametrize("wait", ["true", "until [ -e read ]; do sleep 0.05; done"], ids=["before", "after"])
def test_lines_of_an_earlier_trial_are_not_read_again(pod: Pod, twin: Twin, wait: str) -> None:
    """The file's time changes after the program's own lines, before and after these are read."""
    file = pod.folder / "metrics.csv"
    file.write_text("step=0 accuracy=0.1\nstep=1 accuracy=0.2\n")
    pod.environ["TUNING_CONFIG"] = json.dumps({"metrics": {"file": str(file)}})
    lines = f"echo step=0 accuracy=0.5 >> {file}; echo step=1 accuracy=0.6 >> {file}"
    process = pod.start("command", "--", "sh", "-c", f"{lines}; {wait}; touch {file}", python=BARE)
    twin.wait_for(lambda: bool(twin.of("/report")))
    (pod.folder / "read").touch()
    process.communicate(timeout=240)
    assert twin.study.trials[0].value == 0.6
    assert twin.study.trials[0].intermediate_values == {0: 0.5, 1: 0.6}
    twin.trial, twin.result = twin.study.ask(), None
    assert shell(pod, "true").code == 1
    assert twin.failure.category == "MetricMissing"


def test_a_file_that_does_not_exist_is_named(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = '{"metrics": {"file": "/nowhere/log.jsonl"}}'
    assert shell(pod, "echo done").code == 1
    assert twin.failure.message.endswith(
        "The file /nowhere/log.jsonl (spec.trial.metrics.file) does not exist."
    )


def test_five_thousand_lines_take_few_requests(pod: Pod, twin: Twin) -> None:
    ended = run(pod, "sh", "-c", "seq 1 5000 | sed 's/.*/step=& accuracy=0.&/'")
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert record.value == 0.5
    assert len(record.intermediate_values) == 5000
    assert len(twin.of("/report")) < 100
    assert sum(len(body["values"]) for body in twin.of("/report")) == 5000


def test_metrics_on_standard_error(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import logging
        logging.basicConfig(level=logging.INFO)
        for epoch in range(3):
            logging.info("epoch %d accuracy=%s", epoch, epoch / 4)
    """)
    ended = run(pod, sys.executable, "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.5
    assert twin.study.trials[0].intermediate_values == {0: 0.0, 1: 0.25, 2: 0.5}


def test_a_progress_bar_of_any_length_is_read_at_its_end(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import sys
        for i in range(20000):
            sys.stdout.write(f"\\r{i}/20000 accuracy=0.{i}")
        sys.stdout.write("\\raccuracy=0.75\\n")
    """)
    ended = run(pod, sys.executable, "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.75


def test_a_line_without_end_is_read_whole_or_not_at_all(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import sys
        sys.stdout.write("x" * 65530 + " accuracy=0.75\\n")
        sys.stdout.write("x" * 2000000 + " accuracy=0.1\\n")
        sys.stdout.write("done")
    """)
    ended = run(pod, sys.executable, "train.py")
    assert ended.code == 0, ended
    assert ended.out.endswith("accuracy=0.1\ndone")
    assert twin.study.trials[0].value == 0.75


def test_a_value_that_cannot_be_read_fails_the_trial_and_is_quoted(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "echo accuracy=1,500")
    assert ended.code == 1
    assert twin.failure.category == "MetricUnreadable"
    assert "the line 'accuracy=1,500': 1,500 may be 1500 or 1.500" in twin.failure.message
    assert twin.failure.traceback == "accuracy=1,500\n"


def test_a_value_that_cannot_be_read_on_the_way_is_logged_once(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "echo accuracy=1,500; echo accuracy=2,500; echo accuracy=0.5")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.5
    assert ended.err.count("the value of accuracy can't be read in the line 'accuracy=1,500'") == 1
    assert "2,500" not in ended.err


def test_steps_that_begin_again_in_each_epoch_grow(pod: Pod, twin: Twin) -> None:
    ended = shell(
        pod, "for e in 0 1; do for s in 0 100 200; do echo epoch=$e step=$s accuracy=0.$e$s; done; done"
    )
    assert ended.code == 0, ended
    assert sorted(twin.study.trials[0].intermediate_values) == [0, 100, 200, 300, 400, 500]


def test_values_that_repeat_a_step_are_logged_once(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "for i in 1 2 3; do echo step=7 accuracy=0.$i; done; echo step=8 accuracy=0.5")
    assert ended.code == 0, ended
    assert twin.study.trials[0].intermediate_values == {7: 0.1, 8: 0.5}
    assert ended.err.count("the line 'step=7 accuracy=0.2' repeats a step") == 1
    assert ended.err.count("repeats a step") == 1


def test_a_program_written_in_python_is_read_at_once(pod: Pod, twin: Twin) -> None:
    """Python buffers what it writes to a pipe by default."""
    pod.write("""
        import os, threading
        print("accuracy=0.4")
        print("accuracy=0.5")
        threading.Event().wait(600)
    """)
    process = pod.start("command", "--", sys.executable, "train.py", python=BARE)
    twin.wait_for(lambda: bool(twin.of("/report")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert twin.result is None


SAVES_AND_STOPS = """
    trap 'echo saved > checkpoint; exit 3' TERM
    echo accuracy=0.1
    echo accuracy=0.1
    while :; do sleep 0.1; done
"""


def unpromising(twin: Twin) -> None:
    twin.trial.should_prune = lambda: True  # type: ignore[method-assign]


def test_an_unpromising_program_is_asked_to_stop(pod: Pod, twin: Twin) -> None:
    unpromising(twin)
    ended = shell(
        pod,
        "trap 'echo saved > checkpoint; exit 3' TERM; echo epoch 1 accuracy=0.1; echo Epoch 2/9;"
        "while :; do sleep 0.1; done",
    )
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "PRUNED"
    assert (pod.folder / "checkpoint").read_text() == "saved\n"
    assert "pruned at step 1 with accuracy=0.1: stopping the program" in ended.err


@pytest.mark.parametrize("line", ["accuracy=0.1", "epoch=10 accuracy=0.1"])
def test_an_only_value_is_the_result_and_stops_nothing(pod: Pod, twin: Twin, line: str) -> None:
    unpromising(twin)
    ended = shell(pod, f"echo {line}; sleep 1; echo saved > model")
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"
    assert (pod.folder / "model").exists()
    assert twin.of("/report") == []


def test_the_last_value_stops_nothing(pod: Pod, twin: Twin) -> None:
    twin.trial.should_prune = lambda: 2 in twin.study.trials[0].intermediate_values  # type: ignore[method-assign]
    ended = shell(pod, "echo step=1 accuracy=0.1; echo step=2 accuracy=0.2; sleep 1; echo saved > model")
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "COMPLETE"
    assert (pod.folder / "model").exists()


def test_an_unpromising_program_that_goes_on_is_killed_with_its_children(pod: Pod, twin: Twin) -> None:
    unpromising(twin)
    pod.environ["TUNING_CONFIG"] = '{"pruneGraceSeconds": 0.5}'
    child = f"{sys.executable} -c 'import time; time.sleep(600)'"
    ended = shell(
        pod,
        f"trap '' TERM; {child} & echo $! > child; echo accuracy=0.1; echo accuracy=0.1; {child}; {child}",
    )
    assert ended.code == 0, ended
    assert twin.study.trials[0].state.name == "PRUNED"
    wait_until_gone(int((pod.folder / "child").read_text()))


def test_sigterm_reaches_the_program_and_nothing_is_reported(pod: Pod, twin: Twin) -> None:
    process = pod.start("command", "--", "sh", "-c", SAVES_AND_STOPS, python=BARE)
    twin.wait_for(lambda: bool(twin.of("/report")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert (pod.folder / "checkpoint").read_text() == "saved\n"
    assert twin.result is None


@pytest.mark.parametrize(
    ("line", "category", "says"),
    [
        (
            "echo oops >&2; exit 3",
            "ExitCode",
            "The program exited with code 3: oops; see `kubectl logs job/mnist-0 -c trainer`",
        ),
        ("exit 2", "ExitCode", "The program exited with code 2; see `kubectl logs job/mnist-0 -c trainer`"),
        (
            "echo bye; kill -9 $$",
            "Killed",
            "was killed by signal 9 (Killed): bye; see `kubectl logs job/mnist-0 -c trainer`",
        ),
        (
            "echo loss=0.1",
            "MetricMissing",
            "no line of its output has a value for accuracy. It has values for loss.",
        ),
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
    assert "'no-such-program' can't be run: No such file" in twin.failure.message


def test_several_objectives_take_the_last_of_each(pod: Pod, twin: Twin) -> None:
    twin.study = optuna.create_study(directions=["maximize", "minimize"])
    twin.trial = twin.study.ask()
    ended = shell(pod, "echo value0=0.1; echo value1=7; echo value0=0.2")
    assert ended.code == 0, ended
    assert twin.study.trials[0].values == [0.2, 7.0]
    assert twin.of("/report") == []


@pytest.mark.parametrize("to", ["", ">&2"])
def test_a_full_disk_loses_output_but_no_values(pod: Pod, twin: Twin, to: str) -> None:
    line = f"(echo loading; echo step=1 accuracy=0.1; echo step=2 accuracy=0.2) {to}"
    with Path("/dev/full").open("w") as full:
        pod.start("command", "--", "sh", "-c", line, python=BARE, output=full).wait(240)
    assert twin.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}


def test_a_child_that_holds_the_pipe_does_not_hold_the_trial(pod: Pod, twin: Twin) -> None:
    ended = shell(pod, "echo accuracy=0.4; sleep 600 & exit 0")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.4
