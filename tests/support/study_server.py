"""A study server in this process: real uvicorn in a thread, on a random loopback port, with local tokens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr
from tuning_operator.studies.app import create_app
from tuning_operator.studies.server import StudyServer, uvicorn_config
from tuning_operator.studies.service import Service
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.store import MemoryStore, Store
from tuning_operator.studies.tokens import LOCAL_OPERATOR, LocalKeys, Verifier, mint_operator, mint_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""One for all clients: each would spend 20 ms on reading the system's certificates."""
SECRET = "a secret of the tests, of thirty-two bytes or more"


@dataclass
class RunningServer:
    """A server's address, and what it takes to speak with it."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop
    clients: list[httpx.Client] = field(default_factory=list)

    def operator_token(self) -> str:
        return mint_operator(SECRET)

    def pod_token(self, namespace: str, study: str, trial: int) -> str:
        """Return the token of a pod of the trial's Job."""
        return mint_pod(SECRET, namespace, f"{study}-{trial}-x7k2p")

    def trial_url(self, namespace: str, study: str, trial: int) -> str:
        """Return what a pod gets as TUNING_TRIAL_URL."""
        return f"{self.url}/v1/studies/{namespace}/{study}/trials/{trial}"

    def operator(self) -> httpx.Client:
        """Return a client that speaks as the operator; paths are whole (/v1/studies/...)."""
        return self._client(self.url, self.operator_token())

    def pod(self, namespace: str, study: str, trial: int) -> httpx.Client:
        """Return a client that speaks as a pod of the trial; paths are the trial's (/report, ...)."""
        return self._client(self.trial_url(namespace, study, trial), self.pod_token(namespace, study, trial))

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the server's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def _client(self, base: str, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=base, headers=headers, timeout=30, verify=NO_TLS)
        self.clients.append(client)
        return client


@contextlib.contextmanager
def running_server(store: Store | None = None, port: int = 0) -> Iterator[RunningServer]:
    """Run a server until the block ends; then it stops as it does on SIGTERM.

    Args:
        store: where studies are kept; memory, if left out. Give the same one again to restart a server.
        port: of loopback; a free one, if left out.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        started: list[RunningServer | BaseException] = []
        up = threading.Event()

        def tell(outcome: RunningServer | BaseException) -> None:
            started.append(outcome)
            up.set()

        stop: list[Callable[[], None]] = []
        thread = threading.Thread(target=_serve, args=(store, listener, tell, stop), daemon=True)
        thread.start()
        assert up.wait(30), "the server did not start"
        server = started[0]
        if isinstance(server, BaseException):
            raise server
        try:
            yield server
        finally:
            for client in server.clients:
                client.close()
            stop[0]()
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def study_server() -> Iterator[RunningServer]:
    """A server that keeps its studies in memory."""
    with running_server() as server:
        yield server


def _serve(
    store: Store | None,
    listener: socket.socket,
    tell: Callable[[RunningServer | BaseException], None],
    stop: list[Callable[[], None]],
) -> None:
    async def main() -> None:
        service = Service(store or MemoryStore(), Verifier(LocalKeys(SECRET), LOCAL_OPERATOR))
        server = _TellingServer(uvicorn_config(create_app(service), _settings()), service)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.tell = lambda: tell(RunningServer(url, service, asyncio.get_running_loop()))
        stop.append(lambda: setattr(server, "should_exit", True))
        await service.start()
        await server.serve(sockets=[listener])

    try:
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(main())
    except BaseException as error:  # noqa: BLE001  told to the test, which raises it
        tell(error)


class _TellingServer(StudyServer):
    """Tells when it listens."""

    tell: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.tell()


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _settings() -> StudySettings:
    return StudySettings(
        database_url=SecretStr("memory:"), token_secret=SecretStr(SECRET), shutdown_seconds=5
    )
