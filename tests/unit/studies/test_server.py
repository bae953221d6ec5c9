"""The study server as a process: settings, TLS, readiness, and its end."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url
from tuning_operator.studies.auth.tokens import mint_operator
from tuning_operator.studies.certificate import Certificate
from tuning_operator.studies.server import StudyServer, WriterEnded, make_store
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage.base import Fenced, MemoryStore, NothingToWait

from tests.support.loopback import needs_ipv6
from tests.support.study_server import NO_TLS, SECRET, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STUDY = "/v1/studies/ml/mnist"
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}]}
LOCAL = {"TUNING_DATABASE_URL": "memory:", "TUNING_TOKEN_SECRET": SECRET}


def until(condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:
    """Poll something outside of this process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


class Pki:
    """An authority, and certificates of it for localhost."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self._sign(self._name, self._key.public_key(), 1, ca=True))
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"

    def issue(self, serial: int) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.certificate.write_bytes(self._sign(name, key.public_key(), serial, ca=False))

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, serial: int, *, ca: bool) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    pki = Pki(tmp_path)
    pki.issue(1001)
    return pki


class Process:
    """The command, as a container starts it."""

    def __init__(self, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tuning_operator.cli.main import app; app()", "studies"],
            env={"PATH": os.environ["PATH"], **LOCAL, "TUNING_PORT": str(self.port), **environ},
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str]:
        """Ask it to end; return its exit code and log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=120)
        return self.process.returncode, log


def ready(url: str, verify: ssl.SSLContext = NO_TLS) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=60, verify=verify).status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_serves_and_ends_on_a_signal() -> None:
    with Process() as server:
        url = f"http://127.0.0.1:{server.port}"
        until(lambda: ready(url), "the server is ready")
        headers = {"Authorization": f"Bearer {mint_operator(SECRET)}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60, verify=NO_TLS) as operator:
            assert operator.put(STUDY, json=DEFINITION).status_code == 200
            cursor = operator.get("/v1/changes").json()["cursor"]
        poll = HTTPConnection("127.0.0.1", server.port, timeout=240)
        poll.request("GET", f"/v1/changes?after={cursor}&timeout=60", headers=headers)
        assert ready(url), "a request that is answered after the other one has arrived"
        code, log = server.end()
        expected = {"cursor": cursor, "studies": [], "unavailable": None}
        assert json.load(poll.getresponse()) == expected, "a request in flight is answered"
        poll.close()
        assert code == -signal.SIGTERM, log
        assert "Traceback" not in log


@needs_ipv6
def test_by_default_the_server_listens_on_ipv4_and_ipv6() -> None:
    with Process() as server:
        until(lambda: ready(f"http://127.0.0.1:{server.port}"), "the server is ready")
        assert ready(f"http://[::1]:{server.port}")


def test_tls_with_a_certificate_that_is_renewed(pki: Pki) -> None:
    trusting = ssl.create_default_context(cafile=str(pki.ca))
    files = {"TUNING_TLS_CERT_FILE": str(pki.certificate), "TUNING_TLS_KEY_FILE": str(pki.key)}
    with Process(**files) as server:
        until(lambda: ready(f"https://localhost:{server.port}", trusting), "the server is ready")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/readyz", timeout=60, verify=NO_TLS)


def test_new_connections_get_the_new_certificate(pki: Pki) -> None:
    certificate = Certificate(pki.certificate, pki.key)

    async def serial_now() -> str:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate.context)
        port = server.sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=str(pki.ca))
        _, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
        serial = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        server.close()
        return str(serial)

    assert asyncio.run(serial_now()) == f"{1001:04X}"
    assert certificate.refresh() is False
    good = pki.certificate.read_bytes()
    pki.issue(1002)
    new = pki.certificate.read_bytes()
    pki.certificate.write_bytes(good)  # as in the middle of a rotation: the new key, the old certificate
    assert certificate.refresh() is False
    assert asyncio.run(serial_now()) == f"{1001:04X}"
    pki.certificate.write_bytes(new)
    assert certificate.refresh() is True
    assert asyncio.run(serial_now()) == f"{1002:04X}"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"TUNING_TLS_CERT_FILE": "/tls.crt"},
            "set both TUNING_TLS_CERT_FILE and TUNING_TLS_KEY_FILE, or neither",
        ),
        ({"TUNING_OPERATOR_SERVICE_ACCOUNT": "operator"}, "operator_service_account"),
        ({"TUNING_PORT": "high"}, "port"),
    ],
)
def test_settings_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], message: str
) -> None:
    for name, value in (LOCAL | environ).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=message):
        StudySettings()  # type: ignore[call-arg]


def test_a_free_port_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LOCAL | {"TUNING_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    assert StudySettings().port == 0  # type: ignore[call-arg]


class SlowStore(MemoryStore):
    """A store whose lock another server holds for a while, and whose commits take until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.committed = threading.Event(), threading.Event()
        self.committed.set()
        self.closed = False

    async def open(self) -> None:
        await asyncio.to_thread(self.free.wait)

    async def durable(self) -> None:
        await asyncio.to_thread(self.committed.wait)

    async def close(self) -> None:
        self.closed = True

    def deferred(self) -> Any:
        import contextlib

        store = self

        class Waiting(NothingToWait):
            async def durable(self) -> None:
                await store.durable()

        return contextlib.nullcontext(Waiting())


@pytest.fixture
def store() -> Iterator[SlowStore]:
    store = SlowStore()
    yield store
    store.free.set()
    store.committed.set()


def test_not_ready_until_it_is_the_only_writer(store: SlowStore) -> None:
    with running_server(store, wait=False) as server:
        operator = server.operator()
        assert operator.get("/healthz").status_code == 200
        assert operator.get("/readyz").status_code == 503
        refused = operator.put(STUDY, json=DEFINITION)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "the previous server" in refused.json()["detail"]
        store.free.set()
        until(lambda: operator.get("/readyz").status_code == 200, "the server is ready")
        assert operator.put(STUDY, json=DEFINITION).status_code == 200


def test_a_reply_waits_for_the_record_and_the_end_waits_for_the_reply(store: SlowStore) -> None:
    store.free.set()
    replies: list[httpx.Response] = []
    with running_server(store) as server:
        server.operator().put(STUDY, json=DEFINITION)
        server.operator().post(f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 1})
        store.committed.clear()
        pod = server.pod("ml", "mnist", 0)
        sending = threading.Thread(
            target=lambda: replies.append(pod.post("/result", json={"state": "COMPLETE", "values": [1]}))
        )
        sending.start()
        (engine,) = server.server.service.studies
        until(lambda: engine.counts.complete == 1, "the result is in memory")
        assert not replies
        server.stop()
        assert not store.closed
        store.committed.set()
        sending.join(120)
    assert replies[0].json()["state"] == "COMPLETE"
    assert store.closed


def test_the_database_is_away(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.free.set()
    with running_server(store) as server:
        server.operator().put(STUDY, json=DEFINITION)
        server.operator().post(f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 1})
        pod = server.pod("ml", "mnist", 0)
        monkeypatch.setattr("tuning_operator.studies.study.context.COMMIT_SECONDS", 0.05)
        store.committed.clear()
        away = pod.post("/report", json={"values": [[0, 0.5]]})
        assert (away.status_code, away.headers["Retry-After"]) == (503, "1")
        assert "database" in away.json()["detail"]
        store.committed.set()
        monkeypatch.undo()
        assert pod.post("/report", json={"values": [[0, 0.5]]}).json()["prune"] is False


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Fenced(), "another study server has taken over; this one stops"),
        (
            RuntimeError("no permission"),
            "the database can't be written, so this study server stops: no permission",
        ),
    ],
)
def test_a_server_that_can_write_no_more_ends(reason: Exception, message: str) -> None:
    class ReplacedStore(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.replaced, self.closed = threading.Event(), threading.Event()

        async def lost(self) -> Exception:
            await asyncio.to_thread(self.replaced.wait)
            return reason

        async def close(self) -> None:
            self.closed.set()

    store = ReplacedStore()
    serving = running_server(store)
    server = serving.__enter__()
    assert server.operator().get("/readyz").status_code == 200
    store.replaced.set()
    server.thread.join(120)
    assert not server.thread.is_alive()
    assert store.closed.is_set()
    with pytest.raises(WriterEnded, match=message):
        serving.__exit__(None, None, None)


@pytest.mark.looptime
async def test_old_records_are_looked_for_every_hour_also_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class EnoughSeenError(Exception):
        pass

    looks: list[tuple[float, dt.timedelta]] = []

    async def expire(kept: dt.timedelta) -> None:
        looks.append((asyncio.get_running_loop().time(), kept))
        raise TimeoutError if len(looks) < 3 else EnoughSeenError

    settings = StudySettings(database_url=SecretStr("memory:"), token_secret=SecretStr(SECRET))
    server = StudyServer(settings, MemoryStore())
    monkeypatch.setattr(server.service, "expire", expire)
    with pytest.raises(EnoughSeenError):
        await server._expire_records(30)
    assert looks == [(hours * 3600, dt.timedelta(days=30)) for hours in (1, 2, 3)]


async def test_the_sslmode_of_the_url_takes_precedence(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over `verify-full` with public CAs, which the chart sets for a database of the user's."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    url = make_url(database_url).update_query_dict({"sslmode": "disable"})
    text = SecretStr(url.render_as_string(hide_password=False))
    store = make_store(StudySettings(database_url=text, token_secret=SecretStr(SECRET)))
    try:
        async with asyncio.timeout(60):
            await store.open()
    finally:
        await store.close()
