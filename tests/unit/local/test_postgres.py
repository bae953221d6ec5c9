"""The embedded Postgres and its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuning_operator.local import postgres
from tuning_operator.local.postgres import running_url, stop


def test_a_postgres_that_died_before_it_opened_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file names no folder of the socket, so that none is removed: not the current one, either."""
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir()
    (here / "code").mkdir(parents=True)
    (data / "postmaster.pid").write_text(f"999999999\n{data}\n1790000000\n5432\n\n\n")
    monkeypatch.chdir(here)
    assert running_url(data) is None
    stop(data)
    assert (here / "code").exists()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, and in place of Postgres' programs a pg_ctl that leaves a file."""
    control = tmp_path / "pg_ctl"
    control.write_text(f"#!/bin/sh\ntouch {tmp_path}/controlled\n")
    control.chmod(0o755)
    monkeypatch.setattr(postgres, "_programs", lambda: tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    return data


@pytest.fixture
def run(data: Path) -> Iterator[Callable[..., None]]:
    """Starts a process whose PID is in the data folder."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *arguments: str) -> None:
        command = [name, "-c", "input()", *arguments]
        started.append(subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE))
        (data / "postmaster.pid").write_text(f"{started[-1].pid}\n{data}\n1790000000\n5432\n\n\n")

    yield run
    for process in started:
        process.communicate(b"\n")


@pytest.mark.parametrize(("name", "folder"), [("train", "data"), ("/usr/bin/postgres", "other")])
def test_a_pid_that_another_program_has_by_now(
    data: Path, run: Callable[..., None], name: str, folder: str
) -> None:
    (data.parent / "other").mkdir()
    run(name, "-D", str(data.parent / folder), "-h", "")
    stop(data)
    assert not (data.parent / "controlled").exists(), "pg_ctl would send the program a signal"
    assert not (data / "postmaster.pid").exists(), "Postgres would not start"


def test_a_postgres_that_is_a_zombie(data: Path, run: Callable[..., None]) -> None:
    run("/usr/bin/postgres", "-D", str(data))
    pid = int((data / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    stop(data)
    assert not (data.parent / "controlled").exists(), "pg_ctl would wait for its end"
    assert not (data / "postmaster.pid").exists(), "Postgres would not start"


STARTS_AND_STOPS = """
import sys
from pathlib import Path
from tuning_operator.local.postgres import Postgres

database = Postgres(Path(sys.argv[1]))
database.start()
database.stop()
"""
REAPS_NOTHING = """
import ctypes, subprocess, sys

SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
sys.exit(subprocess.run([sys.executable, "-c", *sys.argv[1:]]).returncode)
"""


def test_postgres_where_process_1_reaps_nothing() -> None:
    """As `sleep infinity` in a container."""
    with tempfile.TemporaryDirectory(prefix="tuning-local-", ignore_cleanup_errors=True) as folder:
        arguments = [REAPS_NOTHING, STARTS_AND_STOPS, f"{folder}/postgres"]
        subprocess.run([sys.executable, "-c", *arguments], check=True, timeout=500)


def test_a_postgres_that_runs_is_stopped(data: Path, run: Callable[..., None]) -> None:
    (data.parent / "link").symlink_to(data)
    run("/usr/bin/postgres", "-h", "", "-D", str(data.parent / "link"))
    stop(data)
    assert (data.parent / "controlled").exists()
    assert (data / "postmaster.pid").exists()


def test_a_pid_that_no_process_has(data: Path) -> None:
    (data / "postmaster.pid").write_text(f"999999999\n{data}\n1790000000\n5432\n\n\n")
    stop(data)
    assert (data / "postmaster.pid").exists(), "Postgres looks itself for what an earlier one has left"
