"""Publishes a pass: at most one status write, and the Events after it has succeeded."""

import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tuning_operator.kube.ports.kube_api import KubeError, Resources
from tuning_operator.kube.status.events import Event
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudyStatus
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import rfc3339

log = logging.getLogger(__name__)

EVENT_MESSAGE_LIMIT = 1000
"""Characters; the API server refuses more than 1024."""


async def publish(
    resources: Resources,
    body: dict[str, Any],
    status: TuningStudyStatus,
    events: Sequence[Event],
    now: datetime,
) -> None:
    """Write the status if it differs from the study's, then the Events.

    Raises:
        KubeError: the status was not written; no Event was, either, so that the next pass records them.
    """
    written = status.model_dump(by_alias=True, exclude_none=True, mode="json")
    if written == body.get("status", {}):
        return
    await resources.replace_status({**body, "status": written})
    for event in events:
        try:
            await resources.record_event(_event(body, event, now))
        except KubeError as error:  # an Event is a courtesy; the status is written
            log.warning("Event %s was not recorded: %s", event.reason, error)


def _event(body: dict[str, Any], event: Event, now: datetime) -> dict[str, Any]:
    """Return the Event, named by the study and what happened, so that nothing is recorded twice."""
    metadata = body["metadata"]
    what = f"{metadata['uid']}/{event.reason}/{event.key}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(what.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "reason": event.reason,
        "message": shorten(event.message, EVENT_MESSAGE_LIMIT),
        "type": "Warning" if event.warning else "Normal",
        "count": event.count,
        "firstTimestamp": rfc3339(now),
        "lastTimestamp": rfc3339(now),
        "source": {"component": "tuning-operator"},
        "reportingComponent": "tuning-operator",
    }
