"""A proxy in front of the API server that fails as a test wants, before or after a request has its effect."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import yaml
from aiohttp import web

PASSED_ON = ("Accept", "Authorization", "Content-Type")
EXPIRED = b'"code":410'
RETURNED = ("Content-Type", "Date", "Retry-After")


@dataclass(frozen=True)
class Fault:
    """How a request fails."""

    status: int = 0
    """Of the reply; 0: the connection breaks."""
    reason: str = ""
    retry_after: int | None = None
    after: bool = False
    """Whether the request has its effect first."""


@dataclass
class Call:
    """A request, and what became of it."""

    method: str
    path: str
    """With the query."""
    time: float = field(default_factory=time.monotonic)
    status: int | None = None
    """Of the reply, once there is one; 0: the connection broke."""

    @property
    def watches(self) -> bool:
        return "watch=true" in self.path

    @property
    def writes(self) -> bool:
        return self.method != "GET"


async def works(_: Call) -> None:
    """Let every request pass."""


class FaultyApi:
    """The proxy. As a context manager, it runs in a thread for the length of the block."""

    def __init__(self, kubeconfig: Path) -> None:
        cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._target, self._trust = cluster["server"], ssl.create_default_context(cadata=authority)
        self.calls: list[Call] = []
        self.decide: Callable[[Call], Awaitable[Fault | None]] = works
        """Says what happens to a request, and may make it wait."""
        self.lines: int | None = None
        """After how many lines the connection of a watch breaks."""
        self.page: int | None = None
        """How many objects a page of a list has, whatever the request says."""
        self.url = ""
        self._watches: list[web.Request] = []
        self._loop = asyncio.new_event_loop()
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._run()), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)

    def write_kubeconfig(self, file: Path, token: str) -> Path:
        """Write a kubeconfig whose server is the proxy."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
            "current-context": "proxy",
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def cut_watches(self) -> None:
        """Break the connections of all watches."""
        self._loop.call_soon_threadsafe(lambda: [_break(request) for request in self._watches])

    async def _run(self) -> None:
        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(limit=0, ssl=self._trust)
        async with aiohttp.ClientSession(connector=connector) as self._http:
            self._ready.set()
            await self._stopped.wait()
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        call = Call(request.method, request.path_qs)
        self.calls.append(call)
        fault = await self.decide(call)
        if fault and not fault.after:
            return _fail(request, call, fault)
        query = dict(request.query)
        if self.page and "limit" in query:
            query["limit"] = str(self.page)
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        try:
            async with self._http.request(
                request.method,
                self._target + request.path,
                params=query,
                data=content or None,
                headers=headers,
            ) as reply:
                returned = {name: reply.headers[name] for name in RETURNED if name in reply.headers}
                if call.watches and reply.status == 200:
                    return await self._stream(request, call, reply, returned)
                body = await reply.read()
        except aiohttp.ClientError:
            return _fail(request, call, Fault())
        if fault:
            return _fail(request, call, fault)
        call.status = reply.status
        return web.Response(status=reply.status, body=body, headers=returned)

    async def _stream(
        self, request: web.Request, call: Call, reply: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        call.status, lines = reply.status, 0
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        self._watches.append(request)
        try:
            while lines != self.lines and (line := await reply.content.readline()):
                if EXPIRED in line:
                    call.status = 410
                await response.write(line)
                lines += 1
        finally:
            self._watches.remove(request)
        _break(request)
        return response


def _fail(request: web.Request, call: Call, fault: Fault) -> web.Response:
    call.status = fault.status
    if not fault.status:
        _break(request)
        return web.Response()
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
    body = {"kind": "Status", "code": fault.status, "reason": fault.reason, "message": "injected by a test"}
    return web.json_response(body, status=fault.status, headers=headers)


def _break(request: web.Request) -> None:
    if request.transport:
        request.transport.close()
