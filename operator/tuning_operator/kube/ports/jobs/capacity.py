"""What nodes can hold, and which pods wait for it."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta

from tuning_operator.kube.jobs.contention import WaitingPod, first_of_others
from tuning_operator.kube.ports.kube_api import Json, KubeApi, KubeError
from tuning_operator.protocol import StudyKey

FORBIDDEN = 403

NODES_TTL = timedelta(minutes=1)
"""How long the nodes' sizes are remembered: a list of a thousand nodes is large."""

PENDING_TTL = timedelta(seconds=5)
"""How long it is remembered which pods wait: all elastic studies look at the same ones."""

PATIENCE = timedelta(seconds=10)
"""How long a pod of others waits before GPUs are given back for it: the scheduler may need a moment."""


class Nodes:
    """How much the largest nodes can hold, as listed at most a minute ago."""

    def __init__(self, kube: KubeApi, clock: Callable[[], datetime]) -> None:
        self._kube, self._clock = kube, clock
        self._listed: tuple[datetime, Mapping[str, str] | None] | None = None

    async def largest(self) -> Mapping[str, str] | None:
        """Return the largest amount of each resource that a node has; None if nodes can't be listed."""
        now = self._clock()
        if self._listed is None or now - self._listed[0] > NODES_TTL:
            self._listed = now, await self._kube.largest_nodes()
        return self._listed[1]


class WaitingPods:
    """The pods of all studies, and of others, that wait for resources."""

    def __init__(
        self, kube: KubeApi, nodes: Nodes, namespaces: Collection[str], clock: Callable[[], datetime]
    ) -> None:
        self._kube, self._nodes, self._namespaces, self._clock = kube, nodes, namespaces, clock
        self._listed: tuple[datetime, list[WaitingPod]] | None = None
        self._with_minimum: set[StudyKey] = set()
        """Elastic studies whose waiting pods are beyond their minimum."""

    async def first_of_others(
        self, key: StudyKey, gpus: Collection[str], *, has_minimum: bool
    ) -> WaitingPod | None:
        """Return the pod of others that has waited longest for one of these kinds of GPUs, if any waits.

        Args:
            key: the study whose pods don't count, as don't those beyond the minimum of other elastic studies.
            gpus: names of resources.
            has_minimum: whether the study has its minimum.
        """
        now = self._clock()
        (self._with_minimum.add if has_minimum else self._with_minimum.discard)(key)
        if self._listed is None or now - self._listed[0] > PENDING_TTL:
            largest = await self._nodes.largest()
            lists = [await self._pending(namespace, key) for namespace in self._namespaces]
            pods = (WaitingPod.of(pod, largest) for found in lists for pod in found)
            self._listed = now, [pod for pod in pods if pod]
        return first_of_others(self._listed[1], {key, *self._with_minimum}, gpus, now - PATIENCE)

    async def _pending(self, namespace: str, key: StudyKey) -> list[Json]:
        """Return a namespace's pods that wait; none if it is not the study's, and may no longer be read."""
        try:
            return await self._kube.select("Pod", namespace, fields="status.phase=Pending")
        except KubeError as error:
            if error.status == FORBIDDEN and namespace not in ("", key.namespace):
                return []
            raise

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._with_minimum.discard(key)
