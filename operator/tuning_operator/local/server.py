"""The study server in this process: a thread with an event loop of its own, on a loopback port."""

import asyncio
import contextlib
import importlib
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pydantic import SecretStr

from tuning_operator.local import LocalError
from tuning_operator.local.home import NAMESPACE, Address, StudyFolder, write_private
from tuning_operator.local.postgres import Postgres
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod, mint_reader
from tuning_operator.studies.settings import StudySettings

SERVER = "tuning_operator.studies.server"
"""Imported while Postgres starts, since both take a second or two."""

TOKEN_SECONDS = 10 * 365 * 86_400
"""Tokens are good as long as the server that issued them: its secret is made at its start."""
START_SECONDS = 300.0
"""On a slow disk, a new database with Optuna's tables takes minutes."""
POLL_SECONDS = 0.1
SHUTDOWN_SECONDS = 2


class LocalServer:
    """A study server that runs in a thread."""

    def __init__(self, database_url: str) -> None:
        from tuning_operator.studies.server import StudyServer, make_store

        self._secret = secrets.token_hex(32)
        settings = StudySettings(
            database_url=SecretStr(database_url),
            token_secret=SecretStr(self._secret),
            shutdown_seconds=SHUTDOWN_SECONDS,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = StudyServer(settings, make_store(settings))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="study-server", daemon=True)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def operator_token(self) -> str:
        """Return the token of what makes the passes."""
        return mint_operator(self._secret, TOKEN_SECONDS)

    def run_token(self, run: str) -> str:
        """Return the token of a run, by the name of its Job."""
        return mint_pod(self._secret, NAMESPACE, f"{run}-local", TOKEN_SECONDS)

    @property
    def address(self) -> Address:
        """What others need to read records."""
        return Address(self.url, mint_reader(self._secret, NAMESPACE, TOKEN_SECONDS))

    def start(self) -> None:
        """Start, and return once the server is ready. Raises LocalError."""
        import optuna

        from tuning_operator.studies.server import SWITCH_INTERVAL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()
        ready = threading.Event()
        for _ in range(int(START_SECONDS / 0.01)):
            if self._server.service.ready and self._server.started:
                return
            if not self._thread.is_alive():
                break
            ready.wait(0.01)
        raise LocalError(
            f"The study server did not start: {self._error or 'it is not ready'}. See the log of the study."
        )

    def close(self) -> None:
        """Make everything durable and stop."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._server.run([self._listener]))
        except BaseException as error:  # noqa: BLE001  reported by `start`
            self._error = error


@contextlib.contextmanager
def serving(folder: StudyFolder, prepare: Callable[[str], None] | None = None) -> Iterator[LocalServer]:
    """Run a study's Postgres and study server during the block. Raises LocalError.

    `prepare` gets the URL of the database before the study server starts.
    """
    database = Postgres(folder.database)
    try:
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(database.start)
            importlib.import_module(SERVER)
        starting.result()
        if prepare:
            prepare(database.url)
        server = LocalServer(database.url)
        try:
            server.start()
            write_private(folder.address, json.dumps(asdict(server.address)))
            yield server
        finally:
            folder.address.unlink(missing_ok=True)
            server.close()
    finally:
        database.stop()


@contextlib.contextmanager
def reading(folder: StudyFolder) -> Iterator[Address]:
    """Yield the study server of a study: that of the command that runs it, or one just for this."""
    deadline = time.monotonic() + START_SECONDS
    while folder.in_use:
        if address := folder.server:
            yield address
            return
        if time.monotonic() > deadline:
            raise LocalError(f"The study {folder.name} is starting or stopping: try again in a few seconds.")
        time.sleep(POLL_SECONDS)
    with folder.locked(), serving(folder) as server:
        yield server.address
