"""A real HTTP server on loopback that replies as a test says, or fails as servers and networks do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpStub:
    """Replies to every request with `status` and `answer`, or as `fault` does; records the requests."""

    def __init__(self) -> None:
        self.status, self.answer = 200, "{}"
        self.fault: Handler | None = None
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.url = ""

    def reply(self, status: int, answer: Any) -> None:
        self.status, self.answer = status, answer if isinstance(answer, str) else json.dumps(answer)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.asked.append((request.method, request.path_qs, json.loads(text) if text else None))
        self.tokens.append(request.headers.get("Authorization"))
        if self.fault:
            return await self.fault(request)
        return web.Response(status=self.status, text=self.answer, content_type="application/json")


@contextlib.asynccontextmanager
async def running(
    stub: HttpStub, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpStub]:
    """Run the server on a port (0: any free one); a handler ends when its client closes the connection."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stub.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        stub.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        yield stub
    finally:
        await runner.cleanup()


@pytest.fixture
async def stub() -> AsyncIterator[HttpStub]:
    """A server that runs."""
    async with running(HttpStub()) as stub:
        yield stub


async def disconnects(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.close()
    return web.Response()


async def truncates(request: web.Request) -> web.StreamResponse:
    """Promise more than is sent."""
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b'{"kind": ')
    assert request.transport
    request.transport.close()
    return response


async def truncates_chunks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b'{"kind": ')
    assert request.transport
    request.transport.close()
    return response


async def speaks_no_http(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.write(b"220 mail.example.org ESMTP\r\n\r\n")
    request.transport.close()
    return web.Response()


async def compresses_badly(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"not gzip", headers={"Content-Encoding": "gzip"})


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


async def sends_garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"kind": \xff', content_type="application/json")


async def sends_a_list(request: web.Request) -> web.StreamResponse:
    return web.json_response([1])


FAULTS: list[Handler] = [
    disconnects,
    truncates,
    truncates_chunks,
    speaks_no_http,
    compresses_badly,
    hangs,
    sends_garbage,
    sends_a_list,
]
