"""Whatever fails on a machine: the same command continues the study, and nothing is lost."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.small_disk import SmallDisk
from tests.unit.local.study import LocalStudy, finished, kill_group, wait_until

TRIALS = 12

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def study() -> Iterator[LocalStudy]:
    with tempfile.TemporaryDirectory(prefix="tuning-local-", ignore_cleanup_errors=True) as folder:
        yield LocalStudy(Path(folder), maxTrials=TRIALS, maxFailedTrials=1)


def _audit(study: LocalStudy) -> None:
    record = study.record()
    assert [(trial.number, trial.state) for trial in record.trials] == [
        (n, "COMPLETE") for n in range(TRIALS)
    ]
    for trial in record.trials:
        x = trial.parameters["x"]
        assert set(study.started()[trial.number]) == {x}, "another attempt had other parameters"
        assert (trial.values, trial.reported) == ([x], {0: x})
    assert study.nothing_runs()


@pytest.mark.matrix
@pytest.mark.parametrize("what", ["command", "group"])
def test_killed_at_random(study: LocalStudy, what: str) -> None:
    """kill -9, ten times: the command alone, or with everything that is in its process group."""
    moments = random.Random(8)
    for _ in range(10):
        process = study.start()
        time.sleep(moments.uniform(0.5, 4))
        if process.poll() is None and what == "group":
            kill_group(process)
        elif process.poll() is None:
            process.kill()
            process.communicate()
    code, output = study.run()
    assert code == 0, output
    _audit(study)


def test_postgres_killed(study: LocalStudy) -> None:
    """It is started again; the trials that run go on."""
    study.hold()
    process = study.start()
    wait_until("two trials run", lambda: set(study.started()) == {0, 1})
    _postgres(study).kill()
    study.let_go()
    code, output = finished(process)
    assert code == 0, output
    assert {len(starts) for starts in study.started().values()} == {1}, "no trial ran twice"
    _audit(study)


@pytest.mark.matrix
def test_postgres_hangs(study: LocalStudy) -> None:
    study.hold()
    process = study.start()
    wait_until("two trials run", lambda: set(study.started()) == {0, 1})
    postgres = [_postgres(study), *_postgres(study).children(recursive=True)]
    for one in postgres:
        one.send_signal(signal.SIGSTOP)
    study.let_go()
    time.sleep(40)  # longer than a write may take
    for one in postgres:
        one.send_signal(signal.SIGCONT)
    code, output = finished(process)
    assert code == 0, output
    _audit(study)


@pytest.mark.fault(
    "The disk of a local study is full",
    "It says so. Trials that run are recorded, and others start, once there is space.",
)
def test_a_full_disk(study: LocalStudy) -> None:
    with SmallDisk(128) as disk:
        study.home = disk.path / "home"
        study.hold()
        process = study.start()
        wait_until("two trials run", lambda: set(study.started()) == {0, 1})
        disk.fill()
        study.let_go()
        assert process.stdout
        line = next(text for text in process.stdout if "No space left on device" in text)
        assert line.startswith("The status of the study can't be written: ")
        disk.make_room()
        code, output = finished(process)
        assert code == 0, output
        _audit(study)


def test_two_commands_at_once(study: LocalStudy) -> None:
    """One of them runs the study; the other one is refused and changes nothing."""
    study.hold()
    first, second = study.start(), study.start()
    wait_until("one is refused", lambda: any(process.poll() is not None for process in (first, second)))
    study.let_go()
    outcomes = sorted((finished(process) for process in (first, second)), key=lambda outcome: outcome[0])
    assert [code for code, _ in outcomes] == [0, 1], outcomes
    assert "Another command is using the study small" in outcomes[1][1]
    _audit(study)


def _postgres(study: LocalStudy) -> psutil.Process:
    pid = (study.folder.database / "postmaster.pid").read_text().split()[0]
    return psutil.Process(int(pid))
