"""The clusters that faults are injected into, and the page that `make faults` writes from their results."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from dev.cluster import programs
from dev.cluster.kind import THREE_NODES
from dev.cluster.run import succeeds
from dev.demo import system
from tests.e2e.conftest import cluster, image, kubectl, pytest_collection_modifyitems, pytest_sessionstart
from tests.e2e.kit import Kubectl
from tests.faults import cloudnativepg as postgres_operator
from tests.faults import cluster as one_node
from tests.faults import nodes
from tests.faults.report import PAGE, RESULTS, Result, write

__all__ = ["cluster", "image", "kubectl", "pytest_collection_modifyitems", "pytest_sessionstart"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help=f"update docs/{PAGE.name} from the results")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Update the page, including the faults that a study did not survive."""
    if session.config.getoption("--write-page"):
        faults = (*one_node.FAULTS, *postgres_operator.FAULTS, *nodes.FAULTS)
        write([*RESULTS, *_marked(session)], [fault.test for fault in faults])


def _marked(session: pytest.Session) -> Iterator[Result]:
    """Yield the results of the tests in other folders that are marked as faults."""
    reports = session.config.pluginmanager.get_plugin("terminalreporter").stats
    failed = {report.nodeid for outcome in ("failed", "error") for report in reports.get(outcome, ())}
    passed = {report.nodeid for report in reports.get("passed", ())}
    for item in session.items:
        if (mark := item.get_closest_marker("fault")) and item.nodeid in failed | passed:
            violations = ("failed",) if item.nodeid in failed else ()
            yield Result(*mark.args, f"{item.path.stem}: {item.name}", violations, None)


@pytest.fixture(scope="module")
def cloudnativepg(cluster: Kubectl) -> Iterator[None]:
    """Let CloudNativePG run the release's database, which is the bundled one again afterwards."""
    with postgres_operator.in_use(cluster):
        yield


@pytest.fixture(scope="session")
def three_nodes() -> Iterator[Kubectl]:
    """kubectl for a cluster with three nodes, which is removed afterwards."""
    system.up(THREE_NODES, *nodes.SETTINGS, trainer=False)
    yield Kubectl(str(programs.kubectl()), str(THREE_NODES.kubeconfig), "default")
    THREE_NODES.remove()


@pytest.fixture
def on_three_nodes(three_nodes: Kubectl, image: str) -> Iterator[Kubectl]:
    """kubectl in a new namespace of the cluster with three nodes, which all run pods again afterwards."""
    namespace = f"nodes-{uuid.uuid4().hex[:8]}"
    three_nodes.run("create", "namespace", namespace)
    yield three_nodes.within(namespace)
    for node in THREE_NODES.nodes:
        succeeds("docker", "unpause", node)
    system.up(THREE_NODES, *nodes.SETTINGS, trainer=False)
    three_nodes.run("uncordon", *THREE_NODES.nodes)
    within = three_nodes.within(namespace)
    for node in THREE_NODES.nodes:
        spec = {
            "nodeName": node,
            "containers": [{"name": "main", "image": image, "command": ["sleep", "600"]}],
        }
        within.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node}, "spec": spec})
    pods = [f"pod/{node}" for node in THREE_NODES.nodes]
    within.run("wait", *pods, "--for=condition=Ready", "--timeout=600s")
    three_nodes.run("delete", "namespace", namespace, "--wait=false")
