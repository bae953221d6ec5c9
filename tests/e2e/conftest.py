"""The cluster of the end-to-end tests, with the images of this checkout and the chart installed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from dev.cluster import images, kind, programs
from dev.demo import system
from tests.e2e.kit import Kubectl


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the cluster once, before the workers start."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        system.up()


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl for the test cluster."""
    return Kubectl(str(programs.kubectl()), str(kind.KUBECONFIG), "default")


@pytest.fixture(scope="session")
def image() -> str:
    """An image with only Python."""
    return images.PYTHON


@pytest.fixture
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a new namespace, which is deleted after the test."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    cluster.run("create", "namespace", namespace)
    yield cluster.within(namespace)
    cluster.run("delete", "namespace", namespace, "--wait=false")
