"""`init` with real scripts, run by this Python through the trainer runtime."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tuning_operator.cli import tuning
from typer.testing import CliRunner

from tests.unit.cli.conftest import Ran

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
    import optuna
    import shapes
    from data import loaders

    def objective(trial):
        raise SystemExit("no trial runs here")

    print("loading")
    study = optuna.create_study(
        study_name="Digits", direction="maximize", sampler=optuna.samplers.TPESampler(seed=3),
        pruner=optuna.pruners.HyperbandPruner(max_resource=9),
    )
    study.set_metric_names(["val/accuracy"])
    study.enqueue_trial({"lr": 0.01})
    study.optimize(objective, n_trials=7, timeout=600)
    raise SystemExit("nor what comes after")
"""


def write(folder: Path, script: str = SCRIPT) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "loaders.py").write_text("")
    (folder / "shapes.py").write_text("import sizes")
    (folder / "sizes.py").write_text("")
    (folder / "unused.py").write_text("")
    (folder / "train.py").write_text(textwrap.dedent(script))
    return folder / "train.py"


def init(script: Path, *options: str) -> Ran:
    return Ran("init", str(script), "--python", sys.executable, *options)


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def test_init(tmp_path: Path) -> None:
    ran = init(write(tmp_path))
    assert ran.out.split() == [f"{tmp_path}/study.yaml", f"{tmp_path}/kustomization.yaml"]
    assert f"kubectl apply -k {tmp_path}" in ran.err
    assert "the folder data is imported" in ran.err
    spec = load(tmp_path / "study.yaml")["spec"]
    assert spec["objectives"] == [{"metric": "val/accuracy", "direction": "maximize"}]
    assert spec["sampler"] == {"name": "TPESampler", "args": {"seed": 3}}
    assert spec["pruner"] == {"name": "HyperbandPruner", "args": {"max_resource": 9}}
    assert (spec["maxTrials"], spec["timeout"]) == (7, "600s")
    assert spec["initialTrials"] == [{"lr": 0.01}]
    assert load(tmp_path / "study.yaml")["metadata"] == {"name": "digits"}
    generated = load(tmp_path / "kustomization.yaml")["configMapGenerator"]
    assert generated == [{"name": "digits-code", "files": ["train.py", "shapes.py", "sizes.py"]}]


@pytest.mark.parametrize(("devices", "gpus"), [("", 0), ("0,1", 1)])
def test_init_for_this_machine(
    devices: str, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT).replace("from data import loaders\n", ""))
    (tmp_path / "shapes.py").touch()
    arguments = ["init", f"{tmp_path}/train.py", "--python", sys.executable]
    ran = CliRunner().invoke(tuning.app, arguments, prog_name="tuning", obj=tuning.connect_local)
    assert f"tuning run {tmp_path}   # starts the study digits" in ran.stderr
    assert load(tmp_path / "study.yaml")["spec"]["trial"]["gpus"] == gpus


def test_what_the_manifest_cannot_express_is_printed_and_added_as_a_comment(tmp_path: Path) -> None:
    script = write(tmp_path, SCRIPT.replace("seed=3", "constraints_func=print"))
    assert "note: " in init(script).err
    assert "constraints_func stays in the script" in (tmp_path / "study.yaml").read_text()


def test_arguments_gpus_and_the_image(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        SCRIPT.replace("import optuna", "import optuna, sys; assert sys.argv[1:] == ['--epochs', '3']"),
    )
    assert init(script, "--gpus", "0", "--", "--epochs", "3").code == 0
    trial = load(tmp_path / "study.yaml")["spec"]["trial"]
    assert trial["script"] == "train.py --epochs 3"
    assert trial["gpus"] == 0
    assert "template" not in trial
    assert init(script, "--force", "--image", "mine:2", "--", "--epochs", "3").code == 0
    trial = load(tmp_path / "study.yaml")["spec"]["trial"]
    assert trial["gpus"] == 1
    assert trial["template"]["spec"]["containers"] == [{"name": "trainer", "image": "mine:2"}]


def test_existing_files_are_overwritten_only_with_force(tmp_path: Path) -> None:
    script = write(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("mine")
    assert "kustomization.yaml already exists: use --force to overwrite" in (init(script).error or "")
    assert not (tmp_path / "study.yaml").exists()
    assert init(script, "--force", "--name", "again", "--gpus", "0", "--image", "i").code == 0
    assert "again-code" in (tmp_path / "kustomization.yaml").read_text()
    assert load(tmp_path / "study.yaml")["metadata"]["name"] == "again"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import optuna\nraise RuntimeError('no data here')", "no data here"),
        (
            "import nowhere_to_be_found",
            "Use --python to choose the Python that has the script's dependencies",
        ),
        ("import optuna", "without calling study.optimize"),
        ("this is no Python", "SyntaxError"),
    ],
)
def test_a_script_that_does_not_reach_optimize(tmp_path: Path, script: str, message: str) -> None:
    ran = init(write(tmp_path, script))
    assert ran.code == 1
    assert message in (ran.error or "")
    assert not (tmp_path / "study.yaml").exists()


def test_arguments_are_checked_first(tmp_path: Path) -> None:
    script = write(tmp_path)
    assert "gone.py does not exist" in (init(tmp_path / "gone.py").error or "")
    (tmp_path / "my train.py").write_text("")
    (tmp_path / "study.yaml").write_text("")
    assert "study.yaml is not a Python script" in (init(tmp_path / "study.yaml").error or "")
    (tmp_path / "study.yaml").unlink()
    assert "rename it" in (init(tmp_path / "my train.py").error or "")
    assert "kustomize only reads files in its own folder" in (
        init(script, "--out", "/study.yaml").error or ""
    )
    assert "python9 not found: use --python" in (Ran("init", str(script), "--python", "python9").error or "")
    assert "could not run" in (Ran("init", str(script), "--python", "false").error or "")
