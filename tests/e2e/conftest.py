"""The cluster of the end-to-end tests: made if need be, with the images loaded and the chart installed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from dev.cluster import images, kind, programs
from dev.demo import system
from tests.e2e.kit import Kubectl


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have the cluster once, before the tests are handed to workers."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        system.up()


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl on a cluster that runs this checkout's operator."""
    return Kubectl(str(programs.kubectl()), str(kind.KUBECONFIG), "default")


@pytest.fixture(scope="session")
def image() -> str:
    """An image with Python and nothing of ours."""
    return images.PYTHON


@pytest.fixture
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, removed afterwards."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    cluster.run("create", "namespace", namespace)
    yield cluster.within(namespace)
    cluster.run("delete", "namespace", namespace, "--wait=false")
