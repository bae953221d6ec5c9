"""Turns what happens in the cluster into keys in the queue. Nothing else.

kopf is only the informer: its `on.event` handlers add no finalizer, annotation or status to an object.
"""

from typing import Any

import kopf

from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names


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
