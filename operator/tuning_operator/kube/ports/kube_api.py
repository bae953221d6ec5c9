"""The requests to the Kubernetes API that the operator makes, and how they fail."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from tuning_operator.kube.ports.runs import RunsUnavailable

Json = dict[str, Any]

REFUSED = frozenset({400, 403, 422})
"""The statuses of requests that will get the same answer next time, until someone changes something."""
BROKEN_WEBHOOK = "failed calling webhook"
"""The same holds for the status 500 with this message: an admission webhook does not work."""


class KubeError(RunsUnavailable):
    """The API server rejected a request; or, with status 0, it gave no valid reply."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status, self.reason, self.message = status, reason, message
        self.retry_after = retry_after
        """After how many seconds the API server asks to repeat the request, if it does."""

    @property
    def is_refusal(self) -> bool:
        """Whether the answer stays the same until someone changes something."""
        return self.status in REFUSED or BROKEN_WEBHOOK in self.message


class Resources(Protocol):
    """Where TuningStudies are kept: the API server, or this machine. Every method raises KubeError."""

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object; None if it doesn't exist."""

    async def replace_status(self, body: Json) -> None:
        """Write a study's status; rejected (409) if the study changed since `body` was read."""

    async def record_event(self, body: Json) -> None:
        """Create an Event, or update the one of this name: its message, count and last time."""


class KubeApi(Resources, Protocol):
    """The requests that the operator makes. Every method raises KubeError."""

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Return the objects that match the label and the field selector, up to date."""

    async def snapshot(self, kind: str, namespace: str, labels: str, fields: str) -> tuple[list[Json], str]:
        """Return the objects that match, as of one moment, and the version from which to watch.

        Args:
            kind: of the objects.
            namespace: of the objects, or "" for all.
            labels: a label selector.
            fields: a field selector.
        """

    def watch(
        self, kind: str, namespace: str, labels: str, fields: str, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield changes since a version, until the API server ends the watch.

        Each is ADDED or MODIFIED, DELETED (also if the object no longer matches), or BOOKMARK: that is no
        object, but a newer version only.

        Raises:
            KubeError: with status 410 if the version is too old.
        """

    async def create(self, body: Json) -> Json | None:
        """Create an object and return it; None if one of this name already exists."""

    async def replace(self, body: Json) -> Json:
        """Write an object and return it; rejected (409) if it changed since `body` was read."""

    async def dry_run(self, body: Json) -> None:
        """Have an object validated as if it were created, unknown fields included."""

    async def patch(self, kind: str, namespace: str, name: str, part: str, **fields: Any) -> Json | None:
        """Change fields of a part of an object, such as its spec; return it, or None if there is none."""

    async def delete_job(self, namespace: str, name: str) -> Json | None:
        """Delete a Job, which is there, being deleted, until its pods are gone; None if there is none."""

    async def delete_pod_now(self, namespace: str, name: str) -> None:
        """Delete a pod if it exists, without waiting until its node confirms that it has ended."""

    async def largest_nodes(self) -> Mapping[str, str] | None:
        """Return the most that a single node has of each resource; None if nodes may not be read."""
