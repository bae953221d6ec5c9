"""`tuning run` with real processes and a real Postgres: to the end, stopped, killed, refused."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tuning_operator.cli.local.run import _prepare
from tuning_operator.cli.local.studies import LocalStudies
from tuning_operator.local import LocalError
from tuning_operator.local.home import Home, applied, write_private
from tuning_operator.local.server import reading
from tuning_operator.local.warm_start import provide_source
from tuning_operator.resource.study import TuningStudy

from tests.unit.local.study import LocalStudy, finished, kill_group, wait_until

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def small() -> Iterator[LocalStudy]:
    """Not in pytest's folder: if the user is root, Postgres runs as another user, who can't access that."""
    with tempfile.TemporaryDirectory(prefix="tuning-local-", ignore_cleanup_errors=True) as folder:
        yield LocalStudy(Path(folder))


def test_from_the_manifest_to_the_best_parameters(small: LocalStudy) -> None:
    small.write(refit={"objective": "train:final"})
    code, output = small.run()
    assert code == 0, output
    record = small.record()
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3]
    assert {trial.state for trial in record.trials} == {"COMPLETE"}
    best = max(record.trials, key=lambda trial: trial.parameters["x"])
    assert f"Best trial {best.number}: x {best.values[0]:.6g}" in output
    model = small.folder.runs / "small-refit" / "work" / "model"
    assert model.read_text() == str(best.parameters["x"])
    assert f"Refit: Completed, model {model}" in output
    assert f"Plots:   {small.folder.plots}/*.html" in output
    assert (small.folder.plots / "optimization-history.html").exists()
    assert small.nothing_runs()

    assert "Completed" in small.tuning("list").stdout
    elsewhere = small.folder.database.rename(small.folder.path / "elsewhere")
    trials = small.tuning("trials", "small").stdout
    assert len(trials.splitlines()) == 5, "they are read from record.json"
    elsewhere.rename(small.folder.database)
    small.folder.record.write_text('{"of": "another version"}')
    assert small.tuning("trials", "small").stdout == trials, "they are read from the database"
    shown = small.tuning("best", "small", "--output", "json")
    assert f'"number": {best.number}' in shown.stdout

    changed = small.tuning("extend", "small", "--trials", "+1")
    assert changed.stdout == "small: maxTrials=5\n"
    assert "the change takes effect with the next `tuning run`" in changed.stderr
    code, output = small.run()
    assert code == 0, output
    assert "5/5 trials finished" in output
    assert len(small.started()) == 5, "the first four did not run again"
    assert len(small.tuning("trials", "small").stdout.splitlines()) == 6

    assert small.tuning("rm", "small").stdout == "small deleted\n"
    assert not small.folder.path.exists()
    missing = small.tuning("rm", "small")
    assert missing.returncode == 3
    assert 'study "small" not found' in missing.stderr


def test_trials_share_a_worker_and_end_one_by_one(small: LocalStudy) -> None:
    trial = small.body()["spec"]["trial"]
    small.write(
        trial={**trial, "reusePods": True, "trialsPerPod": 2}, maxTrials=5, refit={"objective": "train:final"}
    )
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})
    assert small.tuning("stop", "small", "1").returncode == 0
    wait_until("another trial has its place", lambda: set(small.started()) == {0, 1, 2})
    small.let_go()
    code, output = finished(process)
    assert code == 0, output
    assert "5/5 trials finished (4 complete, 1 pruned)" in output
    assert "Refit: Completed" in output
    assert {number: len(starts) for number, starts in small.started().items()} == dict.fromkeys(range(5), 1)
    assert [run.name for run in small.folder.runs.glob("small-w*")] == ["small-w0"]
    log = (small.folder.runs / "small-3" / "log").read_text()
    assert "trial 3 of local/small" in log
    assert small.tuning("logs", "small", "3").stdout == log
    assert small.nothing_runs()


def test_ctrl_c_stops_gently_and_the_same_command_continues(small: LocalStudy) -> None:
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})

    code, output = small.run()
    assert code == 1
    assert "Another command is using the study small: wait until it ends" in output

    process.send_signal(signal.SIGINT)
    code, output = finished(process)
    assert code == 128 + signal.SIGINT
    assert "SIGINT: stopping the trials" in output
    assert "Stopped. The same command continues the study." in output
    assert small.nothing_runs()
    assert "Stopped" in small.tuning("list").stdout
    watched = small.tuning("watch", "small")
    assert (watched.returncode, "small is not running: to continue it" in watched.stderr) == (1, True)
    small.let_go()
    code, output = small.run()
    assert code == 0, output
    _audit(small)


def test_after_kill_9_of_everything_the_same_command_continues(small: LocalStudy) -> None:
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})
    kill_group(process)
    small.let_go()
    code, output = small.run()
    assert code == 0, output
    _audit(small)


def test_nothing_outlives_a_command_that_was_killed(small: LocalStudy) -> None:
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})
    kill_group(process)
    wait_until("the guard has ended all", small.nothing_runs)


def test_only_the_owner_can_read_tokens(small: LocalStudy) -> None:
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})
    with_tokens = [
        small.folder.address,
        small.folder.path / "operator-token",
        *small.folder.runs.glob("*/token"),
    ]
    assert [oct(file.stat().st_mode & 0o777) for file in with_tokens] == ["0o600"] * 4
    small.let_go()
    code, output = finished(process)
    assert code == 0, output


def _audit(small: LocalStudy) -> None:
    """Each trial is recorded once, those that were interrupted with the parameters that they had before."""
    record, started = small.record(), small.started()
    assert [(trial.number, trial.state) for trial in record.trials] == [
        (number, "COMPLETE") for number in range(4)
    ]
    assert {number: len(starts) for number, starts in started.items()} == {0: 2, 1: 2, 2: 1, 3: 1}
    for trial in record.trials:
        assert set(started[trial.number]) == {trial.parameters["x"]}
        assert trial.reported == {0: trial.parameters["x"]}
        assert trial.values == [trial.parameters["x"]]
    assert small.nothing_runs()


def test_a_study_that_fails(small: LocalStudy) -> None:
    (small.source / "train.py").write_text("def objective(trial):\n    raise ValueError('boom')\n")
    space = [{"name": "x", "type": "int", "low": 0, "high": 1}]
    small.write(sampler={"name": "GridSampler"}, searchSpace=space)
    code, output = small.run()
    assert code == 1
    assert "ValueError: boom" in output
    assert re.search(r"^\S+: Failed, 2/4 trials finished \(2 failed\)$", output, re.MULTILINE)
    assert re.search(r"Failed=True \(AllTrialsFailed\): All 2 trials failed", output)
    assert "delete the study (tuning rm small) and run it again" in output
    assert "existingRecord" not in output
    logs = small.tuning("logs", "small", "--state", "failed").stdout
    assert re.findall(r"^==> (.*) <==$", logs, re.MULTILINE) == [
        f"trial {number}, failed: Exception: ValueError: boom" for number in (0, 1)
    ]
    assert logs.count("raise ValueError('boom')") == 2


def test_a_spec_that_the_study_server_refuses(small: LocalStudy) -> None:
    small.write(sampler={"name": "TPESampler", "args": {"sed": 1}})
    code, output = small.run()
    assert code == 2
    assert "spec.sampler.args.sed" in output
    assert small.nothing_runs()


def test_changes_that_its_trials_do_not_fit(small: LocalStudy) -> None:
    small.write(maxTrials=1)
    assert small.run()[0] == 0
    small.write(
        objectives=[{"metric": "score", "direction": "maximize"}],
        searchSpace=[{"name": "x", "type": "float", "low": 0, "high": 0.1}],
    )
    code, output = small.run()
    assert code == 2, output
    assert "delete this one with `tuning rm small`" in output
    assert re.findall(r"study.yaml:\d+: (\S+): ", output) == ["spec.objectives", "spec.searchSpace"]
    assert len(small.started()) == 1
    small.write(maxTrials=2, objectives=[{"metric": "x", "direction": "maximize", "target": 2}])
    code, output = small.run()
    assert code == 0, output
    assert len(small.started()) == 2


def test_commands_change_a_study_that_runs(small: LocalStudy) -> None:
    small.hold()
    process = small.start()
    wait_until("two trials run", lambda: set(small.started()) == {0, 1})
    following = small.start_tuning("logs", "small", "0", "-f")
    assert small.tuning("suspend", "small").returncode == 0
    extended = small.tuning("extend", "small", "--trials", "+2")
    assert extended.stdout == "small: maxTrials=6\n", extended
    small.let_go()
    wait_until("it is suspended", lambda: small.status["phase"] == "Suspended")
    wait_until("the trials have ended", lambda: small.status["trials"]["complete"] == 2)
    assert set(small.started()) == {0, 1}
    assert "tuning: COMPLETE" in finished(following)[1], "it ends with the trial, while the study goes on"
    assert small.tuning("retry", "small", "0").returncode == 0
    assert small.tuning("resume", "small").returncode == 0
    code, output = finished(process)
    assert code == 0, output
    found = small.record().trials
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4, 5]
    assert found[2].parameters == found[0].parameters

    assert "has already ended" in small.tuning("suspend", "small").stderr
    ended = small.folder.read() or {}
    small.folder.write({**ended, "status": {**ended["status"], "phase": "Running"}})  # as after kill -9
    assert (
        "small is not running: to continue it, use `tuning run` with its manifest"
        in small.tuning("suspend", "small").stderr
    )
    small.folder.write(ended)


def test_a_change_lasts_until_the_field_is_edited_in_the_manifest(small: LocalStudy) -> None:
    folder, body = small.folder, small.body()
    folder.write(body)
    folder.change({"maxTrials": 6, "timeout": "1h", "suspend": True})
    folder.change({"maxTrials": 8})
    changed = folder.changed(body)["spec"]
    assert (changed["maxTrials"], changed["timeout"]) == (8, "1h")
    assert "suspend" not in changed
    edited = small.body(maxTrials=5)
    assert folder.changed(edited)["spec"] == {**edited["spec"], "timeout": "1h"}
    assert folder.changed(body)["spec"] == {**body["spec"], "timeout": "1h"}, "the edit has ended the change"


def test_a_warm_start_from_another_study_of_this_machine(small: LocalStudy) -> None:
    assert small.run()[0] == 0
    before = small.record()
    body = small.body(warmStart={"study": "small"}, maxTrials=2)
    small.write_body({**body, "metadata": {"name": "next"}})
    code, output = small.run()
    assert code == 0, output
    assert "4 copied" in output
    copies = [line.split() for line in small.tuning("trials", "next").stdout.splitlines()[1:5]]
    assert [float(row[2]) for row in copies] == [
        pytest.approx(trial.values[0], rel=1e-5) for trial in before.trials if trial.values
    ]


def test_a_warm_start_from_a_study_that_is_not_there(small: LocalStudy) -> None:
    study = TuningStudy.model_validate(applied(small.body(warmStart={"study": "no"}), None))
    with pytest.raises(LocalError, match="there is no study no on this machine"):
        provide_source(small.folder, study, "postgresql://nobody@nowhere.invalid/none")


def test_a_reader_waits_for_the_command_that_is_starting(small: LocalStudy) -> None:
    small.folder.write(small.body())
    address = {"url": "http://127.0.0.1:1", "token": "t"}
    with small.folder.locked():
        starting = threading.Timer(0.3, write_private, (small.folder.address, json.dumps(address)))
        starting.start()
        with reading(small.folder) as found:
            assert (found.url, found.token) == ("http://127.0.0.1:1", "t")
        starting.join()


def test_a_reader_asks_for_the_new_trials_only(small: LocalStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode())
        return httpx.Response(200, json={"directions": ["maximize"], "trials": []})

    client = functools.partial(httpx.Client, transport=httpx.MockTransport(reply))
    monkeypatch.setattr(httpx, "Client", client)
    small.folder.write(applied(small.body(), None))
    write_private(small.folder.address, json.dumps({"url": "http://127.0.0.1:1", "token": "t"}))
    studies = LocalStudies(Home(small.home))
    with small.folder.locked(), studies.record(studies.get("small")) as record:
        record.read()
        record.read(3)
    assert asked == ["first=0", "first=3"]


def test_without_gpus_nvidia_smi_is_not_called(small: LocalStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    program = small.source / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ntouch {small.seen}/called\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(small.source), prepend=os.pathsep)
    for gpus, called in ((0, False), (None, True)):
        _prepare(small.source / "study.yaml", gpus, sys.executable, [], small.home)
        assert (small.seen / "called").exists() == called
