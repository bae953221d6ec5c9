"""Turns what happens in the cluster and at the study server into keys in the queue. Nothing else.

kopf is only the informer: its `on.event` handlers add no finalizer, annotation or status to an object.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

import kopf

from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.runs import Runs
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names

log = logging.getLogger(__name__)

POLL_SECONDS = 25.0
"""How long the study server may wait for changes before it replies: less than proxies' usual idle timeout."""
RECONNECT_SECONDS = 2.0
RUN_EVENT_SECONDS = 0.1
"""Delay before a pass over the study of a Job or pod that changed. A Job and its pod change several times as
they start and end, and a study's runs often do so together: one pass serves all. No result waits for it, as
results come through the study server's change feed."""


def register(registry: kopf.OperatorRegistry, queue: WorkQueue[StudyKey]) -> None:
    """Have a study's key added whenever the study changes."""
    kopf.on.login(registry=registry)(kopf.login_via_client)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def study_changed(namespace: str | None, name: str, **_: Any) -> None:
        queue.add(StudyKey(namespace or "", name))


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying and comparing every object at each event, for handlers that don't exist here.

    That took more time than the operator's own work.
    """

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:  # noqa: ARG002
        """Return nothing to compare."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> None:
        """Return nothing to compare with."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Leave the object as it is."""


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: an informer that requests nothing but our objects from the API server."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no watching of CRDs and namespaces, which would need more rights
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    return settings


async def follow_runs(runs: Runs, queue: WorkQueue[StudyKey]) -> None:
    """Add a study's key shortly after one of its runs changed."""
    await runs.watch(lambda key: queue.add_after(key, RUN_EVENT_SECONDS))


async def follow_changes(
    server: StudyServer, queue: WorkQueue[StudyKey], namespaces: Collection[str] = ()
) -> None:
    """Add the key of each study that changed at the study server, so that results are acted on at once.

    With `namespaces`, studies in other namespaces are ignored: other operators serve them.
    """
    cursor, unavailable = None, False
    while True:
        try:
            changes = await server.changes(cursor, 0 if unavailable else POLL_SECONDS)
        except StudyServerUnavailable as error:
            log.warning("The study server is unavailable; retrying in %.0f s: %s", RECONNECT_SECONDS, error)
            unavailable = True
            await asyncio.sleep(RECONNECT_SECONDS)
            continue
        if unavailable:
            queue.retry_now()
        cursor, unavailable = changes.cursor, False
        for namespace, name in changes.studies:
            if not namespaces or namespace in namespaces:
                queue.add(StudyKey(namespace, name))
