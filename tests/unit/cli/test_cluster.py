"""The commands `apply`, `doctor` and `dashboard`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

import psutil
import pytest
from tuning_operator.cli.cluster import kubectl
from tuning_operator.resource.crdgen import crd

from tests.unit.cli.cluster import Cluster
from tests.unit.cli.conftest import Ran
from tests.unit.cli.test_validate import STUDY


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def accepted(cluster: Cluster, status: str, generation: int = 3) -> None:
    cluster.study(
        conditions=[
            {
                "type": "Accepted",
                "status": status,
                "reason": "Valid",
                "message": "why",
                "observedGeneration": generation,
            }
        ]
    )
    study = json.loads((cluster.folder / "get-tuningstudies").read_text())
    study["metadata"]["generation"] = 3
    cluster.answer("get-tuningstudies", study)


def test_apply_waits_until_the_study_is_accepted(
    cluster: Cluster, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("apply---filename", "tuningstudy.tuning.dev/mnist created\n")
    accepted(cluster, "False", generation=2)
    monkeypatch.setattr(time, "sleep", lambda _: accepted(cluster, "True"))
    ran = Ran("apply", str(manifest), "-n", "ml")
    assert ran.out.splitlines() == [
        "tuningstudy.tuning.dev/mnist created",
        "mnist is accepted. To follow it: kubectl tuning watch mnist",
    ]
    assert cluster.asked("apply")[:3] == ["apply", "--filename", str(manifest)]


def test_apply_of_a_kustomization_that_is_not_accepted(cluster: Cluster, manifest: Path) -> None:
    (manifest.parent / "kustomization.yaml").write_text("resources: [study.yaml]")
    cluster.answer("kustomize", STUDY)
    cluster.answer("apply---kustomize", "created")
    accepted(cluster, "False")
    ran = Ran("apply", str(manifest.parent))
    assert (ran.code, ran.error) == (1, "mnist is not accepted: why")


def test_what_a_kustomization_makes_is_checked_and_awaited(cluster: Cluster, manifest: Path) -> None:
    (manifest.parent / "kustomization.yaml").write_text("namePrefix: team-\nresources: [../base]")
    manifest.write_text(STUDY.replace("maxTrials: 10", "maxTrials: 0"))  # it is not one of the resources
    cluster.answer("kustomize", STUDY.replace("name: mnist", "name: team-mnist"))
    cluster.answer("apply---kustomize", "created")
    accepted(cluster, "True")
    ran = Ran("apply", str(manifest.parent))
    assert (ran.code, ran.out.splitlines()[-1]) == (
        0,
        "team-mnist is accepted. To follow it: kubectl tuning watch team-mnist",
    )
    assert "team-mnist" in cluster.asked("get-tuningstudies")
    cluster.answer("kustomize", STUDY.replace("maxTrials: 10", "maxTrials: 0"))
    assert Ran("apply", str(manifest.parent)).error == "1 problem was found"
    assert cluster.asked("apply"), "only the valid one"


def test_an_invalid_manifest_is_not_applied(cluster: Cluster, manifest: Path) -> None:
    manifest.write_text(STUDY.replace("maxTrials: 10", "maxTrials: 0"))
    assert Ran("apply", str(manifest)).code == 1
    assert not (cluster.folder / "asked").exists()


def test_an_operator_that_does_not_answer(
    cluster: Cluster, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("apply---filename", "created")
    accepted(cluster, "True", generation=2)
    moments = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert "`kubectl tuning doctor` says why" in (Ran("apply", str(manifest)).error or "")


def chart_pod(component: str, *, ready: bool = True) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": component}
    metadata = {"name": f"tuning-{component}-0", "namespace": "tuning-system", "labels": labels}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    states = [] if ready else [{"name": "c", "state": {"waiting": waiting}}]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": metadata, "status": {"conditions": conditions, "containerStatuses": states}}


@pytest.fixture
def healthy(cluster: Cluster) -> Cluster:
    cluster.study(phase="Running")
    study = json.loads((cluster.folder / "get-tuningstudies").read_text())
    pods = [chart_pod(component) for component in ("operator", "study-server", "postgres")]
    answers: dict[str, Any] = {
        "version": "v1",
        "config-view": "ml",
        "get-customresourcedefinitions": crd(),
        "get-pods": {"items": pods},
        "auth-can-i": "yes\n",
        "get-nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "4", "cpu": "8"}}}] * 2},
        "get-resourcequotas": {"items": []},
        "create-job": "created (server dry run)",
        "get-jobs": {"items": []},
        "get-tuningstudies": {"items": [study]},
    }
    for question, answer in answers.items():
        cluster.answer(question, answer)
    return cluster


def test_a_healthy_cluster(healthy: Cluster) -> None:
    ran = Ran("doctor")
    assert ran.code == 0, ran.out
    assert {line.split()[0] for line in ran.out.splitlines()} == {"ok"}
    assert "GPUs: the nodes have 8 nvidia.com/gpu" in ran.out
    assert "study-server is ready (tuning-system/tuning-study-server-0)" in ran.out


def wrong(cluster: Cluster) -> list[str]:
    ran = Ran("doctor")
    assert ran.code == 1
    return [line.partition("FAIL  ")[2] for line in ran.out.splitlines() if line.startswith("FAIL")]


def test_no_operator_installed(healthy: Cluster) -> None:
    healthy.refuse("get-customresourcedefinitions", "Error from server (NotFound): x")
    healthy.answer("get-pods", {"items": []})
    assert wrong(healthy) == [
        "CRD: the resource TuningStudy is not installed",
        "operator: operator is not running: it has no pod",
        "operator: study-server is not running: it has no pod",
    ]


def test_an_old_crd(healthy: Cluster) -> None:
    old = crd()
    properties = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    del properties["status"]["properties"]["bestValue"]
    healthy.answer("get-customresourcedefinitions", old)
    assert wrong(healthy) == [
        "CRD: the resource TuningStudy is older than this plugin: it has no status.bestValue"
    ]


def test_a_server_that_is_not_ready(healthy: Cluster) -> None:
    pods = [chart_pod("operator"), chart_pod("study-server", ready=False)]
    healthy.answer("get-pods", {"items": pods})
    assert wrong(healthy) == ["operator: study-server is not ready: CrashLoopBackOff: back-off"]
    out = Ran("doctor").out
    assert "`kubectl logs tuning-study-server-0 -n tuning-system`" in out
    assert "the study server uses your own database" in out


NOT_USED_UP = "ok    quota: 1 quota in the namespace, none used up"


@pytest.mark.parametrize(
    ("hard", "used", "full"),
    [
        ({"services.nodeports": "0", "secrets": "4", "requests.nvidia.com/gpu": "0"}, {"secrets": "4"}, ""),
        ({"pods": "8"}, {"pods": "12"}, "pods"),
        (
            {"requests.memory": "1Gi", "cpu": "8"},
            {"requests.memory": "1024Mi", "cpu": "7"},
            "requests.memory",
        ),
        ({"requests.nvidia.com/gpu": "4"}, {"requests.nvidia.com/gpu": "4"}, "requests.nvidia.com/gpu"),
    ],
)
def test_a_quota_counts_if_trials_need_what_it_limits(
    healthy: Cluster, hard: dict[str, str], used: dict[str, str], full: str
) -> None:
    quota = {"metadata": {"name": "team"}, "status": {"hard": hard, "used": used}}
    healthy.answer("get-resourcequotas", {"items": [quota]})
    found = [line for line in Ran("doctor").out.splitlines() if " quota: " in line]
    assert found == [f"FAIL  quota: quota team is used up: {full}" if full else NOT_USED_UP]


def test_a_quota_with_scopes_may_not_be_that_of_the_trials(healthy: Cluster) -> None:
    critical = {
        "operator": "In",
        "scopeName": "PriorityClass",
        "values": ["system-cluster-critical"],
    }
    quotas = [
        {"metadata": {"name": name}, "spec": spec, "status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
        for name, spec in {
            "critical": {"scopeSelector": {"matchExpressions": [critical]}},
            "idle": {"scopes": ["BestEffort"]},
        }.items()
    ]
    healthy.answer("get-resourcequotas", {"items": quotas})
    ran = Ran("doctor")
    assert ran.code == 0
    assert [line.partition(" (")[0] for line in ran.out.splitlines() if " quota: " in line] == [
        f"note  quota: quota {name} is used up: pods; it counts only the pods in its scopes"
        for name in ("critical", "idle")
    ]


def test_in_a_pod_without_a_kubeconfig(
    healthy: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy.refuse("config-view", "error: current-context must exist in order to minify")
    file = tmp_path / "namespace"
    monkeypatch.setattr(kubectl, "POD_NAMESPACE", file)
    assert "in namespace default" in Ran("doctor").out
    file.write_text("notebooks")
    assert "in namespace notebooks" in Ran("doctor").out


def test_images_quota_and_blocked_studies(healthy: Cluster) -> None:
    quota = {"metadata": {"name": "gpus"}, "status": {"hard": {"pods": "4"}, "used": {"pods": "4"}}}
    healthy.answer("get-resourcequotas", {"items": [quota]})
    pods = json.loads((healthy.folder / "get-pods").read_text())["items"]
    image = {"image": "trainer:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    pods.append({"metadata": {"name": "mnist-0-x", "labels": {}}, "status": {"containerStatuses": [image]}})
    healthy.answer("get-pods", {"items": pods})
    study = json.loads((healthy.folder / "get-tuningstudies").read_text())["items"][0]
    condition = {"type": "Stalled", "status": "True", "reason": "Quota", "message": "no room"}
    study["status"]["conditions"] = [condition]
    healthy.answer("get-tuningstudies", {"items": [study]})
    assert wrong(healthy) == [
        "quota: quota gpus is used up: pods",
        "images: pod mnist-0-x can't pull trainer:1",
        "studies: mnist: Stalled=True (Quota): no room",
    ]


def test_missing_permissions_are_notes(healthy: Cluster) -> None:
    healthy.refuse("get-nodes", "Error from server (Forbidden): nodes is forbidden")
    warning = "Warning: the server doesn't have a resource type 'tuningstudies'\n"
    healthy.refuse("auth-can-i", warning, "no - no RBAC policy matched\n")
    ran = Ran("doctor")
    assert ran.code == 0
    assert "note  GPUs: not checked, since you lack a permission" in ran.out
    assert "note  permissions: you don't have permission to create tuningstudies" in ran.out


def test_a_check_that_fails_leaves_the_others(healthy: Cluster) -> None:
    away = "Error from server (ServiceUnavailable): the server is currently unable to handle the request"
    log = 'E0102 10:00:00.000000       1 memcache.go:287] "Unhandled Error"\n'
    healthy.refuse("auth-can-i", f"{log}{away}\n")
    healthy.refuse("get-nodes", f"{log}{away}\n")
    ran = Ran("doctor")
    assert ran.code == 0
    assert f"note  permissions: not checked: {away}" in ran.out
    assert f"note  GPUs: not checked: {away}" in ran.out
    assert "ok    studies: 1 study, none blocked" in ran.out


def test_no_cluster(healthy: Cluster) -> None:
    healthy.refuse("version", "The connection to the server x was refused")
    assert len(wrong(healthy)) == 1


@pytest.fixture
def with_dashboard(healthy: Cluster) -> Cluster:
    metadata = {"name": "tuning-dashboard", "namespace": "tuning-system"}
    healthy.answer("get-services", {"items": [{"metadata": metadata}]})
    healthy.answer("port-forward", "Forwarding from 127.0.0.1:9000 -> 8080\n")
    return healthy


def test_the_dashboard(with_dashboard: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def press_ctrl_c(url: str) -> None:
        opened.append(url)
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, "open", press_ctrl_c)
    ran = Ran("dashboard", "--port", "9000")
    assert ran.code == 0
    assert ran.out.startswith("http://127.0.0.1:9000/dashboard")
    assert opened == ["http://127.0.0.1:9000/dashboard"]
    assert with_dashboard.asked("port-forward")[1:3] == ["service/tuning-dashboard", "9000:80"]


def test_one_of_several_dashboards(with_dashboard: Cluster) -> None:
    services = [{"metadata": {"name": "tuning-dashboard", "namespace": n}} for n in ("team-a", "team-b")]
    with_dashboard.answer("get-services", {"items": services})
    ran = Ran("dashboard", "--no-browser")
    assert ran.error == "there are several dashboards: choose one with --namespace (team-a, team-b)"
    with_dashboard.answer("get-services", {"items": services[1:]})
    with_dashboard.answer("port-forward.lost", "error: lost connection to pod")
    assert Ran("dashboard", "--no-browser", "--namespace", "team-b").code == 5
    everywhere, in_one = (call for call in with_dashboard.calls() if "services" in call)
    assert ("--all-namespaces" in everywhere, "--all-namespaces" in in_one) == (True, False)


def test_the_dashboard_of_another_namespace(with_dashboard: Cluster) -> None:
    with_dashboard.answer("get-services", {"items": []})
    ran = Ran("dashboard", "--namespace", "ml")
    assert (ran.code, "the dashboard is not installed" in ran.error) == (3, True)
    in_one, everywhere = (call for call in with_dashboard.calls() if "services" in call)
    assert ("--all-namespaces" in in_one, "--all-namespaces" in everywhere) == (False, True)


def test_the_dashboard_is_forwarded_until_its_pod_is_gone(with_dashboard: Cluster) -> None:
    """kubectl prints a line for each connection; if nobody read them, it would stop after some thousand."""
    lines = ["Forwarding from 127.0.0.1:9000 -> 8080", *["Handling connection for 9000"] * 3000]
    with_dashboard.answer("port-forward", "\n".join(lines))
    with_dashboard.answer("port-forward.lost", "error: lost connection to pod")
    ran = Ran("dashboard", "--no-browser")
    assert (ran.error, ran.code) == ("the connection to the dashboard was lost: run the command again", 5)


def test_the_port_of_the_dashboard_is_in_use(with_dashboard: Cluster) -> None:
    refusal = (
        "Unable to listen on port 8080: ... address already in use\nerror: unable to listen on any of the"
    )
    with_dashboard.refuse("port-forward", refusal)
    ran = Ran("dashboard", "--no-browser")
    assert (ran.error, ran.code) == ("port 8080 can't be used: choose another with --port (0: any)", 1)


def test_a_dashboard_that_is_ended_leaves_no_kubectl(with_dashboard: Cluster) -> None:
    command = [Path(sys.executable).with_name("kubectl-tuning"), "dashboard", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "http://127.0.0.1:9000/dashboard" in process.stdout.readline()
        [kubectl] = psutil.Process(process.pid).children()
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not kubectl.is_running()


def test_no_dashboard(healthy: Cluster) -> None:
    healthy.answer("get-services", {"items": []})
    ran = Ran("dashboard")
    assert ran.code == 3
    assert "--set dashboard.enabled=true" in (ran.error or "")
