"""The command `watch`: on a real study server, and what it shows of a study."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from tuning_operator.cli.progress import Progress
from tuning_operator.cli.text.live import view
from tuning_operator.protocol import FinishedStudy

from tests.unit.cli.cluster import Cluster
from tests.unit.cli.conftest import Ran

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.study_server import RunningServer
    from tests.unit.cli.cluster import StudyServer

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPUS = {"resources": {"limits": {"nvidia.com/gpu": 2, "memory": "1Gi"}}}


def study(**status: Any) -> dict[str, Any]:
    """Return a study of ten trials with two GPUs each."""
    spec = {
        "objectives": [{"metric": "loss", "direction": "minimize"}],
        "maxTrials": 10,
        "trial": {"template": {"spec": {"containers": [{"name": "trainer", **GPUS}, {"name": "proxy"}]}}},
    }
    return {"metadata": {"name": "mnist", "namespace": "ml"}, "spec": spec, "status": status}


def trial(number: int, state: str, started: float, finished: float | None = None, **rest: Any) -> dict:
    """Return a trial; times are minutes before now."""
    moments = {"started": NOW - timedelta(minutes=started)}
    if finished is not None:
        moments["finished"] = NOW - timedelta(minutes=finished)
    return {"number": number, "state": state, **moments, **rest}


class Served:
    """A record that is read from a list of trials, and keeps from where."""

    def __init__(self, *trials: dict[str, Any]) -> None:
        self.trials = list(trials)
        self.asked: list[int] = []

    def read(self, first: int = 0) -> FinishedStudy:
        self.asked.append(first)
        known = [trial for trial in self.trials if trial["number"] >= first]
        return FinishedStudy.model_validate({"directions": ["minimize"], "trials": known})


SOME = (
    trial(0, "COMPLETE", 60, 40, values=[0.5]),
    trial(1, "COMPLETE", 60, 20, values=[0.4]),
    trial(2, "PRUNED", 40, 30),
    trial(3, "RUNNING", 10, reported={0: 0.5, 1: 0.25}, parameters={"lr": 0.1}),
)


def test_only_new_trials_are_read() -> None:
    record, progress = Served(*SOME), Progress(study(phase="Running"))
    progress.read(record)
    record.trials[3] = record.trials[3] | {"state": "COMPLETE", "finished": NOW}
    record.trials.append(trial(4, "RUNNING", 0))
    progress.read(record)
    progress.read(record)
    assert record.asked == [0, 3, 4]
    assert [trial.state for trial in progress.trials] == [
        "complete",
        "complete",
        "pruned",
        "complete",
        "running",
    ]


def test_rate_time_left_and_gpu_hours() -> None:
    progress = Progress(study(phase="Running"))
    progress.read(Served(*SOME))
    assert progress.rate(NOW) == pytest.approx(3 / 3600)
    assert progress.remaining(NOW) == pytest.approx(7 * 1200)
    used, saved = progress.gpu_hours() or (0, 0)
    running = (datetime.now(UTC) - NOW).total_seconds() / 3600 + 10 / 60
    assert used == pytest.approx(2 * ((20 + 40 + 10) / 60 + running), rel=1e-3)
    assert saved == pytest.approx(2 * (30 - 10) / 60)


@pytest.mark.parametrize(
    ("trial_spec", "gpus"),
    [
        ({}, 1),
        ({"gpus": 3}, 3),
        ({"gpus": 0}, None),
        ({"gpus": 1, "reusePods": True, "trialsPerPod": 4}, 0.25),
        ({"template": {"spec": {"containers": [{"name": "trainer"}]}}}, None),
    ],
)
def test_gpus_of_a_trial(trial_spec: dict[str, Any], gpus: float | None) -> None:
    found = study(phase="Completed")
    found["spec"]["trial"] = trial_spec
    progress = Progress(found)
    progress.read(Served(SOME[0]))
    hours = progress.gpu_hours()
    assert (hours[0] if hours else None) == (gpus and pytest.approx(gpus / 3))


def test_the_rate_is_that_of_the_last_trials() -> None:
    progress = Progress(study(phase="Running"))
    progress.read(Served(*(trial(n, "COMPLETE", 1000 - n, 100 - n, values=[0]) for n in range(50))))
    assert progress.rate(NOW) == pytest.approx(20 / (71 * 60))


def test_nothing_is_known_at_the_start() -> None:
    progress = Progress(study())
    assert (progress.rate(NOW), progress.remaining(NOW), progress.over) == (None, None, False)
    assert "not processed by the operator yet" in shown(progress)


def test_copied_trials_are_not_progress() -> None:
    progress = Progress(study(phase="Running"))
    progress.read(Served(SOME[0] | {"copiedFrom": {"study": "ml/old", "trial": 3}}, SOME[1]))
    assert progress.finished == 1


@pytest.mark.parametrize(
    ("phase", "refit", "declared", "over", "failed"),
    [
        ("Running", None, False, False, False),
        ("Completed", None, False, True, False),
        ("Completed", None, True, False, False),
        ("Completed", "Running", True, False, False),
        ("Completed", "Completed", True, True, False),
        ("Completed", "Failed", True, True, True),
        ("Failed", None, True, True, True),
        ("Suspended", None, False, False, False),
    ],
)
def test_when_it_is_over(phase: str, refit: str | None, declared: bool, over: bool, failed: bool) -> None:
    found = study(phase=phase, **({"refit": {"phase": refit, "job": "j"}} if refit else {}))
    found["spec"] |= {"refit": {}} | {"refit": {"retries": 1}} if declared else {}
    progress = Progress(found)
    assert (progress.over, progress.failed) == (over, failed)


def shown(progress: Progress, note: str = "", width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view(progress, note))
    return console.export_text()


def test_the_view_has_the_size_of_the_whole_pareto_front() -> None:
    front = [{"number": 1, "values": [0.5, 2.0], "parameters": {}}]
    several = study(phase="Running", paretoFront=front, bestValue="front of 80")
    several["spec"]["objectives"].append({"metric": "latency", "direction": "minimize"})
    assert "Pareto front of 80" in shown(Progress(several))


def test_the_view() -> None:
    best = {"number": 1, "values": [0.4], "parameters": {"lr": 0.25}}
    condition = {"type": "Stalled", "status": "True", "reason": "ImagePull", "message": "no such image"}
    progress = Progress(study(phase="Running", best=best, conditions=[condition]))
    progress.read(Served(*SOME))
    text = shown(progress, "no connection, trying again: x")
    assert "mnist  Running" in text
    assert "3/10 trials  2 complete, 1 pruned, 1 running" in text
    assert "loss 0.4 (trial 1)  lr=0.25" in text
    assert "0.25    lr=0.1" in text
    assert "saved by pruning" in text
    assert "Stalled=True (ImagePull): no such image" in text
    assert "no connection, trying again: x" in text


def test_on_a_narrow_terminal_the_bar_is_shorter_and_only_parameters_are_cut() -> None:
    parameters = {f"parameter_{i}": i for i in range(20)}
    progress = Progress(study(phase="Running"))
    progress.read(Served(*SOME, trial(4, "RUNNING", 15, reported={3: 0.123456}, parameters=parameters)))
    lines = shown(progress, width=80).splitlines()
    assert "  3/10 trials  2 complete, 1 pruned, 2 running" in lines[1]
    assert "RUNNING   FOR" in "\n".join(lines)
    row = next(line for line in lines if line.startswith("4 "))
    assert row.split()[2:4] == ["3", "0.123456"]
    assert row.endswith("…")


def test_a_line_for_each_change(
    mnist: Cluster, mnist_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_after_each_wait(
        monkeypatch,
        [
            lambda: None,
            lambda: mnist.refuse("get-tuningstudies", "The connection to the server x was refused"),
            lambda: resource(mnist, phase="Completed", progress="7/7"),
        ],
    )
    ran = Ran("watch", "mnist")
    lines = ran.out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "mnist: Running, 6/10 trials finished",
        "no connection, trying again: kubectl get tuningstudies.tuning.dev mnist: The connection to the "
        "server x was refused",
        "mnist: Completed, 7/7 trials finished",
    ]
    assert ran.code == 0
    forwards = [call for call in mnist.calls() if call[0] == "port-forward"]
    assert len(forwards) == 1


def test_a_server_that_goes_away_is_connected_to_again(
    mnist: Cluster, mnist_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = (mnist.folder / "port-forward").read_text()
    mnist.answer("port-forward", "Forwarding from 127.0.0.1:1 -> 8443\n")
    run_after_each_wait(
        monkeypatch,
        [
            lambda: mnist.answer("port-forward", address),
            lambda: resource(mnist, phase="Failed", progress="7/7"),
        ],
    )
    ran = Ran("watch", "mnist")
    assert ran.out.startswith("no connection, trying again: can't connect to the study server")
    assert ran.out.splitlines()[-1] == "mnist: Failed, 7/7 trials finished"
    assert ran.code == 1


def test_a_study_that_runs_for_longer_than_a_token_is_valid(
    cluster: Cluster, server: StudyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.study(phase="Running")
    cluster.serve(server)
    server.record(FinishedStudy(directions=["minimize"], trials=[]))

    def expire() -> None:
        cluster.answer("create-token", "another-token")
        server.token = "another-token"
        cluster.study(phase="Completed")

    run_after_each_wait(monkeypatch, [expire])
    ran = Ran("watch", "mnist")
    assert (ran.code, ran.error) == (0, None)
    assert [line.partition(",")[0] for line in ran.out.splitlines()] == ["mnist: Running", "mnist: Completed"]


def test_a_token_that_is_never_accepted_is_an_error(cluster: Cluster, server: StudyServer) -> None:
    cluster.study(phase="Running")
    cluster.serve(server)
    server.token = "another-token"
    assert Ran("watch", "mnist").error == "the study server replied 401: the token has expired"


def test_before_the_first_trial(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.study(phase="Pending")
    cluster.answer("get-configmaps", {"items": []})
    run_after_each_wait(monkeypatch, [lambda: cluster.study(phase="Completed")])
    ran = Ran("watch", "mnist")
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)


def resource(cluster: Cluster, **status: Any) -> None:
    (cluster.folder / "get-tuningstudies.refused").unlink(missing_ok=True)
    study = json.loads((cluster.folder / "get-tuningstudies").read_text())
    cluster.answer("get-tuningstudies", study | {"status": status})


def run_after_each_wait(monkeypatch: pytest.MonkeyPatch, events: list[Callable[[], None]]) -> None:
    """Have something happen instead of each wait between two updates."""
    following = iter(events)
    monkeypatch.setattr(time, "sleep", lambda _: next(following)())
