"""The cluster of the end-to-end tests, with the images of this checkout and the chart installed."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster import images, kind, programs
from dev.cluster.cache import lock
from dev.demo import system
from tests.e2e.kit import Kubectl, Plugin


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the cluster once, before the workers start."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        system.up()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that the workers finish at the same time.

    The disruptive test comes before them, since other tests wait for its end; the restart-proof ones don't.
    """
    order = ("disruptive", "restart_proof", "long")
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in order])


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl for the test cluster."""
    return Kubectl(str(programs.kubectl()), str(kind.DEVELOPMENT.kubeconfig), "default")


@pytest.fixture(scope="session")
def image() -> str:
    """An image with only Python."""
    return images.PYTHON


@pytest.fixture
def kubectl(cluster: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a new namespace, which is deleted after the test."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    with _system(request.node):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        yield cluster.within(namespace)
        cluster.run("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def plugin(kubectl: Kubectl, tmp_path: Path) -> Plugin:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(kubectl.kubectl)
    (programs / "kubectl-tuning").symlink_to(Path(sys.executable).with_name("kubectl-tuning"))
    return Plugin(programs, kubectl.kubeconfig, kubectl.namespace)


def _system(test: pytest.Item) -> contextlib.AbstractContextManager[None]:
    """Use the operator and the study server, which no other test restarts in the meantime."""
    if test.get_closest_marker("restart_proof"):
        return contextlib.nullcontext()
    return lock("e2e-system", shared=test.get_closest_marker("disruptive") is None)
