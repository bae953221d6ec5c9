"""What happens in the cluster and at the study server, turned into keys of studies to look at. Nothing else.

kopf is the informer. Its `on.event` handlers leave no finalizer, annotation or status behind.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any

import kopf

from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names

log = logging.getLogger(__name__)

POLL_SECONDS = 25.0
"""How long the study server may hold the question for changes: below the idle limits of usual proxies."""
RECONNECT_SECONDS = 2.0


def register(registry: kopf.OperatorRegistry, queue: WorkQueue[StudyKey]) -> None:
    """Have kopf add a study's key whenever the study, one of its Jobs or one of their pods changes."""
    kopf.on.login(registry=registry)(kopf.login_via_client)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def study_changed(namespace: str | None, name: str, **_: Any) -> None:
        queue.add(StudyKey(namespace or "", name))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    @kopf.on.event("", "v1", "pods", registry=registry)
    async def run_changed(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        if study := labels.get(names.LABEL_STUDY):
            queue.add(StudyKey(namespace or "", study))


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: an informer that asks the API server for nothing but our objects."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no watching of CRDs and namespaces, which would need more rights
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    # Filters on handlers work on the client: without these, every pod of the cluster would travel here.
    settings.watching.label_selectors["batch", "v1", "jobs"] = names.LABEL_STUDY
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_STUDY
    return settings


async def follow_changes(
    server: StudyServer, queue: WorkQueue[StudyKey], namespaces: Collection[str] = ()
) -> None:
    """Add the key of each study that changed at the study server: a result is acted on as it arrives.

    With `namespaces`, studies of others are left to the operators that serve them.
    """
    cursor, away = None, False
    while True:
        try:
            changes = await server.changes(cursor, 0 if away else POLL_SECONDS)
        except StudyServerUnavailable as error:
            log.warning("No news from the study server, again in %.0f s: %s", RECONNECT_SECONDS, error)
            away = True
            await asyncio.sleep(RECONNECT_SECONDS)
            continue
        if away:
            queue.hasten()
        cursor, away = changes.cursor, False
        for namespace, name in changes.studies:
            if not namespaces or namespace in namespaces:
                queue.add(StudyKey(namespace, name))
