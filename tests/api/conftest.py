"""A real API server with the CRD, once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from dev.cluster import control_plane
from dev.cluster.programs import found_or_built
from tests.api.api import Api

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """The kubeconfig of a control plane of the tests' own, on the loopback address."""
    with control_plane.temporary() as plane:
        yield plane.kubeconfig


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[Api]:
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        api = Api(client.CustomObjectsApi(connection), str(found_or_built("kubectl")), kubeconfig)
        api.expect("apply", "-f", str(CRDS))
        api.expect("wait", "--for=condition=Established", "--timeout=30s", "crd/tuningstudies.tuning.dev")
        yield api
