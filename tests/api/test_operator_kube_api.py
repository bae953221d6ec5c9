"""The operator's Kubernetes client keeps its contract on a real API server."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.kubernetes import KubernetesApi
from tuning_operator.resource import names

from tests.unit.kube.contract import KubeApiContract


@pytest.fixture
async def connection(kubeconfig: Path) -> AsyncIterator[client.ApiClient]:
    async with await config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        yield connection


@pytest.mark.usefixtures("api")
class TestRealKubeApi(KubeApiContract):
    @pytest.fixture
    async def kube(self, connection: client.ApiClient) -> KubernetesApi:
        return KubernetesApi(connection, Metrics(lambda: 0).requests)

    @pytest.fixture
    async def namespace(self, connection: client.ApiClient) -> AsyncIterator[str]:
        name = f"contract-{uuid.uuid4().hex[:8]}"
        core = client.CoreV1Api(connection)
        await core.create_namespace({"metadata": {"name": name}})
        yield name
        await core.delete_namespace(name)

    async def set_job_status(self, kube: Any, namespace: str, name: str, **status: Any) -> None:
        await client.BatchV1Api(kube._api).patch_namespaced_job_status(name, namespace, {"status": status})

    async def test_a_missing_resource_is_not_a_missing_study(
        self, kube: KubernetesApi, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A missing CRD is no deleted study: the study server would be asked to forget it."""
        path = "/apis/tuning.dev/v1alpha1/namespaces/{namespace}/nosuchthings"
        monkeypatch.setitem(
            __import__("tuning_operator.kube.ports.kubernetes", fromlist=["RESOURCES"]).RESOURCES,
            names.KIND,
            path,
        )
        with pytest.raises(KubeError):
            await kube.get(names.KIND, namespace, "mnist")

    async def test_lists_of_many_pages(
        self, kube: KubernetesApi, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tuning_operator.kube.ports.kubernetes.PAGE", 2)
        for number in range(5):
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"c{number}", "namespace": namespace, "labels": {"mine": "yes"}},
            }
            assert await kube.create(body)
        assert len(await kube.select("ConfigMap", namespace, labels="mine=yes")) == 5

    async def test_largest_nodes(self, kube: KubernetesApi, connection: client.ApiClient) -> None:
        core = client.CoreV1Api(connection)
        for name, amount in (("small", "1"), ("large", "4")):
            await core.create_node({"metadata": {"name": name}})
            allocatable = {"nvidia.com/gpu": amount, "cpu": "2"}
            await core.patch_node_status(
                name, {"status": {"allocatable": allocatable, "capacity": allocatable}}
            )
        try:
            assert await kube.largest_nodes() == {"nvidia.com/gpu": "4", "cpu": "2"}
        finally:
            for name in ("small", "large"):
                await core.delete_node(name)


async def test_an_unreachable_api_server() -> None:
    configuration = client.Configuration()
    configuration.host = "http://127.0.0.1:1"
    kube = KubernetesApi(client.ApiClient(configuration), Metrics(lambda: 0).requests)
    with pytest.raises(KubeError) as failed:
        await kube.get("Job", "ml", "mnist-0")
    assert failed.value.status == 0
    await kube.close()
