"""Limits on all requests, and who sends them: checked before a body is read.

A request without a token, or one that is too large or too slow, costs no more than its connection.
"""

import asyncio

import pydantic_core
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuning_operator.protocol import Problem
from tuning_operator.studies.auth.tokens import Identity, Operator, unauthenticated
from tuning_operator.studies.errors import Refused, TooLarge, TooSlow
from tuning_operator.studies.http.replies import error_reply
from tuning_operator.studies.service import Service

BODY_BYTES = 1024 * 1024
"""The largest body of a pod's request."""
OPERATOR_BODY_BYTES = 8 * 1024 * 1024
"""The largest body of the operator's: a TuningStudy is at most as large as etcd allows, 1.5 MiB."""
BODY_SECONDS = 30.0
"""How long a body may take."""
HEADERS, HEADER_BYTES, HEADER_SECONDS = 64, 32 * 1024, 10.0
"""How many headers a request may have, how large they may be together, and how long they may take."""
COUNTED = (401, 403, 408, 413)
"""The statuses of replies that are counted as rejected requests."""


class Gate:
    """Middleware: identifies the caller of `/v1/...`, then reads the body, within limits, and checks it.

    The depth of the JSON is limited by its parser, to 200 levels.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"].startswith("/v1/"):
                scope["state"]["caller"], body = await admit(scope, receive, self._service)
                _check_json(body)
                receive = _replay(body, receive)
            await self._app(scope, receive, noting_status)
        except Exception as error:
            if status:  # the reply has begun
                raise
            await error_reply(error)(scope, receive, noting_status)
        count_rejected(self._service, status)


async def admit(scope: Scope, receive: Receive, service: Service) -> tuple[Identity, bytes]:
    """Return who sends a request, and its body. Raises Unauthenticated, Unavailable, TooLarge, TooSlow."""
    headers = Headers(scope=scope)
    caller = await authenticate(headers, service)
    limit = OPERATOR_BODY_BYTES if isinstance(caller, Operator) else BODY_BYTES
    if int(headers.get("Content-Length", 0)) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return caller, await _read(receive, limit)
    except TimeoutError:
        message = f"the request took longer than {BODY_SECONDS:.0f} seconds to arrive"
        raise TooSlow(Problem(field="body", message=message)) from None


def count_rejected(service: Service, status: int) -> None:
    """Count the reply to a request, if its status says that the request was rejected."""
    if status in COUNTED:
        service.metrics.rejected.labels(status).inc()


async def authenticate(headers: Headers, service: Service) -> Identity:
    """Return who sends a request. Raises Unauthenticated, Unavailable."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("the request has no token: send the header Authorization: Bearer TOKEN")
    return service.verifier.known(token) or await service.verifier.identify(token)


async def _read(receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(limit: int) -> TooLarge:
    message = (
        f"the request is larger than {limit // 1024} KiB: save large values to files and send their paths"
    )
    return TooLarge(Problem(field="body", message=message))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return where the application gets a body from that has been read."""
    read = False

    async def replay() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _check_json(body: bytes) -> None:
    try:
        if body:
            pydantic_core.from_json(body)
    except ValueError as error:
        raise Refused(Problem(field="body", message=f"is not valid JSON: {error}")) from None


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, with limits on the headers of a request and on the time that they take."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives until the headers are complete."""
        super().data_received(data)
        if self._deadline is not None:
            self._size += len(data)
            if self._size > HEADER_BYTES and not self.transport.is_closing():
                self._reject()

    def on_message_begin(self) -> None:
        """Begin to wait for the headers."""
        super().on_message_begin()
        self._complete()
        self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header. Raises ValueError, after which the parser gives up."""
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        """Wait no longer."""
        self._complete()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Reply to what is not a request, or has too many headers."""
        if self.headers is not None and len(self.headers) > HEADERS:
            self._reject()
        else:
            super().send_400_response(msg)

    def _begin(self) -> None:
        self._size = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _complete(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _reject(self) -> None:
        status = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
        self.transport.write(status + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()
