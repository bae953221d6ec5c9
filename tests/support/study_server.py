"""A study server in this process: uvicorn in a thread, on a random loopback port, with local tokens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop
from pydantic import SecretStr
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod, mint_reader
from tuning_operator.studies.server import StudyServer
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage.base import MemoryStore, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Shared by all clients, because loading the system's certificates takes 20 ms."""
SECRET = "a secret of the tests, of thirty-two bytes or more"


class RunningServer:
    """A server in a thread, with clients and tokens for it."""

    def __init__(self, store: Store, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = StudyServer(_settings(), store)
        self._clients: list[httpx.Client] = []
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stop the server as SIGTERM does."""
        self.server.should_exit = True

    def close(self) -> None:
        """Stop the server; raise its exception if it failed."""
        self.stop()
        self.thread.join(120)
        assert not self.thread.is_alive(), "the server did not end"
        for client in self._clients:
            client.close()
        if self._failure:
            raise self._failure

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.thread.is_alive(), f"the server ended before it {what}: {self._failure!r}"
            assert time.monotonic() < deadline, f"not within 240 s: the server {what}"
            time.sleep(0.001)

    def operator_token(self) -> str:
        return mint_operator(SECRET)

    def pod_token(self, namespace: str, study: str, trial: int | str) -> str:
        """Return the token of a pod of a trial, or of `refit`."""
        return mint_pod(SECRET, namespace, f"{study}-{trial}-x7k2p")

    def trial_url(self, namespace: str, study: str, trial: int) -> str:
        """Return the value of TUNING_TRIAL_URL in a trial's pod."""
        return f"{self.url}/v1/studies/{namespace}/{study}/trials/{trial}"

    def operator(self) -> httpx.Client:
        """Return a client with the operator's token; paths are absolute (/v1/studies/...)."""
        return self._client(self.url, self.operator_token())

    def pod(self, namespace: str, study: str, trial: int) -> httpx.Client:
        """Return a client with a trial pod's token; paths are relative to the trial (/report, ...)."""
        return self._client(self.trial_url(namespace, study, trial), self.pod_token(namespace, study, trial))

    def refit_pod(self, namespace: str, study: str) -> httpx.Client:
        """Return a client with a refit pod's token; paths are relative to the refit (/report, ...)."""
        token = self.pod_token(namespace, study, "refit")
        return self._client(f"{self.url}/v1/studies/{namespace}/{study}/refit", token)

    def reader(self, namespace: str) -> httpx.Client:
        """Return a client with the token of a reader of the namespace; paths are absolute."""
        return self._client(self.url, mint_reader(SECRET, namespace))

    def _client(self, base: str, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=base, headers=headers, timeout=120, verify=NO_TLS)
        self._clients.append(client)
        return client

    def _run(self, listener: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self.server.run([listener]))
        except BaseException as error:  # noqa: BLE001  raised in the test, by `close`
            self._failure = error


@contextlib.contextmanager
def running_server(
    store: Store | None = None, port: int = 0, *, wait: bool = True
) -> Iterator[RunningServer]:
    """Run a server for the length of the block; then stop it as SIGTERM does.

    Args:
        store: where studies are stored (default: in memory). To restart a server, pass the same store.
        port: a port of the loopback address (default: a free one).
        wait: whether to wait until the server is ready.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = RunningServer(store or MemoryStore(), listener)
        try:
            server.wait_until("listens", lambda: server.server.started)
            if wait:
                server.wait_until("is ready", lambda: server.server.service.ready)
            yield server
        finally:
            server.close()


@pytest.fixture
def study_server() -> Iterator[RunningServer]:
    """Run a server that stores its studies in memory."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run one for all tests of a module."""
    with running_server() as server:
        yield server


def _settings() -> StudySettings:
    return StudySettings(
        database_url=SecretStr("memory:"), token_secret=SecretStr(SECRET), shutdown_seconds=5
    )
