"""HTTP to the study server: keep-alive, TLS, the pod's rotating token, patience while the server is away."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuning_trainer.console import say

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import NoReturn

FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds between tries: doubling, with jitter
LONGEST_RETRY_AFTER = 60.0
STRANGER_PATIENCE = 10.0  # seconds: while the server is replaced, another may answer at its address
NEWS_EVERY = 30.0  # seconds between lines in the log while the server is away
TOO_MANY_REQUESTS = 429
UNAUTHORIZED = 401


class Refused(Exception):  # noqa: N818  said of a request
    """The server said no (4xx): to ask again would not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(Exception):  # noqa: N818  said of the server
    """The server gave no answer for as long as the caller had patience."""


class _Trouble(Exception):  # noqa: N818
    """One try failed in a way that a later one may not."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Client:
    """A trial's line to the study server. Every call is idempotent, so each may be sent again.

    `sleep` and `clock` are injected by tests.
    """

    def __init__(
        self,
        url: str,
        token_file: str,
        ca_file: str | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = urlsplit(url)
        self._token_file = Path(token_file)
        self._ca_file = ca_file
        self._sleep = sleep
        self._clock = clock
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._connected_by = 0
        self._next_news = clock()
        self._trusted = False
        self._strange_since: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process without the connection."""
        return Client, (self._address.geturl(), str(self._token_file), self._ca_file)

    @property
    def host(self) -> str:
        """The server's name and port, for messages."""
        return self._address.netloc

    def call(
        self, method: str, path: str, body: object = None, *, patience: float, timeout: float = 60.0
    ) -> Any:
        """Return the decoded reply to a request on the trial's path.

        Args:
            patience: seconds for which to try again while the server is away; 0 tries once.
            timeout: seconds that one try may wait for the server.

        Raises:
            Refused: a 4xx reply, or from the first a certificate that does not fit.
            Unreachable: patience ended.
        """
        payload = None if body is None else json.dumps(body).encode()
        give_up = self._clock() + patience
        delay = FIRST_DELAY
        while True:
            try:
                return self._try(method, path, payload, timeout)
            except _Trouble as trouble:
                wait = trouble.retry_after if trouble.retry_after is not None else _jitter(delay)
                if self._clock() + wait > give_up:
                    raise Unreachable(f"the study server at {self.host} did not answer: {trouble}") from None
                self._tell_news(trouble)
            self._sleep(wait)
            delay = min(delay * 2, LONGEST_DELAY)

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _tell_news(self, trouble: _Trouble) -> None:
        now = self._clock()
        if now >= self._next_news:
            say(f"the study server at {self.host} does not answer ({trouble}); trying again")
            self._next_news = now + NEWS_EVERY

    def _try(self, method: str, path: str, payload: bytes | None, timeout: float) -> Any:
        token = self._token()
        status, headers, content = self._exchange(method, path, payload, token, timeout)
        if status == UNAUTHORIZED and self._token() != token:  # it was rotated in between
            status, headers, content = self._exchange(method, path, payload, self._token(), timeout)
        if status >= http.client.INTERNAL_SERVER_ERROR or status == TOO_MANY_REQUESTS:
            raise _Trouble(f"HTTP {status}", _retry_after(headers.get("Retry-After")))
        if status >= http.client.BAD_REQUEST:
            raise Refused(status, _detail(content) or f"HTTP {status}")
        try:
            return json.loads(content) if content else None
        except ValueError:
            raise _Trouble(f"HTTP {status} without JSON") from None

    def _exchange(
        self, method: str, path: str, payload: bytes | None, token: str, timeout: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request, over the kept connection if it still lives."""
        reused = self._connection is not None and self._connected_by == os.getpid()
        try:
            return self._send(self._connect(timeout), method, path, payload, token)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if type(error).__name__ == "SSLCertVerificationError":  # plain HTTP does not load ssl
                self._doubt(error)
            if reused:  # the server closes idle connections: that is no trouble yet
                return self._exchange(method, path, payload, token, timeout)
            raise _Trouble(str(error) or type(error).__name__) from None

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        payload: bytes | None,
        token: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, self._address.path + path, payload, headers)
        reply = connection.getresponse()
        content = reply.read()
        self._trusted, self._strange_since = True, None
        if reply.will_close:
            self.close()
        return reply.status, reply.headers, content

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._connected_by != os.getpid():  # a forked child must not speak on its parent's connection
            self._connection = None
        if self._connection is None:
            self._connection = self._new_connection(timeout)
            self._connected_by = os.getpid()
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection

    def _new_connection(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._address.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        import ssl

        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._ca_file)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)

    def _doubt(self, error: BaseException) -> NoReturn:
        """Take a certificate that does not fit for a passing trouble, for long only if one has fitted before.

        Raises:
            Refused: none ever did, and patience ended.
            _Trouble: otherwise.
        """
        now = self._clock()
        self._strange_since = now if self._strange_since is None else self._strange_since
        message = f"the certificate of the study server at {self.host} is not trusted: {error}"
        if not self._trusted and now - self._strange_since >= STRANGER_PATIENCE:
            raise Refused(0, message) from None
        raise _Trouble(message) from None

    def _token(self) -> str:
        try:
            return self._token_file.read_text().strip()
        except OSError as error:
            raise _Trouble(f"the token cannot be read: {error}") from None


def _jitter(delay: float) -> float:
    return delay * (0.5 + int.from_bytes(os.urandom(2), "big") / 0x1FFFF)


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date there counts as absent."""
    if header is None or not header.strip().isdigit():
        return None
    return min(float(header), LONGEST_RETRY_AFTER)


def _detail(content: bytes) -> str:
    """Return the message of an error reply: {"detail": text | {field, message} | a list of such}."""
    try:
        detail = json.loads(content)["detail"]
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip()[:1000]
    return "; ".join(_problem(entry) for entry in (detail if isinstance(detail, list) else [detail]))


def _problem(entry: object) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    where = entry.get("field") or ".".join(str(part) for part in entry.get("loc", ()))
    message = str(entry.get("message") or entry.get("msg") or entry)
    return f"{where}: {message}" if where else message
