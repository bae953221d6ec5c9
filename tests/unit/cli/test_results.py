"""The commands `best -o`, `logs` and `export`."""

from __future__ import annotations

import csv
import inspect
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import optuna
import psutil
import pyarrow.parquet
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tuning_operator.cli.cluster.studies import _of_trial
from tuning_operator.cli.commands import logs, watch
from tuning_operator.cli.commands.best import best
from tuning_operator.cli.commands.export import _write_parquet
from tuning_operator.cli.trials import Trial
from tuning_operator.protocol import FinishedStudy, FinishedTrial
from tuning_trainer.log import log_end

from tests.unit.cli.cluster import Cluster
from tests.unit.cli.conftest import Ran
from tests.unit.cli.served import pod

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.study_server import RunningServer


BEST = {"number": 4, "values": [0.25], "parameters": {"lr": 0.125, "the kind": "it's", "bias": True}}


def test_best_for_a_shell(cluster: Cluster) -> None:
    cluster.study(best=BEST)
    args = Ran("best", "mnist", "-o", "args").out
    assert _in_shell(f"printf '%s\\n' {args}") == ["--lr=0.125", "--the kind=it's", "--bias=true"]
    variables = Ran("best", "mnist", "-o", "env").out
    assert _in_shell(f'{variables}\nprintf \'%s\\n\' "$TUNING_PARAM_LR" "$TUNING_PARAM_THE_KIND"') == [
        "0.125",
        "it's",
    ]


@pytest.mark.parametrize("output", ["args", "env"])
def test_the_examples_of_the_help_pass_values_with_spaces(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    cluster.study(best=BEST | {"parameters": {"layers": "64, 32", "lr": 0.1}})
    lines = inspect.cleandoc(best.__doc__ or "").splitlines()
    [line] = [line.strip() for line in lines if f"-o {output}" in line]
    train = {
        "args": "import sys; print(*sys.argv[1:], sep='\\n')",
        "env": "from os import environ as e; print(e['TUNING_PARAM_LAYERS']); print(e['TUNING_PARAM_LR'])",
    }[output]
    (tmp_path / "train.py").write_text(train)
    (tmp_path / "train.sh").write_text(f"#!/bin/sh\n{sys.executable} train.py\n")
    (tmp_path / "train.sh").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    program = str(Path(sys.executable).with_name("kubectl-tuning"))
    shown = _in_shell(line.replace("{program}", program))
    assert shown == {"args": ["--layers=64, 32", "--lr=0.1"], "env": ["64, 32", "0.1"]}[output]


def _in_shell(program: str) -> list[str]:
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_one_trial_of_a_front(cluster: Cluster) -> None:
    front = [BEST | {"number": n, "values": [n, -n], "parameters": {"x": n}} for n in range(3)]
    cluster.study("loss", "latency", paretoFront=front)
    refused = Ran("best", "mnist", "-o", "env").error or ""
    assert refused.endswith("choose the trial with --metric loss or --metric latency")
    assert Ran("best", "mnist", "-o", "args", "--metric", "latency").out == "--x=2\n"
    assert "Best trial 0: loss 0" in Ran("best", "mnist", "--metric", "loss").out
    assert "use one of loss, latency" in (Ran("best", "mnist", "--metric", "lr").error or "")


def test_best_says_that_the_refit_failed(cluster: Cluster) -> None:
    refit = {"phase": "Failed", "job": "mnist-refit", "message": "OutOfMemory: killed."}
    cluster.study(best=BEST, refit=refit)
    ran = Ran("best", "mnist", "-o", "args")
    assert ran.err == "The refit failed: OutOfMemory: killed.\nIts log: kubectl tuning logs mnist refit\n"
    assert ran.out.startswith("--lr=0.125")


def test_best_shows_the_model_of_the_refit(cluster: Cluster) -> None:
    cluster.study(best=BEST, refit={"phase": "Completed", "job": "mnist-refit", "model": "s3://models/7"})
    assert "Refit: Completed, model s3://models/7\n" in Ran("best", "mnist").out


def test_best_shows_that_the_model_is_lost(cluster: Cluster) -> None:
    refit = {
        "phase": "Completed",
        "job": "mnist-refit",
        "model": "m.pt",
        "message": "Lost with the pod: m.pt.",
    }
    cluster.study(best=BEST, refit=refit)
    assert "Refit: Completed, model m.pt. Lost with the pod: m.pt.\n" in Ran("best", "mnist").out


def test_the_log_of_the_newest_pod(mnist: Cluster) -> None:
    mnist.answer("logs-mnist-5-b", "epoch 1\nepoch 2\n")
    assert Ran("logs", "mnist", "5", "-n", "ml").out == "epoch 1\nepoch 2\n"
    assert mnist.asked("logs")[:4] == ["logs", "mnist-5-b", "--container", "trainer"]


def test_the_log_of_a_trial_whose_pod_has_others(mnist: Cluster, mnist_server: RunningServer) -> None:
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    study["spec"]["trial"] = {"reusePods": True}
    mnist.answer("get-tuningstudies", study)
    labels = {"tuning.dev/role": "worker", "tuning.dev/worker": "0"}
    mnist.answer("get-pods", {"items": [pod("mnist-w0-x7k2p", labels, "a")]})
    missing = Ran("logs", "mnist", "6")
    assert (missing.code, "Trial 6 has no pod." in (missing.error or "")) == (3, True)
    took = httpx.post(
        f"{mnist_server.url}/v1/studies/ml/mnist/workers/0/trials",
        headers={"Authorization": f"Bearer {mnist_server.pod_token('ml', 'mnist', 'w0')}"},
        json={"timeout": 0},
        timeout=120,
    )
    assert [view["trial"]["number"] for view in took.json()["start"]] == [6]
    lines = ["[trial 5] epoch 1", "tuning: of the worker", "[trial 6] epoch 1", "[trial 6]  epoch 2", ""]
    mnist.answer("logs-mnist-w0-x7k2p", "\n".join(lines))
    assert Ran("logs", "mnist", "6").out == "epoch 1\n epoch 2\n"
    assert "mnist-w0-x7k2p" in Ran("trials", "mnist").out


def test_following_a_trial_whose_pod_has_others_ends_with_the_trial() -> None:
    lines = ["[trial 5] epoch 1\n", f"{log_end(5)}\n", "[trial 6] epoch 1\n", "[trial 5] again\n"]
    assert list(_of_trial(iter(lines), 5, follow=True)) == ["epoch 1\n"]
    assert list(_of_trial(iter(lines), 5, follow=False)) == ["epoch 1\n", "again\n"]


def test_the_logs_of_all_trials_that_failed_with_their_reasons(mnist: Cluster) -> None:
    labels = {"tuning.dev/role": "trial", "tuning.dev/study": "mnist"}
    mnist.answer("get-pods", {"items": [pod("mnist-2-x", {**labels, "tuning.dev/trial": "2"}, "a")]})
    mnist.answer("logs-mnist-2-x", "epoch 1\nTraceback\n")
    ran = Ran("logs", "mnist", "--state", "failed")
    assert ran.code == 0
    assert ran.out == ("==> trial 2, failed: Exception: CUDA out of memory <==\nepoch 1\nTraceback\n")
    several = Ran("logs", "mnist", "2", "5")
    assert several.out.endswith("Traceback\n\n==> trial 5, complete <==\n")
    assert "(Trial 5 has no pod." in several.err
    assert Ran("logs", "mnist", "--state", "waiting").err == "No waiting trials.\n"


def test_only_the_pods_of_the_trials_whose_logs_are_shown_are_asked_for(mnist: Cluster) -> None:
    """A study may have thousands of pods."""
    mnist.answer("logs-mnist-5-b", "epoch 1\n")
    assert Ran("logs", "mnist", "--state", "complete").code == 0
    listed = [argument for call in mnist.calls() if call[:2] == ["get", "pods"] for argument in call[2:]]
    selectors = [argument for argument in listed if argument.startswith("--selector=")]
    assert selectors == [f"--selector=tuning.dev/study=mnist,tuning.dev/trial={n}" for n in (0, 3, 4, 5)]


@pytest.mark.parametrize("reason", ["SIGTERM", "closed pipe"])
def test_following_ends_when_asked_to_and_leaves_no_kubectl(mnist: Cluster, reason: str) -> None:
    mnist.answer("logs-mnist-6-b", "epoch\n" * 100_000)  # more than a pipe holds
    program = Path(sys.executable).with_name("kubectl-tuning")
    with subprocess.Popen(
        [program, "logs", "mnist", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "[trial 6] epoch\n"
            started = psutil.Process(process.pid).children()
            assert started
            if reason == "SIGTERM":
                process.terminate()
            else:
                process.stdout.close()
            assert process.wait(300) == (143 if reason == "SIGTERM" else 1)
        finally:
            process.kill()
    assert psutil.wait_procs(started, 300)[1] == []


def test_following_several_trials(mnist: Cluster) -> None:
    mnist.answer("logs-mnist-5-b", "epoch 1\nepoch 2\n")
    mnist.answer("logs-mnist-6-b", "epoch 1\n")
    ran = Ran("logs", "mnist", "5", "6", "0", "-f")
    lines = ran.out.splitlines()
    assert [line for line in lines if line.startswith("[trial 5]")] == [
        "[trial 5] epoch 1",
        "[trial 5] epoch 2",
    ]
    assert lines.count("[trial 6] epoch 1") == 1
    assert any(line.startswith("[trial 0] error: Trial 0 has no pod.") for line in lines)


def test_following_all_trials_until_the_study_ends(
    mnist: Cluster, mnist_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 6 runs. The next look finds trial 7, too, and that the study has ended."""
    labels = {"tuning.dev/role": "trial", "tuning.dev/study": "mnist"}
    pods = [pod(f"mnist-{n}-x", {**labels, "tuning.dev/trial": f"{n}"}, "a") for n in range(8)]
    mnist.answer("get-pods", {"items": pods})
    for number in range(8):
        mnist.answer(f"logs-mnist-{number}-x", f"training {number}\n")

    def next_look(seconds: float) -> None:
        assert seconds == logs.UPDATE_SECONDS
        mnist_server.operator().post("/v1/studies/ml/mnist/ask", json={"parallelism": 2, "maxTrials": 8})
        mnist.study(phase="Completed", progress="8/8")

    monkeypatch.setattr(watch.time, "sleep", next_look)
    ran = Ran("logs", "mnist", "-f")
    assert sorted(ran.out.splitlines()) == ["[trial 6] training 6", "[trial 7] training 7"]


def test_logs_of_what(mnist: Cluster) -> None:
    mnist.study(phase="Completed", progress="8/8")
    assert Ran("logs", "mnist", "-f").err.startswith("No trial is running.\nmnist: Completed, 8/8 trials")
    nothing = Ran("logs", "mnist")
    assert nothing.code == 2
    assert "name trials, or use --state" in " ".join(nothing.err.split())
    assert Ran("logs", "mnist", "5", "--state", "failed").code == 2


def test_the_log_of_the_refit(mnist: Cluster) -> None:
    labels = {"tuning.dev/role": "final", "tuning.dev/trial": "5"}
    pod = {"metadata": {"name": "mnist-refit-x", "labels": labels, "creationTimestamp": "a"}}
    mnist.answer("get-pods", {"items": [pod]})
    mnist.answer("logs-mnist-refit-x", "done\n")
    assert Ran("logs", "mnist", "refit").out == "done\n"


def test_no_log(mnist: Cluster) -> None:
    ran = Ran("logs", "mnist", "0")
    assert (ran.code, "Trial 0 has no pod." in (ran.error or "")) == (3, True)
    mnist.refuse("logs-mnist-6-b", 'Error: container "trainer" in pod "x" is waiting to start: ErrImagePull')
    waiting = Ran("logs", "mnist", "6")
    assert waiting.code == 3
    assert (waiting.error or "").endswith("the container of pod mnist-6-b is waiting (ErrImagePull)")
    assert Ran("logs", "mnist", "final").code == 2


def test_following_waits_for_the_container(mnist: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist.refuse("logs-mnist-6-b", "container is waiting to start: ContainerCreating")
    mnist.answer("logs-mnist-6-b", "epoch 1\n")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        (mnist.folder / "logs-mnist-6-b.refused").unlink()

    monkeypatch.setattr(time, "sleep", wait)
    assert Ran("logs", "mnist", "6", "-f").out == "epoch 1\n"
    assert len(waited) == 1


@pytest.mark.parametrize("options", [[], ["--format", "journal"]])
def test_optuna_opens_the_export(
    mnist: Cluster, mnist_server: RunningServer, options: Sequence[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = Ran("export", "mnist", *options)
    file = ran.out.strip()
    assert {path.name for path in tmp_path.iterdir()} - {"bin", "cluster"} == {file}
    storage: Any = JournalStorage(JournalFileBackend(file)) if options else f"sqlite:///{file}"
    assert ran.err.startswith('optuna.load_study(study_name="ml/mnist", storage=')
    loaded = optuna.load_study(study_name="ml/mnist", storage=storage)
    server_side = optuna.load_study(study_name="ml/mnist", storage=mnist_server.server.service._store.storage)
    assert loaded.metric_names == ["loss"]
    assert loaded.best_params == server_side.best_params
    for trial, original in zip(loaded.trials, server_side.trials, strict=True):
        assert trial.params == original.params
        assert trial.distributions == original.distributions
        assert trial.intermediate_values == original.intermediate_values
        assert trial.user_attrs == original.user_attrs
        assert (trial.state, trial.values) == (original.state, original.values)
        assert trial.datetime_start == original.datetime_start
        assert trial.datetime_complete == original.datetime_complete
    assert loaded.trials[6].state == TrialState.RUNNING


def test_export_as_csv_and_to_an_existing_file(
    mnist: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Ran("export", "mnist", "--out", "a.csv").out == "a.csv\n"
    with Path("a.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    assert "use --force to overwrite it" in (Ran("export", "mnist", "--out", "a.csv").error or "")
    assert Ran("export", "mnist", "--out", "a.csv", "--force").code == 0
    assert "end the name with .db, .log, .csv or .parquet" in (
        Ran("export", "mnist", "--out", "a.xls").error or ""
    )
    assert "an existing folder" in (Ran("export", "mnist", "--out", "no/a.csv").error or "")


def test_export_as_parquet(mnist: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Ran("export", "mnist", "--format", "parquet").out == "mnist.parquet\n"
    table = pyarrow.parquet.read_table("mnist.parquet")
    assert str(table.schema.field("params_lr").type) == "double"
    assert str(table.schema.field("started").type).startswith("timestamp")
    rows = table.to_pylist()
    assert [row["number"] for row in rows] == [*range(7)]
    assert rows[0]["params_kind"] == "a"
    assert rows[1]["params_kind"] == "null"  # the choices are of several types
    assert [row["loss"] is None for row in rows] == [n in (1, 2, 6) for n in range(7)]
    assert rows[2]["reason"] == "Exception: CUDA out of memory"


@pytest.mark.parametrize(
    ("given", "exported"),
    [
        ([0.123456789012, None, math.inf], [0.123456789012, None, math.inf]),
        ([0.123456789012, "a", None], ["0.123456789012", "a", "null"]),
        ([2**64 + 1, 1, True], ["18446744073709551617", "1", "true"]),
    ],
)
def test_parquet_has_the_values_of_attributes(tmp_path: Path, given: list[Any], exported: list[Any]) -> None:
    attributes = [FinishedTrial(number=n, state="FAIL", user_attrs={"a": a}) for n, a in enumerate(given)]
    wire = FinishedStudy(directions=["minimize"], trials=attributes).model_dump_json(by_alias=True)
    trials = [Trial(trial, ["loss"]) for trial in FinishedStudy.model_validate_json(wire).trials]
    _write_parquet(trials, ["loss"], tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["user_attrs_a"].to_pylist() == exported


def test_a_report_is_one_page(mnist: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Ran("report", "mnist").out == "mnist-report.html\n"
    page = Path("mnist-report.html").read_text()
    assert page.count("Plotly.newPlot(") == 9  # all of a study with one objective
    assert page.count("<script src=") == 0
    content = page[page.index("</script>") :]  # after plotly's code
    for words in ("mnist: Running", "Best trial", "0.0357143", "CUDA out of memory", "its best value so far"):
        assert words in content, words
    assert content.count("<tr class=") == 2 + 1 + 7
    assert "maxTrials: 10" in content
    assert "use --force to overwrite it" in (Ran("report", "mnist").error or "")
    assert Ran("report", "mnist", "--force").code == 0


def test_a_study_that_is_not_there_leaves_no_file(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster.refuse("get-tuningstudies", "Error from server (NotFound): x")
    cluster.answer("config-view", "ml")
    assert Ran("export", "mnist").code == 3
    assert not list(tmp_path.glob("*mnist*"))
