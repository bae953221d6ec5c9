"""The trial's timeout, which the trainer runtime enforces from its own start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.trainer.pod import BARE, Pod
from tests.unit.trainer.twin import status

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Twin

MESSAGE = "The trial ran longer than its timeout (spec.trial.timeout) and was stopped."
SLOW = """
    import threading
    from pathlib import Path

    def objective(trial):
        try:
            Path("begun").touch()
            threading.Event().wait(600)
        finally:
            Path("checkpoint").write_text("saved")
"""
STUBBORN = """
    import signal, threading

    def objective(trial):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Event().wait(10)
        return 1.0
"""


@pytest.fixture
def limited(pod: Pod) -> Pod:
    pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 5}'
    return pod


def test_the_code_is_stopped_and_the_failure_reported(limited: Pod, twin: Twin) -> None:
    limited.write(SLOW)
    assert limited.run(python=BARE).code == 1
    begun, checkpoint = limited.folder / "begun", limited.folder / "checkpoint"
    assert checkpoint.exists() or not begun.exists(), "finally blocks run"
    assert (twin.failure.category, twin.failure.message) == ("Timeout", MESSAGE)
    assert twin.failure.remedy == "Raise spec.trial.timeout, or make the trial faster."
    assert limited.termination()["category"] == "Timeout"


def test_code_that_ignores_sigterm_has_run_too_long_as_well(limited: Pod, twin: Twin) -> None:
    limited.write(STUBBORN)
    assert limited.run(python=BARE).code == 1
    assert twin.failure.category == "Timeout"


def test_a_program_is_stopped(limited: Pod, twin: Twin) -> None:
    ended = limited.run("command", "--", "sleep", "600", python=BARE)
    assert ended.code == 1
    assert twin.failure.category == "Timeout"


def test_the_refits_own_timeout(limited: Pod, twin: Twin) -> None:
    limited.environ["TUNING_ROLE"] = "final"
    limited.write(SLOW)
    assert limited.run(python=BARE).code == 1
    assert "spec.refit.timeout" in limited.termination()["message"]


def test_a_server_that_does_not_answer_in_time(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 0.5}'
    twin.faults.extend([status(503, Retry_After="1")] * 3)
    pod.write(SLOW)
    assert pod.run(python=BARE).code == 1
    assert twin.failure.category == "Timeout"


def test_a_trial_that_is_in_time(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 500}'
    pod.write("def objective(trial):\n    return 1.0\n")
    assert pod.run(python=BARE).code == 0
    assert twin.result is not None
    assert twin.result.state == "COMPLETE"
