"""The working directory: has the files of trial.source, and the trial's code can write to it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tuning_trainer.workspace import prepare

from tests.unit.trainer.pod import BARE, Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.trainer.twin import Twin

BESIDE = """
    import json, pathlib, subprocess, sys

    SETTINGS = json.load(open("config.json"))

    def objective(trial):
        done = subprocess.run([sys.executable, "program.py", "3"], capture_output=True, text=True, check=True)
        results = pathlib.Path(__file__).resolve().parent / "results"
        results.mkdir()
        (results / "value.txt").write_text(done.stdout)
        return float(done.stdout) * SETTINGS["factor"]
"""


def test_files_of_the_source_are_in_the_working_directory(pod: Pod, twin: Twin) -> None:
    pod.write('{"factor": 2}', "config.json")
    pod.write("import sys\nprint(sys.argv[1])", "program.py")
    pod.write(BESIDE)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 6
    assert (pod.folder / "results" / "value.txt").read_text() == "3\n"


def test_a_script_writes_beside_itself(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import os, pathlib
        import optuna

        os.makedirs(os.path.join(os.path.dirname(__file__), "out"))
        pathlib.Path(__file__).with_name("log.txt").write_text("started")
        optuna.create_study(direction="maximize").optimize(lambda trial: 1.0)
    """)
    ended = pod.run("script", "train.py", python=BARE)
    assert ended.code == 0, ended
    assert (pod.folder / "out").is_dir()
    assert (pod.folder / "log.txt").read_text() == "started"


def test_a_shell_command_finds_the_files(pod: Pod, twin: Twin) -> None:
    pod.write("print('accuracy', 0.75)", "program.py")
    line = "cat config.json && python3 program.py | sed 's/ /=/'"
    pod.write('{"factor": 2}', "config.json")
    ended = pod.run("command", "--", "sh", "-c", line, python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.75


def test_existing_files_stay(pod: Pod, twin: Twin) -> None:
    (pod.folder / "config.json").write_text("mine")
    pod.write("another", "config.json")
    pod.write("def objective(trial): return 1.0")
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert (pod.folder / "config.json").read_text() == "mine"
    assert "has its own config.json; trial.source's are in" in ended.err


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder of another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_volume_gets_links_so_that_it_never_has_old_copies(pod: Pod, twin: Twin, volume: Path) -> None:
    pod.write('{"factor": 2}', "config.json")
    pod.write("def objective(trial): return float(open('config.json').read().count('factor'))")
    pod.working_directory = volume
    for value in (1, 2):
        ended = pod.run(python=BARE)
        assert ended.code == 0, ended
        pod.write('{"factor": "factor"}', "config.json")
        assert twin.told
        assert twin.told.values == [value]
        twin.told = None
        twin.trial = twin.study.ask()
        pod.environ["TUNING_TRIAL_NUMBER"] = "1"
    assert (volume / "config.json").is_symlink()


def test_a_read_only_working_directory_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, source = tmp_path / "image", tmp_path / "source"
    image.mkdir()
    source.mkdir()
    (image / "data.txt").write_text("0.25")
    (source / "train.py").write_text("pass")
    monkeypatch.chdir(image)
    monkeypatch.setenv("PWD", str(image))
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != image)
    code = prepare(str(source))
    assert code == os.environ["PWD"] == str(Path.cwd()) != str(image)
    assert Path("data.txt").read_text() == "0.25"
    assert Path("train.py").is_file()
    assert [entry.name for entry in image.iterdir()] == ["data.txt"]
    assert "which links to its files" in capsys.readouterr().err
