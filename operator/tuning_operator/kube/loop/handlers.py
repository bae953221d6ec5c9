"""Turns what happens in the cluster into keys in the queue. Nothing else.

kopf is only the informer: its `on.event` handlers add no finalizer, annotation or status to an object.
"""

from typing import Any

import kopf

from tuning_operator.kube.loop.informer import session
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names


def register(registry: kopf.OperatorRegistry, queue: WorkQueue[StudyKey]) -> None:
    """Have a study's key added whenever the study changes."""

    @kopf.on.login(registry=registry)
    async def login(**known: Any) -> kopf.AiohttpSession | None:
        info = kopf.login_via_client(**known)
        return session(info) if info else None

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def study_changed(namespace: str | None, name: str, **_: Any) -> None:
        queue.add(StudyKey(namespace or "", name))
