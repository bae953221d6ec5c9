"""The study server process: `tuning-operator studies`."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from datetime import timedelta

import optuna
import uvicorn
import uvloop
from sqlalchemy import make_url
from starlette.types import ASGIApp

from tuning_operator.studies.auth.keyset import ApiServer, PublishedKeys
from tuning_operator.studies.auth.tokens import Keys, LocalKeys, Verifier
from tuning_operator.studies.certificate import Certificate
from tuning_operator.studies.errors import StudyError
from tuning_operator.studies.http.app import create_app
from tuning_operator.studies.http.gate import BoundedProtocol
from tuning_operator.studies.http.reports import FastReports
from tuning_operator.studies.service import Service
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage import PostgresStore
from tuning_operator.studies.storage.base import Fenced, MemoryStore, Store
from tuning_operator.studies.study.context import COMMIT_SECONDS, freeze_heap

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds a sampling thread may hold the interpreter while a report waits; Python's default is 0.005."""
MEMORY = "memory:"
"""The database URL of a server that keeps its studies in memory only."""
EXPIRE_SECONDS = 3600.0
"""Seconds between two looks for records that have been kept long enough."""
KEEP_ALIVE_SECONDS = 75
"""Longer than most trials take between two reports, so that they reuse their connection."""


def run() -> None:
    """Run the study server with settings from the environment until a signal stops it."""
    settings = StudySettings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        uvloop.run(StudyServer(settings, make_store(settings)).run())
    except WriterEnded as end:
        raise SystemExit(str(end)) from None


class WriterEnded(Exception):  # noqa: N818  a state, not an error
    """This server can never write to the database again, so that its process must end."""


class StudyServer(uvicorn.Server):
    """Uvicorn with the studies of a store. Ready once it is the only writer; stops when it no longer is."""

    def __init__(self, settings: StudySettings, store: Store) -> None:
        verifier = Verifier(make_keys(settings), settings.operator_service_account)
        self.service = Service(store, verifier)
        self._certificate = Certificate.of(settings)
        self._retention = settings.record_retention_days
        app = FastReports(create_app(self.service), self.service)
        super().__init__(uvicorn_config(app, settings, self._certificate))

    async def run(self, sockets: list[socket.socket] | None = None) -> None:  # type: ignore[override]
        """Serve until a signal comes, or nothing can be written any more (WriterEnded)."""
        writing = asyncio.create_task(self._stay_only_writer())
        following = asyncio.create_task(self._certificate.follow()) if self._certificate else None
        expiring = asyncio.create_task(self._expire_records(self._retention)) if self._retention else None
        try:
            await self.serve(sockets)
        finally:
            writing.cancel()
            for task in filter(None, (following, expiring)):
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the long polls, let requests in flight finish, and release the database."""
        self.service.close()
        await super().shutdown(sockets)
        await self.service.stop()  # here, since the signal ends the process once `serve` returns

    async def _expire_records(self, days: float) -> None:
        """Delete records that have been kept for this long after their TuningStudy was deleted."""
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            try:
                await self.service.expire(timedelta(days=days))
            except (StudyError, TimeoutError) as error:
                log.warning("Can't delete old records yet: %s", error)

    async def _stay_only_writer(self) -> None:
        """Become the only writer; stop the server when that fails, or when it can write no more."""
        try:
            await self.service.start()
            freeze_heap()
            log.info("Ready: this server is the only writer")
            error = await self.service.lost()
            if isinstance(error, Fenced):
                raise WriterEnded(f"another study server has taken over; this one stops. {error}")
            raise WriterEnded(f"the database can't be written, so this study server stops: {error}")
        finally:
            self.should_exit = True


def uvicorn_config(app: ASGIApp, settings: StudySettings, certificate: Certificate | None) -> uvicorn.Config:
    """Return the configuration of uvicorn."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        access_log=False,
        proxy_headers=False,
        log_config=None,
        lifespan="off",
        ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def make_keys(settings: StudySettings) -> Keys:
    """Return the keys of the local mode or the cluster's."""
    if settings.token_secret is not None:
        return LocalKeys(settings.token_secret.get_secret_value())
    api_server = ApiServer(
        settings.kubernetes_url,
        settings.kubernetes_token_file,
        settings.kubernetes_ca_file,
        settings.kubernetes_issuer,
    )
    return PublishedKeys(api_server.fetch)


def make_store(settings: StudySettings) -> Store:
    """Return where studies are kept."""
    url = settings.database_url.get_secret_value()
    if url == MEMORY:
        return MemoryStore()
    _let_sslmode_take_precedence(url)
    return PostgresStore(url, shard=settings.shard, pod=settings.pod, write_timeout=COMMIT_SECONDS)


def _let_sslmode_take_precedence(url: str) -> None:
    """Leave out the public CAs that the chart sets if the URL has another `sslmode` than `verify-full`.

    libpq refuses any other mode together with them.
    """
    another = make_url(url).query.get("sslmode", "verify-full") != "verify-full"
    if another and os.environ.get("PGSSLROOTCERT") == "system":
        del os.environ["PGSSLROOTCERT"]
