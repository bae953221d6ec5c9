"""KubeApi in memory. The contract suite, which runs on a real API server too, proves that it is like one."""

from __future__ import annotations

import asyncio
import pickle
import re
from typing import TYPE_CHECKING, Any

from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.resource import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

Json = dict[str, Any]
Place = tuple[str, str, str]


class FakeKube:
    """Objects by (kind, namespace, name), with resource versions, selectors and owner references."""

    def __init__(self) -> None:
        self.objects: dict[Place, Json] = {}
        self.namespace: Json = {"uid": "namespace-uid"}
        """The metadata of the only namespace; empty: it was deleted."""
        self.largest: Mapping[str, str] | None = None
        self.slow: set[str] = set()
        """Jobs whose pods take their time to end, so that a deleted one is there until `remove`."""
        self.admit: Callable[[Json], None] = lambda _: None
        """Raises KubeError for an object that a quota or a policy refuses."""
        self.invalid: tuple[int, str, str] | None = None
        """How the API server refuses Jobs at their validation."""
        self._version = 1
        self._changes: list[tuple[str, Json, Json | None]] = []
        """How each object has changed, and what it was before."""
        self._changed = asyncio.Event()

    # --- KubeApi

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        if kind == "Namespace":
            return {"metadata": {"name": name, **self.namespace}} if self.namespace else None
        return _copied(self.objects.get((kind, namespace, name)))

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        found = [
            body
            for place, body in sorted(self.objects.items())
            if place[0] == kind and (not namespace or place[1] == namespace)
        ]
        return [_copied(o) for o in found if _labelled(o, labels) and _fielded(o, fields)]

    async def snapshot(self, kind: str, namespace: str, labels: str, fields: str) -> tuple[list[Json], str]:
        places = {place[1] for place in self.objects} if not namespace else {namespace}
        found = [o for n in sorted(places) for o in await self.select(kind, n, labels=labels, fields=fields)]
        return found, str(self._version)

    async def watch(
        self, kind: str, namespace: str, labels: str, fields: str, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        seen = int(version)
        while True:
            for event, body, before in list(self._changes):
                number = int(body["metadata"]["resourceVersion"])
                there = body["kind"] == kind and namespace in ("", body["metadata"]["namespace"])
                if number > seen and there:
                    seen = number
                    matches, matched = (
                        o is not None and _labelled(o, labels) and _fielded(o, fields) for o in (body, before)
                    )
                    if matches or matched:
                        yield event if matches else "DELETED", _copied(body)
                seen = max(seen, number)
            await self._changed.wait()

    async def create(self, body: Json) -> Json | None:
        place = _place(body)
        self.admit(body)  # before the API server finds an object of this name
        if place in self.objects:
            return None
        created = _copied(body)
        self._version += 1
        created["metadata"] |= {"uid": f"uid-{self._version}", "generation": 1}
        self._store(created)
        return await self.get(*place)

    async def replace(self, body: Json) -> Json:
        there = self._unchanged(body)
        self._store({**_copied(body), "metadata": there["metadata"]})
        return _copied(self.objects[_place(body)])

    async def dry_run(self, body: Json) -> None:
        if self.invalid:
            raise KubeError(*self.invalid)

    async def delete_job(self, namespace: str, name: str) -> Json | None:
        job = self.objects.get(("Job", namespace, name))
        if job is None:
            return None
        deleted = {"deletionTimestamp": "2026-11-21T12:00:00Z"}
        self._store({**job, "metadata": {**job["metadata"], **deleted}})
        there = await self.get("Job", namespace, name)
        if name not in self.slow or not job.get("status", {}).get("active"):
            self.remove("Job", namespace, name)
        return there

    async def delete_pod_now(self, namespace: str, name: str) -> None:
        self.remove("Pod", namespace, name)

    async def patch(self, kind: str, namespace: str, name: str, part: str, **fields: Any) -> Json | None:
        if there := self.objects.get((kind, namespace, name)):
            self._store({**there, part: {**there.get(part, {}), **_copied(fields)}})
        return await self.get(kind, namespace, name)

    async def replace_status(self, body: Json) -> None:
        self._store({**self._unchanged(body), "status": _copied(body["status"])})

    async def record_event(self, body: Json) -> None:
        there = self.objects.get(_place(body))
        if there is None:
            await self.create(body)
        else:
            self._store({**there, **{key: body[key] for key in ("message", "count", "lastTimestamp")}})

    async def largest_nodes(self) -> Mapping[str, str] | None:
        return self.largest

    # --- what others do to the cluster

    def put(self, body: Json) -> None:
        """Create or replace an object as it is."""
        self._store(_copied(body))

    def edit(self, kind: str, namespace: str, name: str, **spec: Any) -> None:
        """Change fields of a spec, as a user does."""
        body = _copied(self.objects[kind, namespace, name])
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self._store(body)

    def set_status(self, kind: str, namespace: str, name: str, **status: Any) -> None:
        """Change fields of a status, as a controller does."""
        body = _copied(self.objects[kind, namespace, name])
        body["status"] = {**body.get("status", {}), **status}
        self._store(body)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, and what it owns."""
        gone = self.objects.pop((kind, namespace, name), None)
        if gone:
            self._version += 1
            metadata = gone["metadata"] | {"resourceVersion": str(self._version)}
            self._announce("DELETED", {**gone, "kind": kind, "metadata": metadata}, gone)
        uid = gone["metadata"]["uid"] if gone else None
        for place, body in list(self.objects.items()):
            if uid and any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences", [])):
                self.remove(*place)

    def named(self, kind: str) -> set[str]:
        """Return the names of all objects of a kind."""
        return {place[2] for place in self.objects if place[0] == kind}

    def study(self, name: str = "mnist", namespace: str = "ml") -> Json:
        return self.objects[names.KIND, namespace, name]

    def events(self) -> list[tuple[str, int]]:
        """Return (reason, count) of the Events recorded."""
        return [
            (body["reason"], body["count"]) for place, body in self.objects.items() if place[0] == "Event"
        ]

    def _unchanged(self, body: Json) -> Json:
        there = self.objects.get(_place(body))
        if there is None:
            raise KubeError(404, "NotFound", f'"{body["metadata"]["name"]}" not found')
        if there["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise KubeError(409, "Conflict", "the object has been modified")
        return there

    def _store(self, body: Json) -> None:
        self._version += 1
        metadata = body["metadata"] | {"resourceVersion": str(self._version)}
        metadata.setdefault("uid", f"uid-{self._version}")
        before = self.objects.get(_place(body))
        self.objects[_place(body)] = {**body, "metadata": metadata}
        self._announce("MODIFIED", self.objects[_place(body)], before)

    def _announce(self, event: str, body: Json, before: Json | None) -> None:
        self._changes.append((event, body, before))
        self._changed.set()
        self._changed = asyncio.Event()


def _copied(body: Any) -> Any:
    """Return a deep copy. (copy.deepcopy took most of the time of these tests.)"""
    return pickle.loads(pickle.dumps(body))


def _place(body: Json) -> Place:
    return body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]


def _labelled(body: Json, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    for term in re.split(r",(?![^(]*\))", selector) if selector else []:
        if listed := re.fullmatch(r"(\S+) in \(([^)]*)\)", term):
            if labels.get(listed[1]) not in listed[2].split(","):
                return False
        else:
            key, equals, value = term.partition("=")
            if key not in labels or (equals and labels[key] != value):
                return False
    return True


def _fielded(body: Json, selector: str) -> bool:
    for term in selector.split(",") if selector else []:
        path, operator, value = re.split(r"(!?=)", term, maxsplit=1)
        if path == "status.successful":
            found: Any = body.get("status", {}).get("succeeded", 0)
        else:
            found = body
            for part in path.split("."):
                found = found.get(part, "")
        if (str(found) == value) != (operator == "="):
            return False
    return True
