"""The working directory: has the files of trial.source, and the trial's code can write to it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tuning_trainer.workspace import lost_files, prepare

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
    assert "already has config.json: trial.source's are in" in ended.err


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
        assert twin.result
        assert twin.result.values == [value]
        twin.result = None
        twin.trial = twin.study.ask()
        pod.environ["TUNING_TRIAL_NUMBER"] = "1"
    assert (volume / "config.json").is_symlink()


def test_pods_that_start_together_link_the_files_once(
    tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text("pass")
    (volume / "train.py").symlink_to(tmp_path / "train.py")
    monkeypatch.chdir(volume)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # as it was before the other pod made the link
    assert prepare(str(tmp_path)) == str(tmp_path)
    assert capsys.readouterr().err == ""
    (volume / "train.py").unlink()
    (volume / "train.py").write_text("another")
    assert prepare(str(tmp_path)) == str(tmp_path)
    assert "already has train.py" in capsys.readouterr().err


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


@pytest.fixture
def mounted(pod: Pod) -> Pod:
    """A pod with a volume that is kept, and files of its image."""
    for folder in ("volume", "image"):
        (pod.folder / folder).mkdir()
    (pod.folder / "image" / "data.csv").touch()
    outlast_pod = {str(pod.folder): False, str(pod.folder / "volume"): True}
    storage = {"field": "spec.trial.template", "outlastPod": outlast_pod}
    pod.environ["TUNING_CONFIG"] = json.dumps({"storage": storage})
    return pod


LOST = (
    "Lost with the pod, since no volume keeps the files: model.pt (user attribute model), out (user "
    "attribute plots). To keep them, mount a PersistentVolumeClaim (volumes and volumeMounts in "
    "spec.trial.template) and save them there."
)
OBJECTIVE = """
    import os, pathlib

    def objective(trial):
        os.mkdir("out")
        for name in ("model.pt", "out/loss.png", "volume/best.pt", "half.pt"):
            pathlib.Path(name).write_text(name)
        trial.set_user_attr("model", "model.pt")
        trial.set_user_attr("plots", "out")
        trial.set_user_attr("best", "volume/best.pt")
        trial.set_user_attr("data", "image/data.csv")
        trial.set_user_attr("network", "resnet")
        trial.set_user_attr("remote", "s3://models/1")
        trial.set_user_attr("note", "long " * 1000)
        trial.set_user_attr("removed", "half.pt")
        os.remove("half.pt")
        return 0.5
"""


def test_paths_of_files_that_end_with_the_pod_are_reported(mounted: Pod, twin: Twin) -> None:
    mounted.write(OBJECTIVE)
    ended = mounted.run(python=BARE)
    assert ended.code == 0, ended
    assert ended.err.count(f"tuning: {LOST}\n") == 1
    assert twin.study.trials[0].user_attrs["trainer_warning"] == LOST


@pytest.mark.parametrize("value", ["", "."])
def test_the_working_directory_itself_is_no_lost_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    (tmp_path / "model.pt").touch()
    monkeypatch.chdir(tmp_path)
    storage = {"field": "spec.trial.template", "outlastPod": {str(tmp_path): False}}
    assert lost_files({"note": value}, storage, since=0) is None
    assert lost_files({"model": "model.pt"}, storage, since=0)


@pytest.mark.parametrize(
    "ending", ["raise ValueError", "import tuning_trainer; raise tuning_trainer.TrialPruned"]
)
def test_a_trial_without_a_result_has_nothing_to_keep(mounted: Pod, twin: Twin, ending: str) -> None:
    mounted.write(OBJECTIVE.replace("return 0.5", ending))
    assert "Lost" not in mounted.run(python=BARE).err
    assert "trainer_warning" not in twin.study.trials[0].user_attrs


def test_a_program_and_the_refit_of_a_script_report_files_that_are_lost(mounted: Pod, twin: Twin) -> None:
    mounted.write("""
        import json, os, pathlib, sys

        pathlib.Path("model.pt").touch()
        pathlib.Path(os.environ["TUNING_RESULT_FILE"]).write_text(json.dumps({"model": sys.argv[1]}))
        print("accuracy=0.5")
    """)
    command = ("command", "--", sys.executable, "train.py")
    lost = mounted.run(*command, str(mounted.folder / "model.pt"), python=BARE)
    assert f"Lost with the pod, since no volume keeps the file: {mounted.folder}/model.pt (user" in lost.err
    twin.finished = twin.study.trials
    twin.trial, twin.result, twin.final = twin.study.ask(), None, True
    mounted.environ["TUNING_ROLE"] = "final"
    mounted.write("""
        import pathlib
        import optuna

        study = optuna.create_study(direction="maximize")
        study.optimize(print)
        pathlib.Path("model.txt").touch()
        study.set_user_attr("model", "model.txt")
    """)
    assert mounted.run("script", "train.py", python=BARE).code == 0
    assert "model.txt (user attribute model)" in twin.study.trials[1].user_attrs["trainer_warning"]
