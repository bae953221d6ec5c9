"""The commands `best` and `plot`, with a simulated kubectl and a study server with TLS."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml
from tuning_operator.cli import plugin, tuning
from typer.testing import CliRunner

from tests.unit.cli import records
from tests.unit.cli.cluster import HOST, TOKEN, Cluster, StudyServer, study_server
from tests.unit.cli.conftest import Ran

if TYPE_CHECKING:
    from collections.abc import Iterator

BEST = {"number": 4, "values": [0.25], "parameters": {"lr": 0.125, "kind": "a"}}
ONE_PLOT = ["--plot", "optimization-history", "--format", "html"]


@pytest.fixture
def ready(cluster: Cluster, server: StudyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A study of five trials that can be plotted."""
    monkeypatch.chdir(tmp_path)
    cluster.study(phase="Running")
    cluster.serve(server)
    server.record(records.record(records.study(records.pruning, 5)))
    return cluster


def test_best(cluster: Cluster) -> None:
    cluster.study(phase="Running", progress="5/10", best=BEST)
    shown = Ran("best", "mnist", "-n", "ml", "--context", "mine", "--kubeconfig", "/k").out
    assert shown.splitlines()[0] == "mnist: Running, 5/10 trials finished"
    assert "Best trial 4: loss 0.25" in shown
    assert [line.split() for line in shown.splitlines()[2:]] == [["lr", "0.125"], ["kind", "a"]]
    asked = cluster.asked("get")
    assert asked[:3] == ["get", "tuningstudies.tuning.dev", "mnist"]
    assert {"--namespace=ml", "--context=mine", "--kubeconfig=/k"} <= {*asked}


def test_values_that_look_like_the_name_of_an_emoji(cluster: Cluster) -> None:
    cluster.study(phase="Running", best=BEST | {"parameters": {"ratio": "1:100:2"}})
    assert "  ratio    1:100:2\n" in Ran("best", "mnist").out


def test_best_as_json_and_yaml(cluster: Cluster) -> None:
    cluster.study(best=BEST)
    whole = BEST | {"values": {"loss": 0.25}}
    assert json.loads(Ran("best", "mnist", "-o", "json").out) == whole
    assert yaml.safe_load(Ran("best", "mnist", "-o", "yaml").out) == whole
    assert not any("=" in argument and "output" not in argument for argument in cluster.calls()[0])


def test_the_pareto_front_is_a_table(cluster: Cluster) -> None:
    front = [BEST | {"number": n, "values": [0.5, n]} for n in range(50)]
    cluster.study("loss", "latency", paretoFront=front, bestValue="front of 51")
    lines = Ran("best", "mnist").out.splitlines()
    assert "Pareto front, 50 trials:" in lines
    assert ["TRIAL", "loss", "latency", "lr", "kind"] in [line.split() for line in lines]
    assert ["49", "0.5", "49", "0.125", "a"] in [line.split() for line in lines]
    see_all = "kubectl tuning plot mnist --plot pareto-front"
    assert lines[-1] == f"(showing 50 trials of the front; to see all: {see_all})"
    cluster.study("loss", "latency", paretoFront=front, bestValue="front of 50")
    assert "showing" not in Ran("best", "mnist").out


def test_a_front_of_one_trial(cluster: Cluster) -> None:
    cluster.study("loss", "latency", paretoFront=[BEST | {"values": [0.5, 1]}])
    assert "Pareto front, 1 trial:" in Ran("best", "mnist").out.splitlines()


def test_no_best_yet(cluster: Cluster) -> None:
    cluster.study(phase="Pending")
    ran = Ran("best", "mnist")
    assert ran.code == 1
    assert ran.error == "no trial completed yet\nmnist: Pending, 0/10 trials finished"


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ('error: the server doesn\'t have a resource type "tuningstudies"', "install the operator"),
        ("The connection to the server x was refused", "connection to the server x was refused"),
        ("Error from server (Forbidden): tuningstudies is forbidden", "docs/guide/kubectl-plugin.md"),
    ],
)
def test_no_study(cluster: Cluster, stderr: str, message: str) -> None:
    cluster.refuse("get-tuningstudies", stderr)
    assert message in (Ran("best", "mnist").error or "")


@pytest.mark.parametrize(
    ("options", "in_context", "namespace"),
    [(["-n", "ml"], "other", "ml"), ([], "of-context", "of-context"), ([], "", "default")],
)
def test_study_not_found(cluster: Cluster, options: list[str], in_context: str, namespace: str) -> None:
    cluster.refuse("get-tuningstudies", 'Error from server (NotFound): tuningstudies "minst" not found')
    cluster.answer("config-view", in_context)
    error = Ran("best", "minst", *options).error or ""
    assert error.startswith(f'study "minst" not found in namespace {namespace}')
    assert "kubectl tuning list -A" in error


def test_no_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "kubectl not found" in (Ran("best", "mnist").error or "")


def test_plot_prints_files_and_reasons(ready: Cluster, server: StudyServer) -> None:
    ran = Ran("plot", "mnist", "--format", "html")
    names = [
        "optimization-history",
        "param-importances",
        "parallel-coordinate",
        "slice",
        "intermediate-values",
        *("contour", "rank", "edf", "timeline"),
    ]
    assert ran.out.splitlines() == [f"mnist-plots/{name}.html" for name in names]
    assert all(Path(line).stat().st_size > 1000 for line in ran.out.splitlines())
    assert ran.err.splitlines() == [
        "1 complete trial is not shown, since the value is infinite",
        "no pareto-front: the study has a single objective",
        "no hypervolume-history: the study has a single objective",
    ]
    assert ran.code == 0
    assert server.headers["Authorization"] == f"Bearer {TOKEN}"
    assert server.headers["Host"] == f"{HOST}:8443"


def test_plot_uses_the_users_permissions(ready: Cluster) -> None:
    Ran("plot", "mnist", *ONE_PLOT, "-n", "ml", "--context", "mine")
    token = ready.asked("create-token")
    assert {"tuning-reader", "--audience=tuning-study-server", "--duration=10m", "--namespace=ml"} <= {*token}
    forward = ready.asked("port-forward")
    assert forward[:3] == ["port-forward", "service/studies", ":8443"]
    assert {"--namespace=tuning-system", "--context=mine"} <= {*forward}


@pytest.mark.parametrize(
    "stderr",
    [
        'Error from server (NotFound): serviceaccounts "tuning-reader" not found',
        'error: failed to create token: serviceaccounts "tuning-reader" not found',
        'error: failed to create token: serviceaccounts "tuning-reader" is forbidden',
    ],
)
def test_the_token_is_that_of_default_unless_there_is_an_account_for_readers(
    ready: Cluster, server: StudyServer, stderr: str
) -> None:
    ready.refuse("create-token-tuning-reader", stderr)
    assert Ran("plot", "mnist", *ONE_PLOT).code == 0
    accounts = [call[2] for call in ready.calls() if call[:2] == ["create", "token"]]
    assert accounts == ["tuning-reader", "default"]
    assert server.headers["Authorization"] == f"Bearer {TOKEN}"


def test_plot_into_a_folder_of_both_formats(ready: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    ran = Ran("plot", "mnist", "--plot", "slice", "--plot", "pareto-front", "--out", str(folder))
    assert ran.out.splitlines() == [f"{folder}/slice.html", f"{folder}/slice.png"]
    assert ran.code == 0


def test_plot_without_matplotlib(ready: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "matplotlib" else there(n))
    ran = Ran("plot", "mnist", "--plot", "optimization-history")
    assert (ran.code, ran.out) == (0, "mnist-plots/optimization-history.html\n")


@pytest.mark.parametrize("out", ["plots.html", "notes.txt", "notes.txt/deeper"])
def test_plot_needs_a_folder(cluster: Cluster, tmp_path: Path, out: str) -> None:
    (tmp_path / "notes.txt").touch()
    error = Ran("plot", "mnist", "--out", str(tmp_path / out)).error or ""
    assert error.startswith(f"--out {tmp_path / out}: ")
    assert "a folder, since each plot gets files of its own" in error
    assert not (cluster.folder / "asked").exists()


def test_plot_prints_plots_as_text(ready: Cluster, tmp_path: Path) -> None:
    ran = Ran("plot", "mnist", "--format", "terminal")
    titles = [line for line in ran.out.splitlines() if line.startswith("mnist: ")]
    assert titles == [
        *("mnist: optimization history", "mnist: parameter importances", "mnist: intermediate values"),
    ]
    assert "\x1b" not in ran.out
    assert not (tmp_path / "mnist-plots").exists()


def test_plot_fails_if_nothing_could_be_drawn(ready: Cluster) -> None:
    ran = Ran("plot", "mnist", "--plot", "pareto-front")
    assert ran.code == 1
    assert ran.error == "no plot of mnist could be drawn"
    assert "single objective" in ran.err


def test_a_plot_that_breaks_leaves_the_others(ready: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna.visualization

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("torn")

    monkeypatch.setattr(optuna.visualization, "plot_slice", broken)
    ran = Ran("plot", "mnist", "--plot", "slice", *ONE_PLOT)
    assert "no slice.html: RuntimeError: torn" in ran.err
    assert ran.out.splitlines() == ["mnist-plots/optimization-history.html"]
    assert ran.code == 0
    assert Ran("report", "mnist").out == "mnist-report.html\n"
    page = Path("mnist-report.html").read_text()
    assert "No slice: RuntimeError: torn" in page
    assert "optimization history" in page


def test_plain_http(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster.study()
    with study_server(None) as plain:
        cluster.serve(plain, "http")
        plain.record(records.record(records.study(records.one, 2)))
        assert Ran("plot", "mnist", *ONE_PLOT).code == 0


@pytest.fixture
def others() -> Iterator[StudyServer]:
    with study_server("others.tuning-system.svc") as serving:
        yield serving


def test_a_server_of_another_name_is_not_trusted(ready: Cluster, others: StudyServer) -> None:
    others.record(records.record(records.study(records.one, 2)))
    ready.serve(others)
    assert "Its certificate was not issued by the CA" in (Ran("plot", "mnist").error or "")


def test_a_server_with_another_ca_is_not_trusted(ready: Cluster, server: StudyServer) -> None:
    with study_server(HOST) as false:
        false.ca = server.ca
        ready.serve(false)
        assert "Its certificate was not issued by the CA" in (Ran("plot", "mnist").error or "")


@pytest.mark.parametrize(
    ("question", "stderr", "message", "code"),
    [
        (
            "create-token",
            "Error from server (Forbidden): serviceaccounts is forbidden",
            "serviceaccounts/token",
            4,
        ),
        (
            "create-token",
            "Error from server (NotFound): serviceaccounts not found",
            "serviceaccounts not found",
            3,
        ),
        (
            "port-forward",
            'Error from server (Forbidden): pods "x" is forbidden',
            "create pods/portforward",
            4,
        ),
        ("port-forward", 'Error from server (NotFound): services "studies" not found', "operator removed", 5),
        ("port-forward", "error: timed out waiting for the condition", "not ready", 5),
    ],
)
def test_each_step_fails_with_a_fix(
    ready: Cluster, question: str, stderr: str, message: str, code: int
) -> None:
    ready.refuse(question, stderr)
    ran = Ran("plot", "mnist")
    assert ran.code == code
    assert stderr in (ran.error or "")
    assert message in (ran.error or "")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, '{"detail": "there is no study ml/mnist"}', "404: there is no study ml/mnist"),
        (503, "", "503: Service Unavailable"),
        (200, '{"directions": []}', "install the operator's version"),
    ],
)
def test_the_servers_reply_is_shown(
    ready: Cluster, server: StudyServer, status: int, body: str, message: str
) -> None:
    server.reply(status, body)
    assert message in (Ran("plot", "mnist").error or "")


def test_a_study_that_is_not_accepted_has_no_record_to_fetch(ready: Cluster) -> None:
    ready.answer("get-configmaps", {"items": []})
    assert "creates it when it has accepted the study" in (Ran("plot", "mnist").error or "")


def test_a_server_that_is_gone(ready: Cluster, server: StudyServer) -> None:
    ready.answer("port-forward", "Forwarding from 127.0.0.1:9 -> 8443\n")
    assert "Is it ready?" in (Ran("plot", "mnist").error or "")


def test_missing_libraries_are_reported_first(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "uv tool install './kubectl-tuning[plot]'" in (Ran("plot", "mnist", "--format", "png").error or "")
    assert not (cluster.folder / "asked").exists()


def test_unknown_formats() -> None:
    assert "use html, png, terminal or several of them" in (
        Ran("plot", "mnist", "--format", "pdf").error or ""
    )


def test_the_program_prints_an_error_and_best_imports_nothing_heavy(cluster: Cluster) -> None:
    cluster.study(best=BEST)
    heavy = "print(*({'optuna', 'httpx', 'numpy', 'plotly', 'kubernetes'} & {*sys.modules}))"
    program = f"import sys; sys.argv[1:] = ['best', 'mnist']\ntry: {plugin.__name__}.main()\nfinally: {heavy}"
    command = [sys.executable, "-c", f"import {plugin.__name__}\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    cluster.refuse("get-tuningstudies", "Error from server (NotFound): x")
    cluster.answer("config-view", "")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 3
    assert failed.stderr.startswith('error: study "mnist" not found in namespace default')


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["tri"], ["trials", "trial", ":4"]),
        (["trials", "mnist", "--so"], ["--sort", ":4"]),
        (["trials", "mnist", "-o", ""], ["wide", "json", "yaml", "csv", ":4"]),
        (["validate", "stu"], [":0"]),
    ],
)
def test_completion_as_kubectl_asks_for_it(words: list[str], completions: list[str]) -> None:
    program = Path(sys.executable).with_name("kubectl_complete-tuning")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completions


@pytest.mark.parametrize(
    "command", [*plugin.COMMANDS, "apply", "records", "doctor", "dashboard", "init", "validate"]
)
def test_each_command_has_help(command: str) -> None:
    shown = Ran(command, "--help").out
    assert ("kubectl tuning" in shown) or command == "init"
    assert "{program}" not in shown


@pytest.mark.parametrize("command", plugin.COMMANDS)
def test_commands_for_this_machine_have_no_options_of_kubectl(command: str) -> None:
    shown = CliRunner().invoke(tuning.app, [command, "--help"]).output
    assert "Usage" in shown
    assert not {"--namespace", "--context", "--kubeconfig"} & set(shown.replace(",", " ").split())


def test_each_command_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for command in (*plugin.COMMANDS, "apply", "records", "doctor", "dashboard", "init", "validate"):
        assert f"`kubectl tuning {command}" in reference, command


def commands_that_answer_questions() -> list[str]:
    reference = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    rows = [line for line in reference.partition("## Exit codes")[0].splitlines() if line.startswith("| ")]
    return [words for row in rows for words in re.findall(r"`kubectl tuning ([^`]+)`", row)]


@pytest.mark.parametrize("words", commands_that_answer_questions())
def test_each_answer_of_the_reference_can_be_typed(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    name, *arguments = shlex.split(words)
    group = typer.main.get_command(plugin.app)
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_colors_are_for_terminals_only(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.answer("get-tuningstudies", {"items": []})
    cluster.study(best=BEST)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in Ran("best", "mnist").out


def test_a_cluster_that_is_away(cluster: Cluster) -> None:
    away = "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    noise = 'E1126 03:27:30.190981   29126 memcache.go:265] "Unhandled Error" err="dial tcp 127.0.0.1:8080"\n'
    cluster.refuse("get-tuningstudies", noise * 5 + away)
    ran = Ran("trials", "mnist")
    assert ran.code == 5
    assert ran.error == (
        f"kubectl get tuningstudies.tuning.dev mnist: {away}\nCheck that it is the right cluster "
        "(kubectl config current-context), or use another --context"
    )
