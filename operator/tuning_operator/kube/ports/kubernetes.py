"""The Kubernetes API as the operator needs it, with plain dicts. Only this module imports `kubernetes`."""

import asyncio
import contextlib
import difflib
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, get_args
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config
from prometheus_client import Counter
from pydantic_core import from_json

from tuning_operator.kube.jobs.resources import largest_of
from tuning_operator.kube.ports.kube_api import Json, KubeError
from tuning_operator.resource import names

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
LONGEST_WAIT = 60.0
"""Seconds that a request may wait because the API server asks to repeat it later: it asks for 32 at most."""
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500
WATCH_SECONDS = 300
"""The API server ends a watch after this time."""
SILENCE_SECONDS = 150.0
"""A watch without even a bookmark, which comes each minute, is cut off."""
PAGE = 500
CLOCK_TOLERANCE = timedelta(seconds=5)
"""A reply takes a moment, and its Date has whole seconds."""
METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
"""HTTP methods by Kubernetes' verbs."""
RESOURCES = {
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "Namespace": "/api/v1/namespaces",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    names.KIND: f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/{names.PLURAL}",
}


class KubernetesApi:
    """KubeApi on a real API server; counts its requests."""

    def __init__(
        self,
        api: client.ApiClient,
        requests: Counter,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._requests, self._clock = api, requests, clock
        self._ahead = timedelta()

    def now(self) -> datetime:
        """Return the time, corrected by the API server's last reply if this machine's clock is wrong.

        Whether a study's timeout has elapsed must not depend on a clock that jumps for a moment.
        """
        return self._clock() + self._ahead

    def _compare_clocks(self, date: str | None) -> None:
        ahead = (parsedate_to_datetime(date) if date else self._clock()) - self._clock()
        if abs(ahead) <= CLOCK_TOLERANCE:
            ahead = timedelta()
        if abs(ahead - self._ahead) > CLOCK_TOLERANCE:
            log.warning("The clock of the API server is ahead of this machine's by %s, and is used", ahead)
        self._ahead = ahead

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object; None if it doesn't exist."""
        try:
            return await self._request("get", kind, _path(kind, namespace, name))
        except KubeError as error:
            # A 404 without the object's name is about the path: the CRD may be missing for a moment.
            if error.status == 404 and f'"{name}"' in error.message:
                return None
            raise

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Return the objects that match the label and the field selector, up to date."""
        items, _ = await self.snapshot(kind, namespace, labels, fields)
        return items

    async def snapshot(self, kind: str, namespace: str, labels: str, fields: str) -> tuple[list[Json], str]:
        """Return the objects that match, as of one moment, and the version from which to watch."""
        return await self._pages(kind, _path(kind, namespace), _selectors(labels, fields))

    async def watch(
        self, kind: str, namespace: str, labels: str, fields: str, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield changes since a version, until the API server ends the watch."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        query |= {"resourceVersion": version, **_selectors(labels, fields)}
        silence = aiohttp.ClientTimeout(sock_connect=REQUEST_SECONDS, sock_read=SILENCE_SECONDS)
        async with self._send("watch", kind, _path(kind, namespace), query, {}, silence) as response:
            try:
                async for line in response.content:
                    event = from_json(line)
                    if event["type"] == "ERROR":
                        raise _rejection(event["object"].get("code", 0), event["object"])
                    int(event["object"]["metadata"]["resourceVersion"])  # ValueError: it has no version
                    yield event["type"], event["object"]
            except (ValueError, LookupError, TypeError) as error:
                raise KubeError(0, "InvalidReply", f"the API server's watch is not valid: {error}") from error

    async def create(self, body: Json) -> Json | None:
        """Create an object and return it; None if one of this name already exists."""
        try:
            kind = body["kind"]
            return await self._request("create", kind, _path(kind, body["metadata"]["namespace"]), body=body)
        except KubeError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def replace(self, body: Json) -> Json:
        """Write an object and return it; rejected (409) if it changed since `body` was read."""
        kind, metadata = body["kind"], body["metadata"]
        path = _path(kind, metadata["namespace"], metadata["name"])
        return await self._request("update", kind, path, body=body)

    async def dry_run(self, body: Json) -> None:
        """Have an object validated as if it were created, unknown fields included."""
        path = _path(body["kind"], body["metadata"]["namespace"])
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        await self._request("create", body["kind"], path, query=query, body=body)

    async def patch(self, kind: str, namespace: str, name: str, part: str, **fields: Any) -> Json | None:
        """Change fields of a part of an object, such as its spec; return it, or None if there is none."""
        try:
            return await self._patch(kind, _path(kind, namespace, name), {part: fields})
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def delete_job(self, namespace: str, name: str) -> Json | None:
        """Delete a Job, which is there, being deleted, until its pods are gone; None if there is none."""
        return await self._delete("Job", namespace, name, {"propagationPolicy": "Foreground"})

    async def delete_pod_now(self, namespace: str, name: str) -> None:
        """Delete a pod if it exists, without waiting until its node confirms that it has ended."""
        await self._delete("Pod", namespace, name, {"gracePeriodSeconds": 0})

    async def replace_status(self, body: Json) -> None:
        """Write a study's status; rejected (409) if the study changed since `body` was read."""
        metadata = body["metadata"]
        path = f"{_path(names.KIND, metadata['namespace'], metadata['name'])}/status"
        await self._request("update", names.KIND, path, body=body)

    async def record_event(self, body: Json) -> None:
        """Create an Event, or update the one of this name: its message, count and last time."""
        if await self.create(body):
            return
        changes = {key: body[key] for key in ("message", "count", "lastTimestamp")}
        await self._patch(
            "Event", _path("Event", body["metadata"]["namespace"], body["metadata"]["name"]), changes
        )

    async def largest_nodes(self) -> Mapping[str, str] | None:
        """Return the most that a single node has of each resource; None if nodes may not be read."""
        try:
            nodes, _ = await self._pages("Node", "/api/v1/nodes", {})
        except KubeError as error:
            if error.status == 403:
                return None
            raise
        return largest_of(nodes)

    async def serves_studies(self) -> bool:
        """Return whether the CRD is installed."""
        try:
            await self._request("get", "APIResourceList", f"/apis/{names.API_VERSION}")
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _patch(self, kind: str, path: str, changes: Json) -> Json:
        content_type = "application/merge-patch+json"
        return await self._request("patch", kind, path, body=changes, content_type=content_type)

    async def _delete(self, kind: str, namespace: str, name: str, options: Json) -> Json | None:
        try:
            return await self._request("delete", kind, _path(kind, namespace, name), body=options)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def _pages(self, kind: str, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        items: list[Json] = []
        following: dict[str, str] = {}
        while True:
            page = await self._request("list", kind, path, query={**query, "limit": str(PAGE), **following})
            if "items" not in page:
                raise KubeError(0, "InvalidReply", f"the list of {kind} objects has no items")
            items += page["items"]
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "")
            following = {"continue": metadata["continue"]}

    async def _request(
        self,
        verb: str,
        kind: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send a request without the client's models, which would parse every pod into pydantic.

        It is repeated as the API server asks for, which is overloaded or stopping then.
        """
        headers, limits = {"Content-Type": content_type}, aiohttp.ClientTimeout(REQUEST_SECONDS)
        waited = 0.0
        while True:
            try:
                async with self._send(verb, kind, path, query, headers, limits, body) as response:
                    content = await response.read()
                break
            except KubeError as error:
                if error.retry_after is None or (waited := waited + error.retry_after) > LONGEST_WAIT:
                    raise
                await asyncio.sleep(error.retry_after)
        answer = _parsed(content)
        if not isinstance(answer, dict):
            start = content[:200].decode(errors="replace")
            raise KubeError(0, "InvalidReply", f"the API server's reply is not a JSON object: {start}")
        return answer

    @contextlib.asynccontextmanager
    async def _send(
        self,
        verb: str,
        kind: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        body: Json | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Count a request and yield its response; KubeError if it is rejected, or fails while it is read."""
        status = 0
        try:
            serialized = await self._api.param_serialize(
                METHODS[verb],
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", **headers},
                body=body,
                auth_settings=["BearerToken"],
            )
            reply = await self._api.call_api(*serialized, _request_timeout=limits)
            status = reply.status
            self._compare_clocks(reply.response.headers.get("Date"))
            async with reply.response as response:
                if status >= 400:
                    content = await response.read()
                    answer = _parsed(content) or content[:500].decode(errors="replace")
                    raise _rejection(status, answer, response.headers.get("Retry-After"))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, client.ApiException) as error:
            status, reason = 0, str(error) or type(error).__name__
            raise KubeError(0, "Unreachable", f"the API server does not reply: {reason}") from error
        finally:
            self._requests.labels(verb, kind, str(status)).inc()


class PlainClient(client.ApiClient):
    """A client for plain dicts, which it sends as they are: looking for models in them takes longer."""

    def sanitize_for_serialization(self, obj: Any) -> Any:
        """Return what is JSON already."""
        return obj


async def connect(requests: Counter) -> KubernetesApi:
    """Return the API of the cluster that the operator runs in, otherwise of the current kubeconfig.

    The environment's proxy is used only outside of the cluster: it can't reach the API server's Service.
    """
    configuration = client.Configuration(
        connection_pool_maxsize=0,  # as many connections as are needed: each watched namespace keeps two
        client_session_kwargs={"trust_env": False},  # it would be read at each request, in a thread
    )
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        server = urlsplit(configuration.host)
        if not configuration.proxy and not proxy_bypass(server.hostname or ""):
            configuration.proxy = getproxies().get(server.scheme)
    return KubernetesApi(PlainClient(configuration), requests)


def nearest_field(path: str) -> str | None:
    """Return the field of a Job that is spelled most like an unknown one, for example for
    `spec.template.spec.nodeSelecter`; None if there is none.
    """
    model: Any = client.V1Job
    *parents, unknown = re.sub(r"\[[^]]*\]", "", path).split(".")
    for parent in parents:
        field = next((f for name, f in _fields(model).items() if name == parent), None)
        model = _model_in(field.annotation) if field else None
        if model is None:
            return None
    return next(iter(difflib.get_close_matches(unknown, _fields(model), n=1)), None)


def _fields(model: Any) -> dict[str, Any]:
    return {field.serialization_alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> Any:
    """Return the model in `Optional[Model]` or `List[Model]`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _path(kind: str, namespace: str, name: str | None = None) -> str:
    collection = RESOURCES[kind].format(namespace=quote(namespace, safe=""))
    if not namespace:
        collection = collection.replace("/namespaces/", "")
    return f"{collection}/{quote(name, safe='')}" if name is not None else collection


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}


def _parsed(content: bytes) -> Any:
    """Return what is JSON, otherwise None."""
    try:
        return from_json(content)
    except ValueError:
        return None


def _rejection(status: int, answer: Any, retry_after: str | None = None) -> KubeError:
    details = answer if isinstance(answer, dict) else {}
    later = status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
    wait = float(retry_after) if later and retry_after and retry_after.isdecimal() else None
    return KubeError(status, details.get("reason", ""), details.get("message") or str(answer), wait or None)
