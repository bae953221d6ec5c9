"""Locks on studies and on GPUs, also where other machines share the file system."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

import pytest
from tuning_operator.cli.tuning import main
from tuning_operator.local import LocalError
from tuning_operator.local.gpus import Gpus, lock_names
from tuning_operator.local.home import Home, StudyFolder
from tuning_operator.local.locks import try_lock

LISTING = """GPU 0: NVIDIA H100 (UUID: GPU-aa-1)
  MIG 1g.10gb Device 0: (UUID: MIG-a)
GPU 1: NVIDIA H100 (UUID: GPU-bb-2)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with an nvidia-smi."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system where a shared lock takes a file open for reading, and any other one for writing."""
    flock = fcntl.flock

    def checked(file: IO[str], operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        refused = os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY
        if mode == refused:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", checked)


def test_a_gpu_has_one_lock_whatever_names_it(environ: dict[str, str]) -> None:
    names = lock_names(["0", "1", "GPU-bb-2", "GPU-bb", "MIG-a"], environ)
    assert names == {
        "0": "GPU-aa-1", "1": "GPU-bb-2", "GPU-bb-2": "GPU-bb-2", "GPU-bb": "GPU-bb-2", "MIG-a": "MIG-a"
    }  # fmt: skip


def test_a_gpu_that_nvidia_smi_does_not_list_is_one_of_this_machine() -> None:
    host = socket.gethostname()
    assert lock_names(["0", "GPU-cc"], {"PATH": "/nowhere"}) == {"0": f"{host}-0", "GPU-cc": "GPU-cc"}


async def test_gpus_on_a_file_system_without_locks(tmp_path: Path, without_locks: None) -> None:
    with pytest.raises(LocalError, match=r"GPU-1\.lock can't be locked: .*No locks available.*TUNING_HOME"):
        async with Gpus({"0": "GPU-1"}, tmp_path).lend(1):
            pass


def test_a_study_on_a_file_system_without_locks(tmp_path: Path, without_locks: None) -> None:
    folder = StudyFolder(tmp_path)
    message = r"run\.lock can't be locked: .*No locks available.*TUNING_HOME"
    with pytest.raises(LocalError, match=message), folder.locked():
        pass
    with pytest.raises(LocalError, match=message):
        assert folder.in_use
    with pytest.raises(LocalError, match=r"guard\.lock"):
        folder.guard_lock(lambda: None)


def test_a_command_on_a_file_system_without_locks(
    tmp_path: Path, without_locks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Home(tmp_path).study("digits").write({"status": {}})
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["tuning", "list"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/studies/digits/run.lock can't be locked: ")


def test_a_command_that_only_looks_keeps_no_other_from_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(tmp_path)
    looking = (tmp_path / "run.lock").open("a")
    assert try_lock(looking, shared=True)
    assert not folder.in_use, "another one looks"
    monkeypatch.setattr(time, "sleep", lambda _: looking.close())
    with folder.locked():
        assert folder.in_use


async def test_studies_and_gpus_on_nfs(tmp_path: Path, nfs: None) -> None:
    folder = StudyFolder(tmp_path)
    with folder.locked(), folder.guard_lock(lambda: None):
        assert folder.in_use
    assert not folder.in_use
    async with Gpus({"0": "GPU-1"}, tmp_path).lend(1) as lent:
        assert lent


def test_a_study_that_another_command_uses(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert not folder.in_use
    with folder.locked():
        assert folder.in_use
        with pytest.raises(LocalError, match="Another command is using the study"), folder.locked():
            pass
