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

from tuning_operator.studies.app import create_app
from tuning_operator.studies.certificate import Certificate
from tuning_operator.studies.keyset import ApiServer, PublishedKeys
from tuning_operator.studies.service import Service
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.store import MemoryStore, Store
from tuning_operator.studies.tokens import Keys, LocalKeys, Verifier

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds a sampling thread may keep the interpreter while a report waits; Python's own is 0.005."""
KEEP_ALIVE_SECONDS = 75
"""Longer than most trials take between two reports, so that each need not shake hands anew."""


def run() -> None:
    """Run the study server with the settings of the environment, until a signal ends it."""
    settings = StudySettings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    uvloop.run(serve(settings))


async def serve(settings: StudySettings) -> None:
    """Serve until a signal comes, or another server takes the record over."""
    service = Service(make_store(settings), Verifier(make_keys(settings), settings.operator_service_account))
    certificate = Certificate.of(settings)
    server = StudyServer(uvicorn_config(create_app(service), settings, certificate), service)
    tasks = [asyncio.create_task(keep_record(service, server))]
    if certificate:
        tasks.append(asyncio.create_task(certificate.follow()))
    try:
        await server.serve()
    finally:
        for task in tasks:
            task.cancel()
    await _raise_failure(tasks[0])


class StudyServer(uvicorn.Server):
    """Uvicorn, which answers the long polls before it waits for what is in flight, and flushes at the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; let what is in flight end; let go of the record."""
        self._service.feed.close()
        await super().shutdown(sockets)
        await self._service.stop()  # here: once `serve` returns, the signal ends the process


async def keep_record(service: Service, server: uvicorn.Server) -> None:
    """Become the record's only writer; end the server when that fails, or is no longer so."""
    try:
        await service.start()
        log.info("Ready: this server writes the record")
        await service.lost()
        raise SystemExit("another study server writes the record now")
    finally:
        server.should_exit = True


def uvicorn_config(
    app: FastAPI, settings: StudySettings, certificate: Certificate | None = None
) -> uvicorn.Config:
    """Return how uvicorn is to serve."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="httptools",
        access_log=False,
        log_config=None,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    if certificate:
        config.ssl_context_factory = lambda *_: certificate.context
    return config


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
    return MemoryStore()


async def _raise_failure(task: asyncio.Task[None]) -> None:
    """Pass on what ended a task, unless it was cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await task
