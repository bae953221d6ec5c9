"""HTTP client for the study server: keep-alive, TLS, the pod's rotating token, retries during an outage."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuning_trainer.log import log
from tuning_trainer.wire.codec import TRIAL_STARTED

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import NoReturn

FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds between attempts: doubled each time, with jitter
LONGEST_RETRY_AFTER = 60.0
FIRST_PATIENCE = 45.0  # seconds until a network that does not let the pod reach the server is reported
FIRST_TIMEOUT = 10.0  # seconds for an attempt until then
UNTRUSTED_PATIENCE = 10.0  # seconds: while the server is replaced, another may answer at its address
UNAUTHORIZED_PATIENCE = 120.0  # seconds: clocks and keys may need a while after a change of the cluster
RENEWAL_PATIENCE = 300.0  # seconds until the file with the CA is updated after the CA has changed
LOG_EVERY = 30.0  # seconds between lines in the log during an outage
TOO_MANY_REQUESTS = 429
UNAUTHORIZED = 401


REMEDY = "Check that the study server is running and that the pods of this namespace can reach it."


class Refused(Exception):  # noqa: N818  the state of a request
    """The server rejected the request (4xx): another attempt would not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(Exception):  # noqa: N818  the state of the server
    """The server did not answer within the caller's patience."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class _Retryable(Exception):  # noqa: N818  one attempt, which failed
    """An attempt failed in a way that another may not."""

    def __init__(self, message: str, retry_after: float | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.remedy = remedy or REMEDY


class Client:
    """A trial's connection to the study server. Calls are idempotent and may be sent again. Thread-safe.

    Tests replace `sleep` and `clock`.
    """

    def __init__(
        self,
        url: str,
        token_file: str,
        ca_file: str | None = None,
        *,
        reached: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: the trial's address.
            token_file: has the pod's token, which is renewed.
            ca_file: has the certificates to trust; None: the system's.
            reached: whether another client of this pod has reached the server.
            sleep: waits.
            clock: measures time.
        """
        self.trial_started: str | None = None
        """When the trial started, once that is known: another trial may get its number later."""
        self._address = urlsplit(url)
        self._token_file = Path(token_file)
        self._ca_file = ca_file
        self._sleep = sleep
        self._clock = clock
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._connected_by = 0
        self._lock = threading.Lock()  # one request at a time on the connection
        os.register_at_fork(after_in_child=self._renew_lock)  # another thread may hold it
        self._next_log = clock()
        self._trusted = False
        self._reached = reached  # the network lets the pod reach the server, even if it is down now
        self._untrusted_since: float | None = None
        self._authenticated = False
        self._unauthorized_since: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process have the client, without the connection."""
        arguments = (self._address.geturl(), str(self._token_file), self._ca_file)
        return Client, arguments, {"trial_started": self.trial_started}

    @property
    def host(self) -> str:
        """The server's host and port, for messages."""
        return self._address.netloc

    def call(
        self, method: str, path: str, body: object = None, *, patience: float, timeout: float = 60.0
    ) -> Any:
        """Return the decoded reply to a request on the trial's path.

        Args:
            patience: seconds for which to retry during an outage; 0 means one attempt. If the network has
                never let the pod reach the server, at most FIRST_PATIENCE: that is unlikely to be an outage.
            timeout: seconds that one attempt may take.

        Raises:
            Refused: the reply was a 4xx, or the server's certificate has never been trusted.
            Unreachable: there was no reply within the patience.
        """
        # The server rejects text that is not valid Unicode, such as a file name that Python could not decode.
        payload = None if body is None else json.dumps(body, ensure_ascii=False).encode(errors="replace")
        start = self._clock()
        delay = FIRST_DELAY
        while True:
            try:
                limit = timeout if self._reached else min(timeout, FIRST_TIMEOUT)
                with self._lock:
                    return self._try(method, path, payload, limit)
            except _Retryable as failed:
                wait = failed.retry_after if failed.retry_after is not None else _jitter(delay)
                if self._clock() + wait > start + (
                    patience if self._reached else min(patience, FIRST_PATIENCE)
                ):
                    message = f"the study server at {self.host} did not answer: {failed}"
                    raise Unreachable(message, failed.remedy) from None
                self._log_outage(failed)
            self._sleep(wait)
            delay = min(delay * 2, LONGEST_DELAY)

    def connect(self) -> None:
        """Connect now, so that the next call need not; if that fails, the call tries again."""
        with self._lock:
            try:
                connection = self._connect(FIRST_TIMEOUT)
                if connection.sock is None:
                    connection.connect()
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def _log_outage(self, failed: _Retryable) -> None:
        now = self._clock()
        if now >= self._next_log:
            log(f"the study server at {self.host} does not answer ({failed}); retrying")
            self._next_log = now + LOG_EVERY

    def _try(self, method: str, path: str, payload: bytes | None, timeout: float) -> Any:
        token = self._token()
        status, headers, content = self._exchange(method, path, payload, token, timeout)
        if status == UNAUTHORIZED and self._token() != token:  # it was rotated meanwhile
            status, headers, content = self._exchange(method, path, payload, self._token(), timeout)
        if status == UNAUTHORIZED:
            self._not_authenticated(_detail(content) or "HTTP 401")
        if status >= http.client.INTERNAL_SERVER_ERROR or status == TOO_MANY_REQUESTS:
            raise _Retryable(f"HTTP {status}", _retry_after(headers.get("Retry-After")))
        self._authenticated, self._unauthorized_since = True, None
        if status >= http.client.BAD_REQUEST:
            raise Refused(status, _detail(content) or f"HTTP {status}")
        try:
            return json.loads(content) if content else None
        except ValueError:
            raise _Retryable(f"HTTP {status} with a body that is not JSON") from None

    def _exchange(
        self, method: str, path: str, payload: bytes | None, token: str, timeout: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request, over the open connection if there is one."""
        reused = self._connection is not None and self._connected_by == os.getpid()
        try:
            return self._send(self._connect(timeout), method, path, payload, token)
        except (OSError, http.client.HTTPException) as error:
            connected = self._connection is not None and self._connection.sock is not None
            self.close()
            if type(error).__name__ == "SSLCertVerificationError":  # plain HTTP does not load ssl
                self._not_trusted(error)
            timed_out = isinstance(error, (TimeoutError, socket.timeout))
            if reused and not timed_out:  # the server closes idle connections: try once more
                return self._exchange(method, path, payload, token, timeout)
            slow = connected and timed_out
            self._reached = self._reached or slow or isinstance(error, ConnectionRefusedError)
            raise _Retryable(str(error) or type(error).__name__, remedy=_likely_cause(error)) from None

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        payload: bytes | None,
        token: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if self.trial_started is not None:
            headers[TRIAL_STARTED] = self.trial_started
        if payload is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, self._address.path + path, payload, headers)
        reply = connection.getresponse()
        content = reply.read()
        self._trusted, self._untrusted_since, self._reached = True, None, True
        if reply.will_close:
            self.close()
        return reply.status, reply.headers, content

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._connected_by != os.getpid():  # a forked child must not use its parent's connection
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

    def _not_trusted(self, error: BaseException) -> NoReturn:
        """Handle a certificate that is not trusted; it may be temporary, if one was trusted before.

        Raises:
            Refused: none has ever been trusted, for a while.
            _Retryable: otherwise.
        """
        self._tls = None  # read the CA again: the kubelet updates the file when the CA changes
        now = self._clock()
        self._untrusted_since = now if self._untrusted_since is None else self._untrusted_since
        message = f"the certificate of the study server at {self.host} is not trusted: {error}"
        self._reached = True
        patience = RENEWAL_PATIENCE if self._ca_file else UNTRUSTED_PATIENCE
        if not self._trusted and now - self._untrusted_since >= patience:
            raise Refused(0, message) from None
        raise _Retryable(message) from None

    def _not_authenticated(self, message: str) -> NoReturn:
        """Handle a token that is not accepted; it may be temporary, since the kubelet renews it.

        Raises:
            Refused: none has ever been accepted, for UNAUTHORIZED_PATIENCE.
            _Retryable: otherwise.
        """
        now = self._clock()
        self._unauthorized_since = now if self._unauthorized_since is None else self._unauthorized_since
        if not self._authenticated and now - self._unauthorized_since >= UNAUTHORIZED_PATIENCE:
            raise Refused(UNAUTHORIZED, message)
        raise _Retryable(message)

    def _token(self) -> str:
        try:
            return self._token_file.read_text().strip()
        except OSError as error:
            raise _Retryable(f"cannot read the pod's token: {error}") from None


def _likely_cause(error: Exception) -> str | None:
    """Return what usually causes this error where the server has never answered."""
    if isinstance(error, socket.gaierror):
        return (
            "The server's name could not be resolved. Check that no NetworkPolicy of this namespace blocks "
            "DNS (port 53) and, if the pod has hostNetwork: true, that dnsPolicy is ClusterFirstWithHostNet."
        )
    if isinstance(error, (TimeoutError, socket.timeout)):
        return (
            "Check that the NetworkPolicies of this namespace allow its pods to connect to the study server, "
            "and that those of the study server's namespace allow it as well."
        )
    if isinstance(error, ConnectionRefusedError):
        return None
    return (
        "If the study server is in a service mesh in strict mode, pods outside the mesh are rejected: let "
        "them connect to the server's port, or add the trial's pods to the mesh."
    )


def _jitter(delay: float) -> float:
    return delay * (0.5 + int.from_bytes(os.urandom(2), "big") / 0x1FFFF)


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date is ignored."""
    if header is None or not header.strip().isdigit():
        return None
    return min(float(header), LONGEST_RETRY_AFTER)


def _detail(content: bytes) -> str:
    """Return the message of an error reply: {"detail": text or {field, message} or a list of them}."""
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
