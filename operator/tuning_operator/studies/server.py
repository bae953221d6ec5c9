"""The study server process: `tuning-operator studies`."""

import asyncio
import contextlib
import logging
import socket
import sys

import optuna
import uvicorn
import uvloop
from fastapi import FastAPI

from tuning_operator.studies.auth.keyset import ApiServer, PublishedKeys
from tuning_operator.studies.auth.tokens import Keys, LocalKeys, Verifier
from tuning_operator.studies.http.app import create_app
from tuning_operator.studies.http.certificate import Certificate
from tuning_operator.studies.service import Service
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage import PostgresStore
from tuning_operator.studies.storage.base import MemoryStore, Store
from tuning_operator.studies.study import heap
from tuning_operator.studies.study.surroundings import COMMIT_SECONDS

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds a sampling thread may keep the interpreter while a report waits; Python's own is 0.005."""
MEMORY = "memory:"
"""The database URL of a server that keeps nothing."""
KEEP_ALIVE_SECONDS = 75
"""Longer than most trials take between two reports, so that each need not shake hands anew."""


def run() -> None:
    """Run the study server with the settings of the environment, until a signal ends it."""
    settings = StudySettings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        uvloop.run(StudyServer(settings, make_store(settings)).run())
    except Replaced as end:
        raise SystemExit(str(end)) from None


class Replaced(Exception):  # noqa: N818  a state more than a mistake
    """Another process is the record's only writer now."""


class StudyServer(uvicorn.Server):
    """Uvicorn with the studies of a store: ready once it is the store's only writer, ended when it is not."""

    def __init__(self, settings: StudySettings, store: Store) -> None:
        verifier = Verifier(make_keys(settings), settings.operator_service_account)
        self.service = Service(store, verifier)
        self._certificate = Certificate.of(settings)
        super().__init__(uvicorn_config(create_app(self.service), settings, self._certificate))

    async def run(self, sockets: list[socket.socket] | None = None) -> None:  # type: ignore[override]
        """Serve until a signal comes, or another server takes the record over (Replaced)."""
        keeping = asyncio.create_task(self._keep_record())
        following = asyncio.create_task(self._certificate.follow()) if self._certificate else None
        try:
            await self.serve(sockets)
        finally:
            keeping.cancel()
            if following:
                following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the long polls; let what is in flight end; let go of the record."""
        self.service.feed.close()
        await super().shutdown(sockets)
        await self.service.stop()  # here: once `serve` returns, the signal ends the process

    async def _keep_record(self) -> None:
        """Become the record's only writer; end the server when that fails, or is no longer so."""
        try:
            await self.service.start()
            heap.settle()
            log.info("Ready: this server writes the record")
            await self.service.lost()
            raise Replaced("another study server writes the record now: this one ends")
        finally:
            self.should_exit = True


def uvicorn_config(app: FastAPI, settings: StudySettings, certificate: Certificate | None) -> uvicorn.Config:
    """Return how uvicorn is to serve."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="httptools",
        access_log=False,
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
    return MemoryStore() if url == MEMORY else PostgresStore(url, write_timeout=COMMIT_SECONDS)
