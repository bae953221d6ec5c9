"""The Jobs and pods of studies, as watches keep them up to date: a pass reads them without a request."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Never

from tuning_operator.kube.ports.kube_api import Json, KubeApi, KubeError
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names

log = logging.getLogger(__name__)

NOT_SUCCEEDED = {"Job": "status.successful=0", "Pod": "status.phase!=Succeeded"}
"""The kinds, each with the field selector that leaves out what succeeded: a long study has thousands."""
POD_FIELDS = ("activeDeadlineSeconds", "nodeName")
"""What is read of a Job's pod template."""
GONE = 410
"""The API server no longer knows the version from which to watch."""
FORBIDDEN = 403
"""The namespace was deleted, or the operator's Role in it."""
REWATCH_SECONDS = 2.0
LAST_REWATCH = 60.0  # seconds


@dataclass
class _Copy:
    """What is known of one kind in one namespace, or in all."""

    version: int = 0
    """The last change that the watch has reported; 0: nothing is known yet."""
    studies: dict[StudyKey, dict[str, Json]] = field(default_factory=dict)
    """Objects by study and name."""
    keys: dict[tuple[str, str], StudyKey] = field(default_factory=dict)
    """The study of each object, by namespace and name."""
    dropped: set[str] = field(default_factory=set)
    """The uids of objects that are not kept any longer, though the watch may still report earlier changes."""

    def replace(self, items: Iterable[Json], version: int) -> None:
        """Take over a list, and keep what was written after it."""
        later = [
            body for known in self.studies.values() for body in known.values() if _version(body) > version
        ]
        self.studies.clear()
        self.keys.clear()
        listed = list(items)
        self.dropped.intersection_update(body["metadata"]["uid"] for body in listed)
        for body in (*listed, *later):
            self.store(body)
        self.version = version

    def drop(self, namespace: str, name: str) -> None:
        """Drop an object before the watch reports that it is gone, if it is known."""
        if key := self.keys.get((namespace, name)):
            body = self.studies[key][name]
            self._remove(key, name)
            self.dropped.add(body["metadata"]["uid"])

    def store(self, body: Json) -> None:
        """Take over an object unless a newer version of it is known, or it was dropped."""
        if body["metadata"]["uid"] not in self.dropped and self._forget(body):
            key = _study_of(body)
            self.studies.setdefault(key, {})[body["metadata"]["name"]] = body
            self.keys[key.namespace, body["metadata"]["name"]] = key

    def take(self, event: str, body: Json) -> None:
        """Take over a change that the watch reports."""
        if event == "DELETED":
            self.dropped.discard(body["metadata"]["uid"])
            self._forget(body)
        else:
            self.store(body)

    def _forget(self, body: Json) -> bool:
        """Remove the version of an object that is known, if any; return False if that is a newer one."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        key = self.keys.get((namespace, name))
        if key is None:
            return True
        if _version(self.studies[key][name]) > _version(body):
            return False
        self._remove(key, name)
        return True

    def _remove(self, key: StudyKey, name: str) -> None:
        del self.studies[key][name], self.keys[key.namespace, name]
        if not self.studies[key]:
            del self.studies[key]


class Mirror:
    """A copy of the Jobs and pods of studies that have not succeeded.

    It lags behind the API server by the moment that an event takes. What this process writes is entered at
    once (`put`), so that no pass repeats what the one before it did.
    """

    def __init__(self, kube: KubeApi, namespaces: Collection[str] = ("",)) -> None:
        """Start empty.

        Args:
            kube: the API server.
            namespaces: where studies are; "" is everywhere.
        """
        self._kube = kube
        self._copies = {(kind, place): _Copy() for place in namespaces for kind in NOT_SUCCEEDED}

    def select(self, kind: str, key: StudyKey) -> list[Json] | None:
        """Return the study's objects, without the parts that nothing reads; None if they are not known."""
        copy = self._copy(kind, key.namespace)
        return list(copy.studies.get(key, {}).values()) if copy and copy.version else None

    def put(self, kind: str, body: Json | None) -> None:
        """Enter an object as a reply to a write shows it, unless the watch has reported that already.

        One that succeeded is dropped, since the watch does not report its further changes.
        """
        copy = self._copy(kind, body["metadata"]["namespace"]) if body else None
        if body and copy and _version(body) > copy.version:
            if _has_succeeded(kind, body):
                copy.drop(body["metadata"]["namespace"], body["metadata"]["name"])
            else:
                copy.store(_trimmed(kind, body))

    def drop(self, kind: str, namespace: str, name: str) -> None:
        """Drop an object that does not exist any longer, as a reply to a write shows."""
        if copy := self._copy(kind, namespace):
            copy.drop(namespace, name)

    async def follow(self, changed: Callable[[StudyKey], None]) -> None:
        """Keep the copy up to date, and call `changed` with the study of each change, until cancelled."""
        for copy in self._copies.values():
            copy.version = 0  # whatever an earlier call has left is old
        async with asyncio.TaskGroup() as tasks:
            for (kind, namespace), copy in self._copies.items():
                tasks.create_task(self._follow(kind, namespace, copy, changed))

    async def _follow(
        self, kind: str, namespace: str, copy: _Copy, changed: Callable[[StudyKey], None]
    ) -> Never:
        """List, then watch; again from the last change whenever the connection ends.

        If the API server has forgotten that change, or refuses to be read, begin with a list again.
        """
        version, refusals = "", 0
        while True:
            pause = REWATCH_SECONDS
            try:
                version = version or await self._list(kind, namespace, copy, changed)
                async for event, body in self._kube.watch(
                    kind, namespace, names.LABEL_STUDY, NOT_SUCCEEDED[kind], version
                ):
                    if event != "BOOKMARK":  # whose object has nothing but a version
                        copy.take(event, _trimmed(kind, body))
                        changed(_study_of(body))
                    version = body["metadata"]["resourceVersion"]
                    copy.version = int(version)
                refusals = 0
            except KubeError as error:
                refusals = refusals + 1 if error.status == FORBIDDEN else 0
                if refusals:
                    copy.version = 0  # it gets old until it may be read again
                    pause = min(pause * 2.0 ** min(refusals - 1, 16), LAST_REWATCH)
                pause = max(pause, error.retry_after or 0)
                if error.status in (GONE, FORBIDDEN):
                    version = ""
                if error.status != GONE and refusals <= 1:
                    log.warning("%ss can't be watched; retrying in %.0f s: %s", kind, pause, error)
            await asyncio.sleep(pause)

    async def _list(self, kind: str, namespace: str, copy: _Copy, changed: Callable[[StudyKey], None]) -> str:
        items, version = await self._kube.snapshot(kind, namespace, names.LABEL_STUDY, NOT_SUCCEEDED[kind])
        if not version.isdecimal():
            raise KubeError(0, "InvalidReply", f"the list of {kind} objects has no version")
        before = set(copy.studies)
        copy.replace((_trimmed(kind, body) for body in items), int(version))
        for key in before.union(copy.studies):
            changed(key)
        return version

    def _copy(self, kind: str, namespace: str) -> _Copy | None:
        return self._copies.get((kind, namespace)) or self._copies.get((kind, ""))


def _study_of(body: Json) -> StudyKey:
    """Return the key of the study that an object belongs to."""
    metadata = body["metadata"]
    return StudyKey(metadata["namespace"], metadata["labels"][names.LABEL_STUDY])


def _version(body: Json) -> int:
    """Return an object's resource version: Kubernetes orders those of one kind as numbers."""
    return int(body["metadata"]["resourceVersion"])


def _has_succeeded(kind: str, body: Json) -> bool:
    """Return whether an object is left out by the field selector of its kind."""
    status = body.get("status", {})
    return status.get("phase") == "Succeeded" if kind == "Pod" else bool(status.get("succeeded"))


def _trimmed(kind: str, body: Json) -> Json:
    """Return an object without what takes most of its memory: who set which field, and what its pod runs."""
    metadata, spec = dict(body["metadata"]), dict(body.get("spec", {}))
    metadata.pop("managedFields", None)
    if kind == "Job" and "template" in spec:
        pod = spec["template"].get("spec", {})
        spec["template"] = {"spec": {k: v for k, v in pod.items() if k in POD_FIELDS}}
        metadata["annotations"] = {
            k: v for k, v in metadata.get("annotations", {}).items() if k != names.ANNOTATION_PARAMETERS
        }
    for part in ("initContainers", "containers"):
        if part in spec:
            spec[part] = [
                {k: v for k, v in container.items() if k not in ("env", "volumeMounts")}
                for container in spec[part]
            ]
    return {"metadata": metadata, "spec": spec, "status": body.get("status", {})}
