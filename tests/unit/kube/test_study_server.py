"""The client of the study server, against a real HTTP server on loopback."""
# ruff: noqa: ASYNC240  a file of a few bytes

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tuning_operator.kube.ports.study_server import DefinitionRefused, HttpStudyServer, StudyServerUnavailable
from tuning_operator.protocol import (
    AskRequest,
    Failure,
    Problem,
    RefitRequest,
    StudyDefinition,
    StudyKey,
    TellRequest,
)
from tuning_operator.resource.study import Objective

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = StudyKey("ml", "mnist")
DEFINITION = StudyDefinition(objectives=[Objective(metric="loss", direction="minimize")])


class Stub:
    """Answers every request as it was told; keeps what it was asked."""

    def __init__(self) -> None:
        self.status, self.answer = 200, "{}"
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str] = []

    def say(self, status: int, answer: Any) -> None:
        self.status, self.answer = status, answer if isinstance(answer, str) else json.dumps(answer)

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.asked.append((request.method, request.path_qs, json.loads(text) if text else None))
        self.tokens.append(request.headers["Authorization"])
        return web.Response(status=self.status, text=self.answer, content_type="application/json")


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stub.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.port = runner.addresses[0][1]  # type: ignore[attr-defined]
    yield stub
    await runner.cleanup()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first\n")
    return file


@pytest.fixture
async def server(stub: Stub, token: Path) -> AsyncIterator[HttpStudyServer]:
    server = HttpStudyServer(f"http://127.0.0.1:{stub.port}/", token)  # type: ignore[attr-defined]
    yield server
    await server.close()


SUMMARY = {
    "counts": {"running": 1, "complete": 2},
    "running": [{"number": 2, "state": "RUNNING"}],
    "best": {"number": 0, "state": "COMPLETE", "values": ["Infinity"]},
}


async def test_summary(stub: Stub, server: HttpStudyServer) -> None:
    stub.say(200, SUMMARY)
    summary = await server.summary(KEY)
    assert summary is not None
    assert summary.counts.complete == 2
    assert summary.best is not None
    assert summary.best.values == [float("inf")]
    assert stub.asked == [("GET", "/v1/studies/ml/mnist", None)]
    stub.say(404, {"detail": {"field": "name", "message": "no such study"}})
    assert await server.summary(KEY) is None


async def test_the_token_is_read_anew(stub: Stub, server: HttpStudyServer, token: Path) -> None:
    stub.say(200, SUMMARY)
    await server.summary(KEY)
    token.write_text("second\n")
    await server.summary(KEY)
    assert stub.tokens == ["Bearer first", "Bearer second"]
    token.unlink()
    with pytest.raises(StudyServerUnavailable, match="token"):
        await server.summary(KEY)


async def test_declare(stub: Stub, server: HttpStudyServer) -> None:
    stub.say(200, SUMMARY)
    await server.declare(KEY, DEFINITION)
    method, path, sent = stub.asked[0]
    assert (method, path) == ("PUT", "/v1/studies/ml/mnist")
    assert StudyDefinition.model_validate(sent) == DEFINITION
    assert "searchSpace" in sent, "camelCase outside"


@pytest.mark.parametrize("status", [409, 422])
async def test_declare_refused(stub: Stub, server: HttpStudyServer, status: int) -> None:
    problems = [{"field": "sampler.name", "message": "no such sampler"}]
    stub.say(status, {"detail": "sampler.name: no such sampler", "problems": problems})
    with pytest.raises(DefinitionRefused) as refused:
        await server.declare(KEY, DEFINITION)
    assert refused.value.problems == [Problem(field="sampler.name", message="no such sampler")]


async def test_ask_and_tell(stub: Stub, server: HttpStudyServer) -> None:
    stub.say(200, SUMMARY)
    await server.ask(KEY, AskRequest(parallelism=3, max_trials=9))
    stub.say(200, {"number": 2, "state": "FAIL"})
    failure = Failure(category="OutOfMemory", message="too large")
    told = await server.tell(KEY, 2, TellRequest(state="FAIL", failure=failure))
    assert told.state == "FAIL"
    assert stub.asked[0] == ("POST", "/v1/studies/ml/mnist/ask", {"parallelism": 3, "maxTrials": 9})
    assert stub.asked[1][1] == "/v1/studies/ml/mnist/trials/2/result"
    assert stub.asked[1][2]["failure"]["category"] == "OutOfMemory"


@pytest.mark.parametrize("status", [204, 404])
async def test_forget(stub: Stub, server: HttpStudyServer, status: int) -> None:
    stub.say(status, "")
    await server.forget(KEY)
    assert stub.asked == [("DELETE", "/v1/studies/ml/mnist", None)]


async def test_changes(stub: Stub, server: HttpStudyServer) -> None:
    stub.say(200, {"cursor": "7", "studies": [["ml", "mnist"]]})
    changes = await server.changes("5", 25)
    assert (changes.cursor, changes.studies) == ("7", [("ml", "mnist")])
    assert stub.asked[0][1] == "/v1/changes?timeout=25&after=5"


async def test_refit(stub: Stub, server: HttpStudyServer) -> None:
    stub.say(200, SUMMARY)
    await server.begin_refit(KEY, RefitRequest(trial=7, digest="abc"))
    assert stub.asked.pop() == ("PUT", "/v1/studies/ml/mnist/refit", {"trial": 7, "digest": "abc"})
    stub.say(200, {"number": 7, "state": "FAIL"})
    await server.tell_refit(KEY, TellRequest(state="FAIL", failure=Failure(category="Lost", message="gone")))
    method, path, sent = stub.asked.pop()
    assert (method, path) == ("POST", "/v1/studies/ml/mnist/refit/result")
    assert (sent["state"], sent["failure"]["category"]) == ("FAIL", "Lost")
    stub.say(200, SUMMARY | {"refit": {"trial": 7, "digest": "abc", "state": "RUNNING"}})
    summary = await server.summary(KEY)
    assert summary is not None
    assert summary.refit is not None
    assert summary.refit.digest == "abc"


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, "oops"), (401, {"detail": "bad token"}), (200, "<html>"), (422, {"detail": "?"})],
)
async def test_wrong_answers_are_unavailable(
    stub: Stub, server: HttpStudyServer, status: int, answer: Any
) -> None:
    stub.say(status, answer)
    for call in (
        server.summary(KEY),
        server.declare(KEY, DEFINITION),
        server.ask(KEY, AskRequest(parallelism=1, max_trials=1)),
        server.begin_refit(KEY, RefitRequest(trial=1, digest="d")),
        server.tell_refit(KEY, TellRequest(state="FAIL")),
        server.changes(None, 1),
    ):
        with pytest.raises(StudyServerUnavailable, match=str(status)):
            await call


async def test_no_server_is_unavailable(token: Path) -> None:
    server = HttpStudyServer("http://127.0.0.1:1", token)
    for call in (server.summary(KEY), server.forget(KEY)):
        with pytest.raises(StudyServerUnavailable, match="ConnectError"):
            await call
    await server.close()
