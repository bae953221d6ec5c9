"""A real API server with the CRD, once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from dev.cluster import control_plane, programs
from dev.cluster.run import wait
from tests.api.api import Api

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def plane() -> Iterator[control_plane.ControlPlane]:
    """A control plane of the tests' own, on the loopback address."""
    with control_plane.temporary() as plane:
        yield plane


@pytest.fixture(scope="session")
def kubeconfig(plane: control_plane.ControlPlane) -> Path:
    return plane.kubeconfig


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[Api]:
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        api = Api(client.CustomObjectsApi(connection), str(programs.kubectl()), kubeconfig)
        api.expect("apply", "-f", str(CRDS))
        # Not `kubectl wait`: it ends with an error where a CRD has no conditions yet.
        wait("the CRD", lambda: api.kubectl("get", "tuningstudies").returncode == 0, 120)
        yield api
