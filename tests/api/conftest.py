"""A real API server with the CRD, once for all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from tests.api.api import Api

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    return Path(os.environ["TUNING_API_KUBECONFIG"])


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[Api]:
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        api = Api(client.CustomObjectsApi(connection), "kubectl", kubeconfig)
        applied = api.kubectl("apply", "-f", str(ROOT / "crds"))
        assert applied.returncode == 0, applied.stderr
        crd = "crd/tuningstudies.tuning.dev"
        waited = api.kubectl("wait", "--for=condition=Established", "--timeout=30s", crd)
        assert waited.returncode == 0, waited.stderr
        yield api
