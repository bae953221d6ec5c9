"""The Kubernetes API as the operator needs it: few calls, plain dicts. The only import of `kubernetes`."""

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

from kubernetes.aio import client, config

from tuning_operator.resource import names

Json = dict[str, Any]

REQUEST_SECONDS = 30.0
PAGE = 500
RESOURCES = {
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    names.KIND: f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/{names.PLURAL}",
}


class KubeError(Exception):
    """The API server refused a request, or could not be reached (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status, self.reason, self.message = status, reason, message


class KubeApi(Protocol):
    """What the operator asks of Kubernetes. Every method raises KubeError."""

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object; None if there is none."""

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Return the objects that match the label and the field selector, up to date."""

    async def create(self, body: Json) -> bool:
        """Create an object; return False if one of this name is there already."""

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job, its pods before it: until they are gone, it is there and being deleted.

        A Job that is gone is no error.
        """

    async def replace_status(self, body: Json) -> None:
        """Write a study's status; refused (409) if the study changed since `body` was read."""

    async def record_event(self, body: Json) -> None:
        """Create an Event, or update the one of this name: its message, count and last time."""

    async def largest_nodes(self) -> Mapping[str, int] | None:
        """Return the most any one node has of each extended resource; None if nodes may not be read."""


class KubernetesApi:
    """KubeApi on a real API server."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object; None if there is none."""
        try:
            return await self._request("GET", _path(kind, namespace, name))
        except KubeError as error:
            # A 404 without the object's name is about the path: the CRD may be missing for a moment.
            if error.status == 404 and f'"{name}"' in error.message:
                return None
            raise

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Return the objects that match the label and the field selector, up to date."""
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE)}
        return await self._pages(
            _path(kind, namespace), {key: value for key, value in query.items() if value}
        )

    async def create(self, body: Json) -> bool:
        """Create an object; return False if one of this name is there already."""
        try:
            await self._request("POST", _path(body["kind"], body["metadata"]["namespace"]), body=body)
        except KubeError as error:
            if error.reason == "AlreadyExists":
                return False
            raise
        return True

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job, its pods before it; a Job that is gone is no error."""
        options = {"propagationPolicy": "Foreground"}
        try:
            await self._request("DELETE", _path("Job", namespace, name), body=options)
        except KubeError as error:
            if error.status != 404:
                raise

    async def replace_status(self, body: Json) -> None:
        """Write a study's status; refused (409) if the study changed since `body` was read."""
        metadata = body["metadata"]
        path = f"{_path(names.KIND, metadata['namespace'], metadata['name'])}/status"
        await self._request("PUT", path, body=body)

    async def record_event(self, body: Json) -> None:
        """Create an Event, or update the one of this name: its message, count and last time."""
        if await self.create(body):
            return
        changes = {key: body[key] for key in ("message", "count", "lastTimestamp")}
        path = _path("Event", body["metadata"]["namespace"], body["metadata"]["name"])
        await self._request("PATCH", path, body=changes, content_type="application/merge-patch+json")

    async def largest_nodes(self) -> Mapping[str, int] | None:
        """Return the most any one node has of each extended resource; None if nodes may not be read."""
        try:
            nodes = await self._pages("/api/v1/nodes", {"limit": str(PAGE)})
        except KubeError as error:
            if error.status == 403:
                return None
            raise
        largest: dict[str, int] = {}
        for node in nodes:
            for resource, amount in node.get("status", {}).get("allocatable", {}).items():
                if "/" in resource and str(amount).isdecimal():
                    largest[resource] = max(largest.get(resource, 0), int(amount))
        return largest

    async def serves_studies(self) -> bool:
        """Tell whether the CRD is there."""
        try:
            await self._request("GET", f"/apis/{names.API_VERSION}")
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _pages(self, path: str, query: dict[str, str]) -> list[Json]:
        items: list[Json] = []
        token = ""
        while True:
            page = await self._request("GET", path, query={**query, **({"continue": token} if token else {})})
            items += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return items

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request; the client's models are left out, they would parse every pod into pydantic."""
        try:
            serialized = await self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*serialized, _request_timeout=REQUEST_SECONDS)
            content: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (TimeoutError, OSError, client.ApiException) as error:
            raise KubeError(0, "Unreachable", f"the API server does not answer: {error!r}") from error
        if response.status >= 400:
            raise _refusal(response.status, content.decode(errors="replace"))
        return json.loads(content)  # type: ignore[no-any-return]


async def connect() -> KubernetesApi:
    """Return the API of the cluster that the operator runs in, else of the current kubeconfig."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return KubernetesApi(client.ApiClient(configuration))


def _path(kind: str, namespace: str, name: str | None = None) -> str:
    collection = RESOURCES[kind].format(namespace=quote(namespace, safe=""))
    return f"{collection}/{quote(name, safe='')}" if name is not None else collection


def _refusal(status: int, text: str) -> KubeError:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    return KubeError(status, answer.get("reason", ""), answer.get("message") or text[:500])
