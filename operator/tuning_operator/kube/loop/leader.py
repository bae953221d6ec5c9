"""Leader election: one of several operators is the leader and works, the others wait to take over.

The rules are those of client-go, on which Kubernetes' own controllers rely:

- A Lease names its holder, the leader, who renews it every RETRY_SECONDS.
- The others read it as often. One of them takes the Lease once it has not seen it change for LEASE_SECONDS,
  or as soon as its holder releases it. The API server accepts one of several simultaneous writes.
- A leader that could not renew the Lease for RENEWAL_SECONDS stops working, before another one may take it.
  So does one that finds another holder.
- How long ago the Lease was renewed is measured by the own monotonic clock: the times that are written to it
  are for people, and the clocks of the machines may differ.

A leader counts the time from when it sent its last successful renewal, not from the reply: the others count
from a later moment, however slowly the API server answers.

A process that was frozen for longer may still send a request or two before it notices. Nothing depends on
that: Jobs have the same names whoever creates them, the study server takes one result of a trial, and a
status is written only if the study has not changed.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Never

from tuning_operator.kube.loop.worker import until_first_ends
from tuning_operator.kube.ports.kube_api import Json, KubeApi, KubeError

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
RENEWAL_SECONDS = 10.0
RETRY_SECONDS = 2.0
RELEASE_SECONDS = 3.0
"""How long a leader that stops tries to release the Lease; otherwise, it expires."""


class LeadershipLost(Exception):  # noqa: N818
    """The Lease could not be renewed in time or has another holder, so another operator may work."""


class Election:
    """A candidate."""

    def __init__(
        self,
        kube: KubeApi,
        lease: str,
        identity: str,
        clock: Callable[[], datetime],
    ) -> None:
        """Start as one that waits.

        Args:
            kube: where the Lease is.
            lease: its NAMESPACE/NAME.
            identity: the holder's name, which no other process may have at the same time.
            clock: returns the time, which is written to the Lease.
        """
        self._kube, self._identity, self._clock = kube, identity, clock
        self._namespace, _, self._name = lease.partition("/")
        self._seen: Json = {}
        """The Lease's spec, as it was last seen or written."""
        self._changed = 0.0
        """When it was first seen so."""
        self._renewed = 0.0
        """When the last successful renewal was sent."""
        self._lease: Json | None = None
        """The Lease as this process wrote it; None: it has to be read first."""

    async def lead(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait to become the leader, then work until the work ends.

        The Lease is released only after the work has ended, also when this is cancelled.

        Raises:
            LeadershipLost: the work was cancelled.
        """
        log.info("Waiting to become the leader (Lease %s/%s)", self._namespace, self._name)
        await self._acquire()
        log.info("This operator is the leader now: %s", self._identity)
        try:
            await until_first_ends(work(), self._keep())
        finally:
            await self._release()

    async def _acquire(self) -> None:
        """Try until this process holds the Lease."""
        while await self._try() != self._identity:  # noqa: ASYNC110  the Lease is not watched
            await asyncio.sleep(RETRY_SECONDS)

    async def _keep(self) -> Never:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout_at(self._renewed + RENEWAL_SECONDS):
                    while (holder := await self._try()) != self._identity:
                        if holder:
                            raise LeadershipLost(f"{holder} is the leader now.")
                        await asyncio.sleep(RETRY_SECONDS)
            except TimeoutError:
                what = f"The Lease could not be renewed for {RENEWAL_SECONDS:.0f} s"
                raise LeadershipLost(f"{what}, so another operator may take over.") from None

    async def _try(self) -> str:
        """Create, take or renew the Lease; return who holds it now, or "" if that is not known."""
        sent = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(RENEWAL_SECONDS):
                holder = await self._create_or_renew()
        except (KubeError, TimeoutError) as error:
            log.warning("The Lease %s/%s: %s", self._namespace, self._name, str(error) or "no reply in time")
            self._lease = None
            return ""
        if holder == self._identity:
            self._renewed = sent
        return holder

    async def _create_or_renew(self) -> str:
        lease = self._lease or await self._kube.get("Lease", self._namespace, self._name)
        if lease is None:
            created = await self._kube.create(
                self._renewal({}, {"name": self._name, "namespace": self._namespace})
            )
            return self._identity if created else ""
        now, spec = asyncio.get_running_loop().time(), lease["spec"]
        if spec != self._seen:
            self._seen, self._changed = spec, now
        holder = str(spec.get("holderIdentity") or "")
        valid = now < self._changed + spec.get("leaseDurationSeconds", LEASE_SECONDS)
        if holder and holder != self._identity and valid:
            return holder
        self._lease = await self._kube.replace(self._renewal(spec, lease["metadata"]))
        return self._identity

    def _renewal(self, before: Json, metadata: Json) -> Json:
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {**before, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        if before.get("holderIdentity") != self._identity:
            transitions = before.get("leaseTransitions", -1) + 1
            spec |= {"holderIdentity": self._identity, "acquireTime": now, "leaseTransitions": transitions}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    async def _release(self) -> None:
        """Let another operator take over at once, unless one already has."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._kube.get("Lease", self._namespace, self._name)
                if lease and lease["spec"].get("holderIdentity") == self._identity:
                    await self._kube.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except (KubeError, TimeoutError) as error:
            log.warning("The Lease is not released, so it expires: %s", str(error) or "no reply in time")
