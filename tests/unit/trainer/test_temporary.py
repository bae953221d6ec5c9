"""Where nothing is writable but /dev/shm, as with readOnlyRootFilesystem and no volume, trials run there."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from tuning_trainer.modes.command import run_command
from tuning_trainer.settings import read_settings
from tuning_trainer.worker.supervisor import Supervisor, _Trial

if TYPE_CHECKING:
    from tests.unit.trainer.pod import Pod


@pytest.fixture(autouse=True)
def _read_only(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:  # after the pod, which needs a folder
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])


def test_a_worker_finds_a_place_for_its_trials(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    place = Supervisor(read_settings(pod.environ), [], "")._place(_Trial(0, None, pod.folder))
    place.output.write_text("")  # its reader ends
    assert place.work == pod.folder / "work", "the root file system belongs to the container"


def test_a_command_has_its_files(pod: Pod) -> None:
    class Parameters:
        number, params = 0, {"x": 1}
        report_all = should_prune = set_user_attr = lambda *_: False

    settings = read_settings(pod.environ)
    line = "case $TUNING_PARAMETERS_FILE in /dev/shm/*) echo accuracy=1;; esac"
    trial: Any = Parameters()
    outcome = run_command(["sh", "-c", line], settings, trial, ["accuracy"])
    assert outcome.values == [1.0]
