"""The commands of `kubectl tuning` on studies of a real cluster: seen, changed, stopped, exported."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import optuna
import psutil
import pytest
import yaml

from dev.cluster import images, kind
from dev.demo import system
from tests.e2e.kit import LIMIT, Kubectl, Plugin, code, optuna_record, phase, study

if TYPE_CHECKING:
    from pathlib import Path

    from tuning_operator.cli.studies import Resource

OBJECTIVE = """
    import optuna

    def objective(trial):
        print("training with", trial.params)
        if trial.number == 2:
            raise ValueError("the learning rate is too high")
        for step in range(12):
            trial.report(1 / (step + 1) + (trial.number == 3), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("epochs", 12)
        return trial.number / 3
"""
WAITS = """
    import time

    def objective(trial):
        trial.report(0.5, 0)
        time.sleep(600)
"""
SPACE = [
    {"name": "x", "type": "float", "low": 0, "high": 10},
    {"name": "width", "type": "int", "low": 1, "high": 4},
]
PRUNER = {"name": "MedianPruner", "args": {"n_startup_trials": 1}}


@pytest.mark.long
def test_a_study_from_apply_to_export(
    kubectl: Kubectl,
    plugin: Plugin,
    image: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    manifest = study("seen", image, maxTrials=4, parallelism=1, searchSpace=SPACE, pruner=PRUNER)
    manifest["spec"]["maxFailedTrials"] = 5
    (folder / "study.yaml").write_text(yaml.safe_dump(manifest))
    assert plugin("validate", str(folder / "study.yaml")).returncode == 0
    kubectl.apply(code("seen-code", OBJECTIVE))
    for _ in range(10):  # on a busy machine, it may not wait until the operator has processed the study
        applied = plugin("apply", str(folder / "study.yaml"))
        if "has not been processed" not in applied.stderr:
            break
    assert "seen is accepted. To follow it: kubectl tuning watch seen" in applied.stdout, applied.stderr

    watched = plugin("watch", "seen", "--interval", "0.5")
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines()[-1].startswith("seen: Completed, 4/4 trials finished")
    listed = plugin("list", "-A").stdout
    assert re.search(rf"{kubectl.namespace} +seen +Completed +4/4", listed)

    trials = data(plugin, "trials", "seen")
    assert [trial["state"] for trial in trials] == ["complete", "complete", "failed", "pruned"]
    assert [trial["number"] for trial in data(plugin, "trials", "seen", "--sort", "value")][:2] == [0, 1]
    table = plugin("trials", "seen", "-o", "wide").stdout
    assert "the learning rate is too high" in table
    assert re.search(r"3 +pruned .*0 \(2\) +seen-3-", table)

    pruned = plugin("trial", "seen", "3").stdout
    assert "At step 0, its best value so far (2) is worse than 1, the median of 2 completed" in pruned
    complete = plugin("trial", "seen", "0").stdout
    assert "Reports (12)" in complete
    assert re.search(r"epochs +12", complete)
    failed = plugin("trial", "seen", "2").stdout
    assert "ValueError: the learning rate is too high" in failed
    assert "training with" in plugin("logs", "seen", "0").stdout
    logs = plugin("logs", "seen", "--state", "failed").stdout
    assert logs.startswith("==> trial 2, failed: Exception: ValueError: the learning rate is too high <==\n")
    assert "Traceback" in logs

    arguments = plugin("best", "seen", "-o", "args").stdout.split()
    assert [argument.partition("=")[0] for argument in arguments] == ["--x", "--width"]
    assert plugin("export", "seen", folder=tmp_path).stdout == "seen.db\n"
    loaded = optuna.load_study(
        study_name=f"{kubectl.namespace}/seen", storage=f"sqlite:///{tmp_path / 'seen.db'}"
    )
    assert loaded.best_trial.number == 0
    assert loaded.best_params == trials[0]["parameters"]

    job = kubectl.json("get", "job", "seen-0")
    assert json.loads(job["metadata"]["annotations"]["tuning.dev/parameters"]) == trials[0]["parameters"]
    assert re.search(r"seen +Completed +4/4 .* 0 ", kubectl.run("get", "tuningstudies"))

    retried = plugin("retry", "seen", "2")
    assert "maxTrials was raised to 5." in retried.stdout, retried.stderr
    kubectl.wait("seen", lambda found: found.get("status", {}).get("progress") == "5/5")
    assert data(plugin, "trial", "seen", "4")["parameters"] == trials[2]["parameters"]
    assert plugin("extend", "seen", "--trials", "+1").stdout == "seen: maxTrials=6\n"
    kubectl.wait("seen", lambda found: found.get("status", {}).get("progress") == "6/6")


def test_trials_and_studies_are_stopped_and_resumed(
    kubectl: Kubectl,
    plugin: Plugin,
    image: str,
) -> None:
    waiting = study("slow", image, maxTrials=5, parallelism=2, searchSpace=SPACE)
    kubectl.apply(code("slow-code", WAITS), waiting)
    kubectl.wait("slow", running(2))
    following = ThreadPoolExecutor().submit(plugin, "logs", "slow", "0", "1", "-f")
    stopped = plugin("stop", "slow", "0")
    assert stopped.stdout == "Trial 0 of slow is being stopped.\n", stopped.stderr
    kubectl.wait("slow", lambda found: counts(found).get("pruned") == 1 and running(2)(found))
    kubectl.wait_for("delete", "pods", "-l", "tuning.dev/study=slow,tuning.dev/trial=0")
    page = plugin("trial", "slow", "0").stdout
    assert "StoppedByUser: A user stopped the trial." in page
    assert "deleted" in page
    again = plugin("stop", "slow", "0")
    assert (again.returncode, again.stderr) == (1, "error: trial 0 is not running: it is pruned\n")

    assert plugin("stop", "slow").stdout.startswith("slow is suspended, and 2 running trials are being")
    kubectl.wait("slow", lambda found: phase("Suspended")(found) and counts(found).get("pruned") == 3)
    kubectl.wait_for("delete", "job", "--selector=tuning.dev/study=slow")
    followed = following.result()
    assert re.search(r"^\[trial 1\] tuning: trial 1 of \S+/slow", followed.stdout, re.MULTILINE), followed
    assert plugin("resume", "slow").stdout == "slow continues.\n"
    kubectl.wait("slow", running(2))
    assert plugin("suspend", "slow").returncode == 0
    kubectl.wait("slow", phase("Suspended"))
    assert counts(kubectl.study("slow"))["running"] == 2


def test_the_dashboard(kubectl: Kubectl, plugin: Plugin, image: str) -> None:
    """It shows the trials as they are recorded, until Ctrl-C."""
    kubectl.apply(
        code("shown-code", OBJECTIVE),
        study("shown", image, maxTrials=4, maxFailedTrials=1, searchSpace=SPACE, pruner=PRUNER),
    )
    images.ensure(images.DASHBOARD)
    kind.DEVELOPMENT.load(images.DASHBOARD)
    system.install("dashboard.enabled=true")
    try:
        kubectl.wait("shown", phase("Completed"))
        with plugin.start("dashboard", "--port", "0", "--no-browser") as started:
            assert started.stdout
            [address, *_] = started.stdout.readline().split()
            with shown_trials(address, f"{kubectl.namespace}/shown") as shown:
                forwarding = psutil.Process(started.pid).children()
                os.killpg(started.pid, signal.SIGINT)
                rest = started.communicate()
        assert (started.returncode, rest) == (0, ("", ""))
        assert len(forwarding) == 1
        assert not forwarding[0].is_running()
    finally:
        system.install()
    with optuna_record(kubectl, "shown") as record:
        assert shown == [
            {
                "number": trial.number,
                "state": trial.state.name.capitalize(),
                "values": trial.values,
                "params": {name: str(value) for name, value in trial.params.items()},
                "intermediate_values": trial.intermediate_values,
            }
            for trial in record.trials
        ]
    assert [trial["state"] for trial in shown].count("Fail") == 1


@contextlib.contextmanager
def shown_trials(address: str, name: str) -> Iterator[list[dict[str, Any]]]:
    """Yield what the dashboard shows of a study's trials, while the connection is open.

    kubectl may end a port-forward when a connection is closed.
    """
    with httpx.Client(base_url=address.removesuffix("/dashboard"), trust_env=False, timeout=120) as client:
        assert "<title>Optuna Dashboard</title>" in client.get("/dashboard").text
        [found] = [
            summary["study_id"]
            for summary in client.get("/api/studies").json()["study_summaries"]
            if summary["study_name"] == name
        ]
        yield [
            {
                "number": trial["number"],
                "state": trial["state"],
                "values": trial.get("values"),
                "params": {param["name"]: param["param_external_value"] for param in trial["params"]},
                "intermediate_values": {
                    report["step"]: report["value"] for report in trial["intermediate_values"]
                },
            }
            for trial in client.get(f"/api/studies/{found}").json()["trials"]
        ]


def running(number: int) -> Any:
    return lambda found: counts(found).get("running") == number


def counts(found: Resource) -> Any:
    return found.get("status", {}).get("trials") or {}


def data(plugin: Plugin, *arguments: str) -> Any:
    done = plugin(*arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_not_there_and_what_is_wrong(
    kubectl: Kubectl,
    plugin: Plugin,
    tmp_path: Path,
) -> None:
    for arguments in (["trials"], ["trial", "0"], ["watch"], ["logs", "0"], ["best"], ["export"], ["stop"]):
        command, *rest = arguments
        done = plugin(command, "minst", *rest, folder=tmp_path)
        assert done.returncode == 3, arguments
        where = f'study "minst" not found in namespace {kubectl.namespace}'
        assert done.stderr == f"error: {where}; `kubectl tuning list -A` lists all studies\n"
    away = Plugin(plugin.programs, str(tmp_path / "kubeconfig"), "x")
    config = yaml.safe_load(kubectl.run("config", "view", "--raw", "--flatten"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    unreachable = away("trials", "mnist")
    assert unreachable.returncode == 5
    assert "Traceback" not in unreachable.stderr


def test_doctor_finds_nothing_wrong_with_the_tests_cluster(kubectl: Kubectl, plugin: Plugin) -> None:
    deadline = time.monotonic() + LIMIT
    while (done := plugin("doctor")).returncode and time.monotonic() < deadline:
        time.sleep(5)  # other tests install, upgrade and remove releases of their own in the meantime
    assert done.returncode == 0, done.stdout
    assert "operator is ready" in done.stdout
    assert "study-server is ready" in done.stdout
    assert "postgres is ready" in done.stdout
    assert re.search(r"the nodes have \d+ nvidia.com/gpu", done.stdout)
