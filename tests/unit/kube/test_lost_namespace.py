"""One of the namespaces that an operator is limited to is deleted, or its Role removed: the others go on."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import kopf
import pytest
from aiohttp import web
from tuning_operator.kube.loop import informer
from tuning_operator.kube.loop.changes import follow_namespaces
from tuning_operator.kube.loop.handlers import register
from tuning_operator.kube.loop.informer import kopf_settings
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names

from tests.unit.kube.builders import NOW, study
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.http_stub import HttpStub, running
from tests.unit.kube.world import RUNTIME

LIMIT = 120
"""Seconds until a test gives up."""
FORBIDDEN = KubeError(403, "Forbidden", "the operator has no rights in this namespace")


def resource(name: str, kind: str, *, namespaced: bool) -> dict[str, Any]:
    """A kind of objects as the API server describes it."""
    verbs = ["get", "list", "watch", "patch"]
    return {
        "name": name, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced, "verbs": verbs
    }  # fmt: skip


class ApiServer:
    """The studies of the namespaces a and b, as kopf reads them."""

    def __init__(self) -> None:
        self.allowed = True
        """Whether b may be read."""
        self.refusals = 0
        self.changes = {"a": asyncio.Queue[str | None](), "b": asyncio.Queue[str | None]()}
        """Names of studies that change; None ends the watch."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == f"/apis/{names.API_VERSION}":
            study = resource(names.PLURAL, names.KIND, namespaced=True)
            return web.json_response({"groupVersion": names.API_VERSION, "resources": [study]})
        if request.path == "/apis":
            version = {"groupVersion": names.API_VERSION, "version": names.VERSION}
            group = {"name": names.GROUP, "versions": [version], "preferredVersion": version}
            return web.json_response({"groups": [group]})
        if "/namespaces/" not in request.path:
            namespaces = resource("namespaces", "Namespace", namespaced=False)
            return web.json_response({"versions": ["v1"], "resources": [namespaces]})
        namespace = request.path.split("/namespaces/")[1].split("/")[0]
        if namespace == "b" and not self.allowed:
            self.refusals += 1
            return web.json_response({"kind": "Status", "code": 403, "message": "no rights"}, status=403)
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        response = web.StreamResponse()
        await response.prepare(request)
        while name := await self.changes[namespace].get():
            metadata = {"name": name, "namespace": namespace, "uid": name, "resourceVersion": "2"}
            changed = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata}
            await response.write(json.dumps({"type": "MODIFIED", "object": changed}).encode() + b"\n")
        return response


def test_new_studies_are_noticed_soon_after_an_outage() -> None:
    delays = list(itertools.islice(informer.Backoffs(), 1000))
    assert len(delays) == 1000, "kopf would end after the last one"
    assert max(delays) <= 15


async def test_studies_of_other_namespaces_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "FIRST_BACKOFFS", (0.01,) * len(informer.FIRST_BACKOFFS))
    monkeypatch.setattr(informer, "LAST_BACKOFF", 0.01)
    monkeypatch.setattr(informer, "WATCH_SECONDS", 0.01)
    api, stub = ApiServer(), HttpStub()
    stub.fault = api.handle
    queue: WorkQueue[StudyKey] = WorkQueue()
    registry = kopf.OperatorRegistry()
    register(registry, queue)

    async def seen(namespace: str, name: str) -> None:
        api.changes[namespace].put_nowait(name)
        key = await queue.get()
        queue.done(key)
        assert key == StudyKey(namespace, name)

    async with running(stub), asyncio.timeout(LIMIT):
        monkeypatch.setattr(kopf, "login_via_client", lambda **_: kopf.ConnectionInfo(server=stub.url))
        operator = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=kopf_settings(),
                standalone=True,
                identity="test",  # type: ignore[arg-type]
                namespaces=["a", "b"],
            )
        )
        try:
            await seen("a", "first")
            await seen("b", "first")
            api.allowed = False
            api.changes["b"].put_nowait(None)
            while api.refusals < 2 * len(informer.FIRST_BACKOFFS):
                assert not operator.done()
                await asyncio.sleep(0.01)
            await seen("a", "second")
            api.allowed = True
            await seen("b", "second")
            assert not operator.done()
        finally:
            operator.cancel()
            await asyncio.wait([operator])


class Namespaces:
    """A study server that has studies in two namespaces, and notes which it is to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def namespaces(self) -> list[tuple[str, str]]:
        return [("lost", "1"), ("deleted", "2")]

    async def forget_namespace(self, name: str, _uid: str) -> None:
        self.forgotten.append(name)


class OneLost(FakeKube):
    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if name == "lost":
            raise FORBIDDEN
        return await super().get(kind, namespace, name)

    async def select(
        self, kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[dict[str, Any]]:
        if namespace == "lost":
            raise FORBIDDEN
        return await super().select(kind, namespace, labels=labels, fields=fields)


@pytest.mark.looptime
async def test_other_namespaces_that_were_deleted_are_reported() -> None:
    server, kube = Namespaces(), OneLost()
    kube.namespace = {}
    task = asyncio.create_task(follow_namespaces(kube, server, ("lost", "deleted")))  # type: ignore[arg-type]
    await asyncio.sleep(1)
    task.cancel()
    assert server.forgotten == ["deleted"]


def runs_in_both() -> JobRuns:
    return JobRuns(OneLost(), lambda _: RUNTIME, lambda: NOW, ("lost", "ml"))


async def test_elastic_studies_of_other_namespaces_go_on() -> None:
    elastic = study(minParallelism=1)
    runs = runs_in_both()
    assert await runs.others_waiting(elastic, has_minimum=False) is None
    lost = elastic.model_copy(update={"metadata": {**elastic.metadata, "namespace": "lost"}})
    with pytest.raises(KubeError, match="no rights"):
        await runs_in_both().others_waiting(lost, has_minimum=False)
