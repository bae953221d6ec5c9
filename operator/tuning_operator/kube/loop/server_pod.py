"""Replaces the study server's pod when its node is lost."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.ports.kube_api import KubeApi, KubeError

log = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
PATIENCE = timedelta(seconds=60)
"""How long the kubelet may take to confirm the end of a pod after its grace period."""


async def replace_lost_server(
    kube: KubeApi, namespace: str, name: str, now: Callable[[], datetime], seconds: float = CHECK_SECONDS
) -> None:
    """Delete the study server's pod for good if nobody confirms its end, so that its StatefulSet replaces it.

    A StatefulSet waits for that, in case the pod still runs. The study server's may: the database lets only
    one server write, and the new one waits until it is the one.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            pod = await kube.get("Pod", namespace, name)
            if pod is not None and is_lost(pod, now()):
                log.warning("The end of the pod %s/%s is not confirmed: replacing it", namespace, name)
                await kube.delete_pod_now(namespace, name)
        except KubeError as error:
            log.warning("The pod %s/%s can't be checked: %s", namespace, name, error)


def is_lost(pod: dict[str, Any], now: datetime) -> bool:
    """Return whether a deleted pod should have been gone for a while."""
    ended = pod["metadata"].get("deletionTimestamp")  # the end of its grace period
    return ended is not None and now - datetime.fromisoformat(ended) > PATIENCE
