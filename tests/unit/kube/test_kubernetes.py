"""The client of the Kubernetes API against a server that fails (tests/api has it on a real API server)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import certifi
import pytest
from aiohttp import web
from kubernetes.aio import client, config
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.kubernetes import KubernetesApi, connect

from tests.unit.kube.contract import event, job
from tests.unit.kube.http_stub import FAULTS, HttpStub, disconnects, hangs
from tests.unit.kube.http_stub import stub as stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ABOUT = {"kind": "Job", "name": "mnist-0", "namespace": "ml"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda: 0)


@pytest.fixture
async def kube(stub: HttpStub, metrics: Metrics) -> AsyncIterator[KubernetesApi]:
    kube = client_of(stub, metrics)
    yield kube
    await kube.close()


def client_of(stub: HttpStub, metrics: Metrics) -> KubernetesApi:
    configuration = client.Configuration()
    configuration.host = stub.url
    return KubernetesApi(client.ApiClient(configuration), metrics.requests)


@pytest.mark.parametrize(
    ("variables", "proxied"),
    [({}, False), ({"http_proxy": ""}, True), ({"http_proxy": "", "no_proxy": "127.0.0.1"}, False)],
    ids=["no proxy", "a proxy", "a proxy for other hosts"],
)
async def test_requests_go_through_the_proxy_that_the_environment_names(
    stub: HttpStub,
    metrics: Metrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    proxied: bool,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value or stub.url)
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }))  # fmt: skip
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    stub.reply(200, {})
    kube = await connect(metrics.requests)
    served = await kube.serves_studies() if proxied else None
    if not proxied:
        with pytest.raises(KubeError, match="does not reply"):
            await kube.serves_studies()
    await kube.close()
    assert (served, len(stub.asked)) == ((True, 1) if proxied else (None, 0))


async def test_requests_in_the_cluster_go_through_no_proxy(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not reach the API server, and the operator has no other hosts to connect to."""
    connected: list[object] = []

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        writer.close()

    token = tmp_path / "token"
    token.write_text("t")
    monkeypatch.setattr(config.incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(config.incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    for name in ("HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        host, port = proxy.sockets[0].getsockname()
        monkeypatch.setenv("https_proxy", f"http://{host}:{port}")
        kube = await connect(metrics.requests)
        with pytest.raises(KubeError, match="does not reply"):
            await kube.serves_studies()
        await kube.close()
    assert not connected


async def test_a_clock_that_jumps_is_corrected_by_the_api_servers(stub: HttpStub, metrics: Metrics) -> None:
    configuration = client.Configuration()
    configuration.host = stub.url
    jumps = [timedelta()]
    kube = KubernetesApi(
        client.ApiClient(configuration), metrics.requests, lambda: datetime.now(UTC) + jumps[-1]
    )
    stub.reply(200, {"items": []})
    for jump in (timedelta(), timedelta(hours=2), timedelta(), timedelta(days=-1)):
        jumps.append(jump)
        await kube.select("Job", "ml")
        assert abs(kube.now() - datetime.now(UTC)) < timedelta(seconds=5)
    await kube.close()


def new_job() -> dict[str, Any]:
    body = job("mnist-0", 0)
    body["metadata"]["namespace"] = "ml"
    return body


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_client_error_is_a_kube_error(
    stub: HttpStub, kube: KubernetesApi, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is hangs:
        for limit in ("REQUEST_SECONDS", "SILENCE_SECONDS"):
            monkeypatch.setattr(f"tuning_operator.kube.ports.kubernetes.{limit}", 0.1)
    stub.fault = fault
    for call in (
        kube.get("Job", "ml", "mnist-0"),
        kube.select("Job", "ml"),
        kube.create(new_job()),
        kube.delete_job("ml", "mnist-0"),
        kube.record_event(event("e", "ml", ABOUT)),
        kube.largest_nodes(),
        kube.serves_studies(),
        anext(kube.watch("Job", "ml", "", "", "7")),
    ):
        with pytest.raises(KubeError) as failed:
            await call
        assert failed.value.status == 0
        assert failed.value.message.startswith("the API server")


async def test_a_reply_that_is_no_list_is_not_an_empty_one(stub: HttpStub, kube: KubernetesApi) -> None:
    stub.reply(200, {"kind": "JobList"})
    with pytest.raises(KubeError, match="no items"):
        await kube.select("Job", "ml")


async def test_long_lists_come_in_pages(stub: HttpStub, kube: KubernetesApi) -> None:
    """Of 500 objects, as kubectl asks for them: the API server holds no page in memory for long."""

    async def pages(request: web.Request) -> web.StreamResponse:
        assert request.query["limit"] == "500"
        assert request.query["labelSelector"] == "a=b"
        rest = request.query.get("continue")
        metadata = {"resourceVersion": "7", **({} if rest else {"continue": "the rest"})}
        return web.json_response({"metadata": metadata, "items": [{"kind": "Job", "page": rest}]})

    stub.fault = pages
    found, version = await kube.snapshot("Job", "ml", "a=b", "")
    assert ([item["page"] for item in found], version) == ([None, "the rest"], "7")


async def test_a_watch_goes_on_after_a_version(stub: HttpStub, kube: KubernetesApi) -> None:
    changed = {"metadata": {"name": "mnist-0", "resourceVersion": "8"}, "status": {"ready": 1}}
    expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    events = [("MODIFIED", changed), ("BOOKMARK", {"metadata": {"resourceVersion": "9"}})]

    async def watch(request: web.Request) -> web.StreamResponse:
        assert request.path == "/apis/batch/v1/jobs"
        assert (request.query["labelSelector"], request.query["fieldSelector"]) == ("a", "b=c")
        assert request.query["allowWatchBookmarks"] == "true"
        sent = [("ERROR", expired)] if request.query["resourceVersion"] == "3" else events
        return web.Response(text="".join(f"{json.dumps({'type': t, 'object': o})}\n" for t, o in sent))

    stub.fault = watch
    assert [found async for found in kube.watch("Job", "", "a", "b=c", "7")] == events
    with pytest.raises(KubeError) as failed:
        await anext(kube.watch("Job", "", "a", "b=c", "3"))
    assert failed.value.status == 410
    events[:] = [("MODIFIED", {"metadata": {"name": "mnist-0"}})]
    with pytest.raises(KubeError, match="not valid"):
        await anext(kube.watch("Job", "", "a", "b=c", "7"))
    stub.fault = None
    stub.reply(410, expired)
    with pytest.raises(KubeError) as failed:
        await anext(kube.watch("Job", "", "a", "b=c", "3"))
    assert (failed.value.status, failed.value.reason) == (410, "Expired")


async def test_the_largest_amount_of_each_resource(stub: HttpStub, kube: KubernetesApi) -> None:
    nodes = [
        {"cpu": "4", "nvidia.com/gpu": "2", "example.com/fpga": "1"},
        {"cpu": "3900m", "nvidia.com/gpu": "8", "memory": "1Gi"},
        {"nvidia.com/gpu": "4", "memory": "999Mi"},
    ]
    items = [{"status": {"allocatable": node}} for node in nodes]
    stub.reply(200, {"items": [*items, {"metadata": {"name": "new"}}]})
    largest = {"cpu": "4", "nvidia.com/gpu": "8", "example.com/fpga": "1", "memory": "1Gi"}
    assert await kube.largest_nodes() == largest
    stub.reply(403, {"reason": "Forbidden", "message": "nodes is forbidden"})
    assert await kube.largest_nodes() is None


@pytest.mark.parametrize(
    ("status", "header", "waits"),
    [
        (429, "7", [7, 7]),
        (503, "60", [60]),
        (503, "61", []),
        (409, "7", []),
        (429, "0", []),
        (429, "soon", []),
    ],
)
async def test_a_request_is_repeated_when_the_api_server_asks_for_it(
    stub: HttpStub,
    kube: KubernetesApi,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    header: str,
    waits: list[float],
) -> None:
    waited: list[float] = []

    async def rejects(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "later"}, status=status, headers={"Retry-After": header})

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if waited == waits:
            stub.fault = None

    monkeypatch.setattr("tuning_operator.kube.ports.kubernetes.asyncio", SimpleNamespace(sleep=sleep))
    stub.fault = rejects
    if waits:
        await kube.create(new_job())
    else:
        with pytest.raises(KubeError, match="later"):
            await kube.create(new_job())
    assert (waited, len(stub.asked)) == (waits, len(waits) + 1)


@pytest.mark.parametrize("answer", ["<html>bad gateway</html>", "[1]", ""])
async def test_an_error_of_a_proxy(stub: HttpStub, kube: KubernetesApi, answer: str) -> None:
    stub.reply(502, answer)
    with pytest.raises(KubeError) as failed:
        await kube.get("Job", "ml", "mnist-0")
    assert (failed.value.status, failed.value.message) == (502, answer)


async def test_requests_are_counted(stub: HttpStub, kube: KubernetesApi, metrics: Metrics) -> None:
    for _ in range(2):
        await kube.create(new_job())
    stub.reply(200, {"items": []})
    await kube.select("Job", "ml")
    await kube.largest_nodes()
    await kube.delete_job("ml", "mnist-0")
    stub.reply(403, {"reason": "Forbidden", "message": "pods is forbidden"})
    with pytest.raises(KubeError):
        await kube.select("Pod", "ml")
    stub.fault = disconnects
    with pytest.raises(KubeError):
        await kube.get("Job", "ml", "mnist-0")
    rendered = metrics.render().decode().splitlines()
    name = "tuning_operator_kubernetes_requests_total"
    assert sorted(line for line in rendered if line.startswith(f"{name}{{")) == [
        f'{name}{{code="0",kind="Job",verb="get"}} 1.0',
        f'{name}{{code="200",kind="Job",verb="create"}} 2.0',
        f'{name}{{code="200",kind="Job",verb="delete"}} 1.0',
        f'{name}{{code="200",kind="Job",verb="list"}} 1.0',
        f'{name}{{code="200",kind="Node",verb="list"}} 1.0',
        f'{name}{{code="403",kind="Pod",verb="list"}} 1.0',
    ]
