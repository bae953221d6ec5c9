"""What a namespace demands of the Jobs in it: its Pod Security Standard, and room in its quota."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta

from tuning_operator.kube.jobs.evidence import job_condition
from tuning_operator.kube.jobs.pod_template import is_restricted
from tuning_operator.kube.jobs.run_state import is_of_a_study
from tuning_operator.kube.plan.work import work_of_job
from tuning_operator.kube.ports.kube_api import Json, KubeApi
from tuning_operator.resource import names
from tuning_operator.resource.times import parse_time

NAMESPACE_TTL = timedelta(minutes=1)
"""How long it is remembered what a namespace enforces."""
LOGS_KEPT = timedelta(minutes=10)
"""How long Jobs that failed are kept whatever a quota says: their end has to be recorded, and logs read."""
ROOM = 16
"""How many finished Jobs may be going away at a time when a quota on the number of Jobs is used up."""
GOING = timedelta(seconds=30)
"""How long a deleted Job is expected to go away: a finalizer, also of its pods, may keep it forever."""
ROOM_TTL = timedelta(seconds=2)
"""How long this is not repeated in a namespace: runs start side by side, and a quota takes a moment."""


class Namespaces:
    """Remembers for a minute what a namespace enforces, and for seconds whether room was made in a quota."""

    def __init__(self, kube: KubeApi, clock: Callable[[], datetime]) -> None:
        self._kube, self._clock = kube, clock
        self._restricted: dict[str, tuple[datetime, bool]] = {}
        """When it was last seen whether a namespace enforces the Pod Security Standard `restricted`."""
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Runs start side by side, and one request for their namespace is enough."""
        self._making_room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._made_room: dict[str, tuple[datetime, bool]] = {}
        """When finished Jobs of a namespace were last looked for, and whether any was going away."""

    async def is_restricted(self, namespace: str) -> bool:
        """Return whether the namespace enforces the Pod Security Standard `restricted`."""
        now = self._clock()
        async with self._reading[namespace]:
            when, restricted = self._restricted.get(namespace, (now - NAMESPACE_TTL, False))
            if now - when >= NAMESPACE_TTL:
                found = await self._kube.get("Namespace", "", namespace)
                restricted = found is not None and is_restricted(found)
                self._restricted[namespace] = now, restricted
        return restricted

    async def make_room(self, namespace: str) -> bool:
        """Delete finished Jobs that a quota counts; return whether any was going away a moment ago."""
        async with self._making_room[namespace]:
            when, deleted = self._made_room.get(namespace, (self._clock() - ROOM_TTL, False))
            if self._clock() - when >= ROOM_TTL:
                deleted = await self._delete_finished(namespace)
                self._made_room[namespace] = self._clock(), deleted
        return deleted

    def forget(self, namespace: str) -> None:
        """Drop what is remembered of a namespace without studies."""
        for remembered in (self._restricted, self._reading, self._making_room, self._made_room):
            remembered.pop(namespace, None)

    async def _delete_finished(self, namespace: str) -> bool:
        """Delete finished Jobs of any study, whose record stays; return whether any is going away.

        Those that succeeded go first: their result is recorded. Those that failed are kept for a while.
        """
        found = await self._kube.select("Job", namespace, labels=names.LABEL_STUDY)
        over = [
            body
            for body in found
            if is_of_a_study(body)
            and work_of_job(body["metadata"])
            and job_condition(body, "Complete", "Failed")
        ]
        over.sort(key=lambda body: str(body["metadata"].get("creationTimestamp")))
        going = [body for body in over if self._is_going(body)]
        there = [body for body in over if "deletionTimestamp" not in body["metadata"]]
        succeeded = [body for body in there if job_condition(body, "Complete")]
        finished = succeeded or [body for body in there if self._is_long_over(body)]
        for body in finished[: max(0, ROOM - len(going))]:
            await self._kube.delete_job(namespace, body["metadata"]["name"])
        return bool(finished or going)

    def _is_going(self, job: Json) -> bool:
        deleted = parse_time(job["metadata"].get("deletionTimestamp"))
        return deleted is not None and self._clock() - deleted < GOING

    def _is_long_over(self, job: Json) -> bool:
        failed = job_condition(job, "Failed")
        end = parse_time(failed.get("lastTransitionTime")) if failed else None
        return end is not None and self._clock() - end > LOGS_KEPT
