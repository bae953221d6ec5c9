"""Trials on a real GPU, on this machine (`tuning run`), under the same trainer runtime as in pods."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.unit.local.study import LocalStudy

ROOT = Path(__file__).parents[2]
HEAD = """
import os, pathlib, time
import torch

seen = pathlib.Path(os.environ["SEEN"])
AVAILABLE = torch.cuda.is_available()

def note(name, *values):
    with (seen / name).open("a") as file:
        file.write(" ".join(map(str, values)) + "\\n")

def wait_for_all(trial, count):
    (seen / f"ready-{trial.number}").touch()
    while len(list(seen.glob("ready-*"))) < count:
        time.sleep(0.01)

def compute():
    square = torch.randn(1024, 1024, device="cuda")
    return float((square @ square).abs().mean())

note("imports", os.getpid())
"""


@pytest.fixture
def small(tmp_path: Path) -> LocalStudy:
    return LocalStudy(tmp_path)


def run(small: LocalStudy, code: str, *, trial: dict[str, Any] | None = None, **spec: Any) -> str:
    """Run a study whose trials need a GPU; return what `tuning run` printed."""
    (small.source / "train.py").write_text(HEAD + code)
    base = small.body()["spec"]["trial"]
    base["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    small.write(**{"trial": {**base, **(trial or {})}, "pruner": {"name": "NopPruner"}, **spec})
    return finish(small)


def finish(small: LocalStudy) -> str:
    """Run the study to its end; return what `tuning run` printed, and the logs of the runs."""
    exit_code, output = small.run()
    logs = "".join(log.read_text() for log in small.folder.runs.glob("*/log"))
    assert exit_code == 0, f"{output}\n{logs}"
    return output + logs


def lines(small: LocalStudy, name: str) -> list[list[str]]:
    return [line.split() for line in (small.seen / name).read_text().splitlines()]


def ends(small: LocalStudy) -> dict[int, str]:
    """Return how each trial ended: its state, with the category of a failure."""
    found = {}
    for trial in small.record().trials:
        category = trial.user_attrs.get("failure_category")
        found[trial.number] = f"{trial.state} {category}" if category else trial.state
    return found


def used_mib() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def test_each_trial_has_a_gpu_of_its_own(small: LocalStudy) -> None:
    code = """
def objective(trial):
    begun = time.time()
    compute()
    note("times", begun, time.time(), os.environ["CUDA_VISIBLE_DEVICES"], AVAILABLE)
    return trial.suggest_float("x", 0, 1)
"""
    gpus = torch.cuda.device_count()
    run(small, code, maxTrials=gpus + 2, parallelism=gpus + 1)
    by_device: dict[str, list[tuple[float, float]]] = {}
    for begun, ended, device, available in lines(small, "times"):
        assert available == "True"
        by_device.setdefault(device, []).append((float(begun), float(ended)))
    assert len(by_device) == gpus
    for times in by_device.values():
        for (_, ended), (begun, _) in itertools.pairwise(sorted(times)):
            assert ended <= begun
    assert small.status["usage"]["gpuSeconds"] > 0


def test_forked_trials_have_a_clean_cuda_context(small: LocalStudy) -> None:
    code = """
def objective(trial):
    before = torch.cuda.memory_allocated()
    compute()
    note("trials", os.getpid(), before)
    return trial.suggest_float("x", 0, 1)
"""
    run(small, code, trial={"reusePods": True}, maxTrials=4, parallelism=1)
    assert len(lines(small, "imports")) == 1  # is_available() at the top level does not use CUDA here
    pids, before = zip(*lines(small, "trials"), strict=True)
    assert len(set(pids)) == 4
    assert set(before) == {"0"}


def test_code_that_uses_cuda_when_it_is_imported(small: LocalStudy) -> None:
    code = """
ONE = torch.ones(1, device="cuda")

def objective(trial):
    return compute() * float(ONE) * 0 + trial.suggest_float("x", 0, 1)
"""
    output = run(small, code, trial={"reusePods": True}, maxTrials=3, parallelism=1)
    assert ends(small) == dict.fromkeys(range(3), "COMPLETE")
    assert "the code uses CUDA when it is imported, so each trial gets a new interpreter" in output
    assert len(lines(small, "imports")) == 1 + 3


def test_trials_on_a_gpu_share_its_memory(small: LocalStudy) -> None:
    """One that needs more than its share fails, while the others hold what is theirs."""
    code = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    total = torch.cuda.get_device_properties(0).total_memory
    wait_for_all(trial, 4)
    part = 0.3 if trial.number == 1 else 0.2
    held = torch.empty(int(part * total), dtype=torch.uint8, device="cuda")
    held.fill_(1)
    (seen / f"held-{trial.number}").touch()
    while len(list(seen.glob("held-*"))) < 3:
        time.sleep(0.01)
    return x
"""
    packed = {"reusePods": True, "trialsPerPod": 4}
    run(small, code, trial=packed, maxTrials=4, parallelism=4, maxFailedTrials=4)
    assert ends(small) == {0: "COMPLETE", 1: "FAIL OutOfMemory", 2: "COMPLETE", 3: "COMPLETE"}
    failed = next(trial for trial in small.record().trials if trial.number == 1)
    assert "lower spec.trial.trialsPerPod" in str(failed.user_attrs)


def test_what_ends_a_trial_leaves_the_others_on_its_gpu(small: LocalStudy) -> None:
    """A CUDA error, a crash, the time limit and the pruner: each ends its trial and frees its memory."""
    code = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    held = torch.ones(2**30, dtype=torch.uint8, device="cuda")
    wait_for_all(trial, 6)
    if trial.number == 0:
        print(torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")].cpu())
    if trial.number == 1:
        os.abort()
    if trial.number == 2:
        while True:
            compute()
    for step in range(200):
        compute()
        trial.report(0 if trial.number == 3 else 1, step)
        if trial.should_prune():
            import optuna
            raise optuna.TrialPruned
    return x
"""
    before = used_mib()
    run(
        small,
        code,
        trial={"reusePods": True, "trialsPerPod": 6, "timeout": "30s"},
        maxTrials=6,
        parallelism=6,
        maxFailedTrials=6,
        pruner={"name": "ThresholdPruner", "args": {"lower": 0.5, "n_warmup_steps": 20}},
    )
    found = ends(small)
    assert found[0].startswith("FAIL Exception")
    assert found[1].startswith("FAIL ExitCode")
    assert found[2].startswith("FAIL Timeout")
    assert [found[n] for n in (3, 4, 5)] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert used_mib() <= before + 100


@pytest.mark.parametrize("set_by_the_user", [False, True])
def test_jax_takes_its_share_of_the_memory(
    small: LocalStudy, set_by_the_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take three quarters of a GPU for the first trial, and the others would fail."""
    pytest.importorskip("jax", reason="JAX is optional here")
    code = """
def objective(trial):
    import jax
    square = jax.numpy.ones((1024, 1024))
    (square @ square).block_until_ready()
    limit = jax.devices()[0].memory_stats()["bytes_limit"]
    note("limits", limit / torch.cuda.get_device_properties(0).total_memory)
    wait_for_all(trial, 3)
    return trial.suggest_float("x", 0, 1)
"""
    if set_by_the_user:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    run(small, code, trial={"reusePods": True, "trialsPerPod": 3}, maxTrials=3, parallelism=3)
    limits = [float(limit) for (limit,) in lines(small, "limits")]
    assert limits == pytest.approx([0.1 if set_by_the_user else 0.3] * 3, abs=0.02)


@pytest.mark.parametrize("example", ["mnist", "dynamic-ann"])
def test_examples_train_on_the_gpu(example: str, small: LocalStudy) -> None:
    shutil.copytree(ROOT / "examples" / example, small.source, dirs_exist_ok=True)
    manifest = yaml.safe_load((small.source / "study.yaml").read_text())
    manifest["metadata"]["name"] = "small"
    manifest["spec"]["maxTrials"] = 3
    manifest["spec"].pop("refit", None)
    small.source.joinpath("study.yaml").write_text(yaml.safe_dump(manifest))
    assert finish(small).count("on cuda") == 3
