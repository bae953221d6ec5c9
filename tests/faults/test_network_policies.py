"""The chart's NetworkPolicies, on a network that enforces them: who reaches what, and what they change."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml

from dev.cluster.kind import THREE_NODES
from dev.cluster.programs import helm
from dev.cluster.run import CommandError, run, wait
from dev.demo import system
from tests.e2e.kit import SYSTEM, Kubectl, code, phase, study
from tests.faults.nodes import SETTINGS
from tests.faults.running import RELEASE

ALLOW = r"networkPolicy.allow.studyServer[0].namespaceSelector.matchLabels.kubernetes\.io/metadata\.name"
OURS = {"made-by": "test-network-policies"}
SELECTOR = "made-by=test-network-policies"
CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError:
        continue
    print(target)
"""
TRAINER = "def objective(trial):\n    return trial.params['x']\n"


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_only_those_that_need_it_reach_the_components(on_three_nodes: Kubectl, image: str) -> None:
    release = on_three_nodes.within(SYSTEM)
    try:
        _check(release, on_three_nodes, image)
    finally:
        release.run("delete", "pods,networkpolicies", "-l", SELECTOR, "--wait=false")
        system.install(*SETTINGS, cluster=THREE_NODES)


def _check(release: Kubectl, elsewhere: Kubectl, image: str) -> None:
    _, worker, other = THREE_NODES.nodes
    dashboard = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "dashboard"}
    serve = ["python3", "-m", "http.server", "8080"]
    name = {"app.kubernetes.io/name": "tuning-operator"}
    release.apply(_pod("dashboard", image, worker, {**name, **dashboard}, serve))
    release.apply(_pod("stranger", image, worker, {}))
    elsewhere.apply(
        _pod("trial", image, worker, {"tuning.dev/study": "some"}),
        _pod("stranger", image, worker, {}),
        _pod("stranger-on-the-other-node", image, other, {}),
    )
    monitoring = f"{elsewhere.namespace}-monitoring"
    elsewhere.run("create", "namespace", monitoring)
    prometheus = elsewhere.within(monitoring)
    prometheus.apply(_pod("prometheus", image, other, {}))
    clients = {
        "a trial": (elsewhere, "trial"),
        "Prometheus": (prometheus, "prometheus"),
        "a stranger": (elsewhere, "stranger"),
        "a stranger on the other node": (elsewhere, "stranger-on-the-other-node"),
        "a stranger in the namespace of the release": (release, "stranger"),
    }
    for where in (release, elsewhere, prometheus):
        where.run("wait", "pod", "-l", SELECTOR, "--for=condition=Ready", "--timeout=600s")
    operator = release.items("pods", "app.kubernetes.io/component=operator")[0]["status"]["podIP"]
    targets = {
        f"{RELEASE}-study-server.{SYSTEM}.svc:8443": "the study server",
        f"{RELEASE}-postgres.{SYSTEM}.svc:5432": "Postgres",
        f"{release.json('get', 'pod', 'dashboard')['status']['podIP']}:8080": "the dashboard",
        f"{operator}:8081": "the operator's metrics",
    }

    def reached() -> dict[str, set[str]]:
        return {
            client: {
                targets[line]
                for line in where.run("exec", pod, "--", "python3", "-c", CONNECT, *targets).split()
            }
            for client, (where, pod) in clients.items()
        }

    def must_reach(expected: dict[str, set[str]]) -> None:
        with contextlib.suppress(CommandError):  # the network follows after a moment
            wait("the network", lambda: reached() == expected, 60)
        assert reached() == expected

    system.install(*SETTINGS, "networkPolicy.enabled=false", cluster=THREE_NODES)
    must_reach({client: set(targets.values()) for client in clients})

    system.install(*SETTINGS, f"{ALLOW}={monitoring}", cluster=THREE_NODES)
    release.apply(_dashboard_policy())
    public = {"the operator's metrics"}
    allowed = {"a trial": {"the study server"}, "Prometheus": {"the study server"}}
    must_reach({client: public | allowed.get(client, set()) for client in clients})

    manifest = study("allowed", image, maxTrials=2)
    elsewhere.apply(code("allowed-code", TRAINER), manifest)
    done = elsewhere.wait("allowed", phase("Completed", "Failed"))
    assert done["status"]["trials"]["complete"] == 2
    prometheus.run("delete", "namespace", monitoring, "--wait=false")


def _pod(
    name: str, image: str, node: str, labels: dict[str, str], command: list[str] | None = None
) -> dict[str, Any]:
    container = {"name": "main", "image": image, "command": command or ["sleep", "3600"]}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": name, "labels": {**OURS, **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _dashboard_policy() -> dict[str, Any]:
    """Return the dashboard's policy; the dashboard itself, whose image is a public one, is simulated."""
    template = ("template", RELEASE, system.CHART, "--show-only=templates/network-policies.yaml")
    rendered = run(helm(), *template, f"--namespace={SYSTEM}", "--set=dashboard.enabled=true")
    [policy] = [
        found for found in yaml.safe_load_all(rendered) if found["metadata"]["name"].endswith("-dashboard")
    ]
    policy["metadata"]["labels"] |= OURS
    return policy
