"""The client of the study server, against a real HTTP server on loopback."""
# ruff: noqa: ASYNC240  a file of a few bytes

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from tuning_operator.kube.plan.work import Refit, Trial
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

from tests.unit.kube.http_stub import FAULTS, HttpStub, hangs, running
from tests.unit.kube.http_stub import stub as stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

KEY = StudyKey("ml", "mnist")
DEFINITION = StudyDefinition(objectives=[Objective(metric="loss", direction="minimize")])


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first\n")
    return file


@pytest.fixture
async def server(stub: HttpStub, token: Path) -> AsyncIterator[HttpStudyServer]:
    server = HttpStudyServer(f"{stub.url}/", token)
    yield server
    await server.close()


SUMMARY = {
    "counts": {"running": 1, "complete": 2},
    "running": [{"number": 2, "state": "RUNNING"}],
    "best": {"number": 0, "state": "COMPLETE", "values": ["Infinity"]},
}


async def test_summary(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, SUMMARY)
    summary = await server.summary(KEY)
    assert summary is not None
    assert summary.counts.complete == 2
    assert summary.best is not None
    assert summary.best.values == [float("inf")]
    assert stub.asked == [("GET", "/v1/studies/ml/mnist", None)]
    stub.reply(404, {"detail": {"field": "name", "message": "no such study"}})
    assert await server.summary(KEY) is None


async def test_a_summary_is_read_again_only_if_it_has_changed(
    stub: HttpStub, server: HttpStudyServer
) -> None:
    stub.reply(200, SUMMARY)
    first, second = await server.summary(KEY), await server.summary(KEY)
    assert second is first
    other = await server.summary(StudyKey("ml", "other"))
    assert other is not first
    stub.reply(503, SUMMARY)
    with pytest.raises(StudyServerUnavailable):
        await server.summary(KEY)
    stub.reply(200, SUMMARY | {"counts": {"running": 1, "complete": 3}})
    third = await server.summary(KEY)
    assert third
    assert third.counts.complete == 3


async def test_a_reply_of_a_newer_server_is_read(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, {"counts": {"running": 2, "paused": 1}, "colour": "red"})
    summary = await server.summary(KEY)
    assert summary is not None
    assert summary.counts.running == 2


async def test_the_token_is_read_for_each_request(
    stub: HttpStub, server: HttpStudyServer, token: Path
) -> None:
    stub.reply(200, SUMMARY)
    await server.summary(KEY)
    token.write_text("second\n")
    await server.summary(KEY)
    assert stub.tokens == ["Bearer first", "Bearer second"]
    token.unlink()
    with pytest.raises(StudyServerUnavailable, match="token"):
        await server.summary(KEY)


async def test_declare(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, SUMMARY)
    await server.declare(KEY, DEFINITION)
    method, path, sent = stub.asked[0]
    assert (method, path) == ("PUT", "/v1/studies/ml/mnist")
    assert StudyDefinition.model_validate(sent) == DEFINITION
    assert "searchSpace" in sent, "camelCase outside"


@pytest.mark.parametrize("status", [409, 422])
async def test_declare_refused(stub: HttpStub, server: HttpStudyServer, status: int) -> None:
    problems = [{"field": "sampler.name", "message": "no such sampler"}]
    stub.reply(status, {"detail": "sampler.name: no such sampler", "problems": problems})
    with pytest.raises(DefinitionRefused) as refused:
        await server.declare(KEY, DEFINITION)
    assert refused.value.problems == [Problem(field="sampler.name", message="no such sampler")]


async def test_ask_and_tell(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, SUMMARY)
    await server.ask(KEY, AskRequest(parallelism=3, max_trials=9))
    stub.reply(200, {"number": 2, "state": "FAIL"})
    failure = Failure(category="OutOfMemory", message="too large")
    record = await server.tell(KEY, Trial(2), TellRequest(state="FAIL", failure=failure))
    assert record.state == "FAIL"
    assert stub.asked[0] == ("POST", "/v1/studies/ml/mnist/ask", {"parallelism": 3, "maxTrials": 9})
    assert stub.asked[1][1] == "/v1/studies/ml/mnist/trials/2/result"
    assert stub.asked[1][2]["failure"]["category"] == "OutOfMemory"


async def test_workers_that_leave(stub: HttpStub, server: HttpStudyServer) -> None:
    """Older study servers don't know them, and reject what they don't know."""
    stub.reply(200, SUMMARY)
    assert (await server.ask(KEY, AskRequest(parallelism=3, max_trials=9))).leaving is None
    stub.reply(200, SUMMARY | {"leaving": [2]})
    assert (await server.ask(KEY, AskRequest(parallelism=3, max_trials=9, leaving=[2]))).leaving == [2]
    assert [body.get("leaving") for _, _, body in stub.asked] == [None, [2]]


@pytest.mark.parametrize("status", [204, 404])
async def test_forget(stub: HttpStub, server: HttpStudyServer, status: int) -> None:
    stub.reply(status, "")
    await server.forget(KEY)
    assert stub.asked == [("DELETE", "/v1/studies/ml/mnist", None)]


async def test_the_summary_of_a_study_that_is_gone_is_not_kept(
    stub: HttpStub, server: HttpStudyServer
) -> None:
    stub.reply(200, SUMMARY)
    first = await server.summary(KEY)
    stub.reply(204, "")
    await server.forget(KEY)
    stub.reply(200, SUMMARY)
    assert await server.summary(KEY) is not first


async def test_changes(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, {"cursor": "7", "studies": [["ml", "mnist"]]})
    changes = await server.changes("5", 25)
    assert (changes.cursor, changes.studies) == ("7", [("ml", "mnist")])
    assert stub.asked[0][1] == "/v1/changes?timeout=25&after=5"


async def test_refit(stub: HttpStub, server: HttpStudyServer) -> None:
    stub.reply(200, SUMMARY)
    await server.begin_refit(KEY, RefitRequest(trial=7, digest="abc"))
    assert stub.asked.pop() == ("PUT", "/v1/studies/ml/mnist/refit", {"trial": 7, "digest": "abc"})
    stub.reply(200, {"number": 7, "state": "FAIL"})
    failure = Failure(category="Lost", message="gone")
    await server.tell(KEY, Refit(7, "abc"), TellRequest(state="FAIL", failure=failure))
    method, path, sent = stub.asked.pop()
    assert (method, path) == ("POST", "/v1/studies/ml/mnist/refit/result")
    assert (sent["state"], sent["failure"]["category"]) == ("FAIL", "Lost")
    stub.reply(200, SUMMARY | {"refit": {"trial": 7, "digest": "abc", "state": "RUNNING"}})
    summary = await server.summary(KEY)
    assert summary is not None
    assert summary.refit is not None
    assert summary.refit.digest == "abc"


CALLS: list[Callable[[HttpStudyServer], Awaitable[Any]]] = [
    lambda server: server.summary(KEY),
    lambda server: server.declare(KEY, DEFINITION),
    lambda server: server.ask(KEY, AskRequest(parallelism=1, max_trials=1)),
    lambda server: server.tell(KEY, Trial(1), TellRequest(state="FAIL")),
    lambda server: server.begin_refit(KEY, RefitRequest(trial=1, digest="d")),
    lambda server: server.tell(KEY, Refit(1, "d"), TellRequest(state="FAIL")),
    lambda server: server.changes(None, 1),
]
"""Every call whose reply has a body."""


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, "oops"), (401, {"detail": "bad token"}), (200, "<html>"), (302, "{}"), (422, {"detail": "?"})],
)
async def test_wrong_replies_are_unavailable(
    stub: HttpStub, server: HttpStudyServer, status: int, answer: Any
) -> None:
    stub.reply(status, answer)
    for call in CALLS:
        with pytest.raises(StudyServerUnavailable, match=str(status)):
            await call(server)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_client_error_is_unavailable(
    stub: HttpStub, server: HttpStudyServer, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is hangs:
        monkeypatch.setattr("tuning_operator.kube.ports.study_server.REQUEST_SECONDS", 0.1)
    stub.fault = fault
    for call in CALLS[:-1]:
        with pytest.raises(
            StudyServerUnavailable, match=re.escape(f"{server.url}/v1/studies/ml/mnist")
        ) as raised:
            await call(server)
        assert fault is not hangs or "no reply within 0.1 s" in str(raised.value)
    stub.fault = None
    monkeypatch.undo()
    stub.reply(200, SUMMARY)
    assert await server.summary(KEY), "the next request works"


async def test_no_server_is_unavailable(token: Path) -> None:
    server = HttpStudyServer("http://127.0.0.1:1", token)
    for call in (server.summary(KEY), server.forget(KEY)):
        with pytest.raises(StudyServerUnavailable, match=r"Cannot connect to host 127\.0\.0\.1:1"):
            await call
    await server.close()


def issue(authority: trustme.CA) -> ssl.SSLContext:
    """Return a server's TLS settings with a new certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_rotated_ca_is_read_again(token: Path, tmp_path: Path) -> None:
    """The server's certificate changes with its CA, a moment before the operator's copy of the CA does."""
    before, after, file = trustme.CA(), trustme.CA(), tmp_path / "ca.crt"
    before.cert_pem.write_to_path(str(file))
    stub = HttpStub()
    stub.reply(200, SUMMARY)
    async with running(stub, tls=issue(before)):
        server = HttpStudyServer(stub.url, token, file)
        assert await server.summary(KEY)
    port = int(stub.url.rpartition(":")[2])
    async with running(stub, port, tls=issue(after)):
        with pytest.raises(StudyServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await server.summary(KEY)
        file.write_text("half a certi")
        with pytest.raises(StudyServerUnavailable, match=r"ca\.crt can't be used"):
            await server.summary(KEY)
        after.cert_pem.write_to_path(str(file))
        assert await server.summary(KEY)
        before.cert_pem.write_to_path(str(file))
        with pytest.raises(StudyServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await server.summary(KEY)
        file.unlink()
        with pytest.raises(StudyServerUnavailable, match=r"ca\.crt can't be used"):
            await server.summary(KEY)
    await server.close()


async def test_a_certificate_of_another_ca_is_not_trusted(token: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    trustme.CA().cert_pem.write_to_path(str(file))
    async with running(HttpStub(), tls=issue(trustme.CA())) as stub:
        for ca in (file, None):
            server = HttpStudyServer(stub.url, token, ca)
            with pytest.raises(StudyServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await server.summary(KEY)
            await server.close()
        assert stub.asked == []
