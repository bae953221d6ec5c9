"""The operator at work: real processes, a real API server; only the node is played.

The scheduler and the controllers of Jobs and owners are real, so pods come and go as in any cluster. `Node`
takes the kubelet's place: it gives each pod that is bound to it a life, which a test writes as a coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from kubernetes.aio import client, config, watch
from tuning_operator.resource import names
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod

Json = dict[str, Any]

SECRET = "0123456789abcdef0123456789abcdef"
GPU = "nvidia.com/gpu"
GPUS = 4


class Process:
    """A process of the project with its log, which can be killed and started again."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str], ready_url: str) -> None:
        self._command = [str(Path(sys.executable).with_name("tuning-operator")), command]
        self._log = folder / f"{command}.log"
        self._environment = {**os.environ, **environment}
        self._ready_url = ready_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        self._environment |= environment
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        deadline = time.monotonic() + 600  # the imports alone take 3.5 s of CPU, minutes on a busy machine
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._ready_url, timeout=20) as reply:
                if reply.status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{self._command} does not serve:\n{self.log()}")

    def kill(self) -> None:
        """End it as a machine that fails does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as Kubernetes does; return the exit code."""
        return self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def url(self, path: str) -> str:
        """Return the address of a path on its HTTP port."""
        return urllib.parse.urljoin(self._ready_url, path)

    def log(self, characters: int = 6000) -> str:
        return self._log.read_text()[-characters:] if self._log.exists() else ""

    def _end(self, with_signal: signal.Signals) -> int:
        assert self._process
        self._process.send_signal(with_signal)
        return self._process.wait(timeout=120)


@dataclass
class System:
    """The operator and the study server."""

    operator: Process
    server: Process
    server_url: str


@contextlib.contextmanager
def running_system(folder: Path, kubeconfig: Path, database_url: str) -> Iterator[System]:
    """Have both processes run for a while."""
    server_port = _free_port()
    server_url = f"http://127.0.0.1:{server_port}"
    server = Process(
        "studies",
        folder,
        {
            "TUNING_DATABASE_URL": database_url,
            "TUNING_TOKEN_SECRET": SECRET,
            "TUNING_HOST": "127.0.0.1",
            "TUNING_PORT": str(server_port),
        },
        f"{server_url}/readyz",
    )
    operator = operator_process(folder, kubeconfig, server_url)
    server.start()
    operator.start()
    try:
        yield System(operator, server, server_url)
    finally:
        operator.kill()
        server.kill()


def operator_process(folder: Path, kubeconfig: Path, server_url: str) -> Process:
    """Return an operator, not started yet."""
    folder.mkdir(exist_ok=True)
    token, port = folder / "token", _free_port()
    token.write_text(mint_operator(SECRET))
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "TUNING_STUDY_SERVER_URLS": json.dumps([server_url]),
        "TUNING_TOKEN_FILE": str(token),
        "TUNING_PROBE_HOST": "127.0.0.1",
        "TUNING_PROBE_PORT": str(port),
    }
    return Process("operator", folder, environment, f"http://127.0.0.1:{port}/healthz")


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class PodGone(Exception):  # noqa: N818  the state of a pod
    """The pod was deleted: there is nothing left to report of it."""


@dataclass
class Pod:
    """A pod on the node, and the trial that runs in it."""

    node: Node
    body: Json

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def trial(self) -> int:
        return int(self.body["metadata"]["labels"][names.LABEL_TRIAL])

    @property
    def study(self) -> str:
        return str(self.body["metadata"]["labels"][names.LABEL_STUDY])

    @property
    def final(self) -> bool:
        """Whether it is the refit's."""
        return bool(self.body["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_FINAL)

    # --- what the kubelet reports

    async def runs(self) -> None:
        await self._status("Running", {"running": {"startedAt": _now()}}, ready=True)

    async def waits(self, reason: str, message: str) -> None:
        await self._status("Pending", {"waiting": {"reason": reason, "message": message}}, ready=False)

    async def succeeds(self) -> None:
        await self._ends("Succeeded", 0, "Completed", "")

    async def fails(self, exit_code: int, reason: str = "Error", message: str = "") -> None:
        await self._ends("Failed", exit_code, reason, message)

    async def is_rejected(self, reason: str, message: str) -> None:
        """As when its node has no healthy device left."""
        status = {"phase": "Failed", "reason": reason, "message": message, "startTime": _now()}
        await self._report(status)

    async def exits_beside_a_proxy(self, code: int, reason: str) -> None:
        """The trainer exits, and the second container runs until the pod's deadline."""
        await self._exits(code, reason, "Running", {"running": {"startedAt": _now()}})
        while True:
            body = await self.node.core.read_namespaced_pod(self.name, self.node.namespace)
            if body.spec.active_deadline_seconds == 1:
                break
            await asyncio.sleep(0.1)
        killed = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": _now()}}
        await self._exits(code, reason, "Failed", killed, reason="DeadlineExceeded")

    async def _exits(self, code: int, why: str, phase: str, proxy: Json, **fields: str) -> None:
        own = {"terminated": {"exitCode": code, "reason": why, "finishedAt": _now()}}
        statuses = [
            {"name": container["name"], "image": container["image"], "imageID": "", "ready": False,
             "restartCount": 0, "state": state}
            for container, state in zip(self.body["spec"]["containers"], (own, proxy), strict=True)
        ]  # fmt: skip
        ready = {"type": "Ready", "status": "False", "lastTransitionTime": _now()}
        status = {"phase": phase, "conditions": [ready], "containerStatuses": statuses, **fields}
        await self._report(status)

    async def is_disrupted(self) -> None:
        """As when its node is drained."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "lastTransitionTime": _now(),
        }
        await self._ends("Failed", 143, "Error", "", condition)

    async def _ends(self, phase: str, code: int, reason: str, message: str, *conditions: Json) -> None:
        state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "message": message,
                "startedAt": _now(),
                "finishedAt": _now(),
            }
        }
        await self._status(phase, state, *conditions, ready=False)

    async def _status(self, phase: str, state: Json, *conditions: Json, ready: bool) -> None:
        container = self.body["spec"]["containers"][0]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": _now()}
        status = {
            "phase": phase,
            "startTime": _now(),
            "conditions": [condition, *conditions],
            "containerStatuses": [
                {"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                 "restartCount": 0, "state": state}
            ],
        }  # fmt: skip
        await self._report(status)

    async def _report(self, status: Json) -> None:
        try:
            await self.node.core.patch_namespaced_pod_status(
                self.name, self.node.namespace, {"status": status}
            )
        except client.ApiException as error:
            if error.status == 404:
                raise PodGone from error
            raise

    # --- what the trainer in it says to the study server

    async def post(self, path: str, content: Json) -> Json:
        environment = {e["name"]: e["value"] for e in self.body["spec"]["containers"][0]["env"]}
        token = mint_pod(SECRET, self.node.namespace, self.name)
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=120) as http:
            reply = await http.post(f"{environment['TUNING_TRIAL_URL']}/{path}", json=content)
            reply.raise_for_status()
            answer: Json = reply.json()
            return answer

    async def report(self, step: int, value: float) -> bool:
        """Return whether the trial should stop."""
        return bool((await self.post("report", {"values": [[step, value]]}))["prune"])

    async def completes(self, value: float) -> None:
        await self.post("result", {"state": "COMPLETE", "values": [value]})
        await self.succeeds()


Life = Callable[[Pod], Awaitable[None]]


async def completes(pod: Pod) -> None:
    """A life: the trial runs, reports its number as its value, and ends."""
    await pod.runs()
    await pod.completes(float(pod.trial))


def completes_after(event: asyncio.Event) -> Life:
    """A life: the trial runs until the event, and then completes."""

    async def life(pod: Pod) -> None:
        await pod.runs()
        await event.wait()
        await pod.completes(1.0)

    return life


@dataclass
class Node:
    """A node with GPUs whose kubelet is this object."""

    connection: client.ApiClient
    namespace: str
    life: Life = completes
    pods: list[Pod] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    jobs: set[str] = field(default_factory=set)
    """UIDs of all Jobs whose pods came here."""

    def __post_init__(self) -> None:
        self.core = client.CoreV1Api(self.connection)
        self._lives: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Take in pods as they are bound, end them as they are deleted; the API server may be away."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, client.ApiException):
                async for event in watch.Watch().stream(self.core.list_namespaced_pod, self.namespace):
                    await self._take_in(event["type"], event["raw_object"])
            await asyncio.sleep(0.1)

    async def _take_in(self, change: str, body: Json) -> None:
        uid = body["metadata"]["uid"]
        if change == "DELETED" or not body["spec"].get("nodeName"):
            return
        if body["metadata"].get("deletionTimestamp"):
            await self._end(body)
        elif uid not in self._lives:
            self._lives[uid] = asyncio.create_task(self._live(Pod(self, body)))

    async def register(self, name: str, gpus: int) -> None:
        """Have the scheduler know a node, of which this object is the kubelet."""
        capacity = {"cpu": "64", "memory": "64Gi", "pods": "500", GPU: str(gpus)}
        await self.core.create_node({"metadata": {"name": name, "labels": {"for": self.namespace}}})
        await self._node_status(name, {"capacity": capacity, "allocatable": capacity})
        await self.core.patch_node(name, {"spec": {"taints": None}})

    async def stay_ready(self, name: str) -> None:
        """Send heartbeats: a node without them becomes NotReady after 50 s, and gets no more pods."""
        while True:
            await asyncio.sleep(10)
            with contextlib.suppress(aiohttp.ClientError, client.ApiException):
                await self._node_status(name, {})

    async def _node_status(self, name: str, status: Json) -> None:
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": _now(),
            "lastTransitionTime": _now(),
        }
        await self.core.patch_node_status(name, {"status": {**status, "conditions": [ready]}})

    async def _live(self, pod: Pod) -> None:
        self.pods.append(pod)
        self.jobs |= {owner["uid"] for owner in pod.body["metadata"]["ownerReferences"]}
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            with contextlib.suppress(PodGone):
                await self.life(pod)
        finally:
            self.at_once -= 1

    async def _end(self, body: Json) -> None:
        if life := self._lives.get(body["metadata"]["uid"]):
            life.cancel()
            await asyncio.wait([life])  # it may still report how its containers ended, as a kubelet does
        with contextlib.suppress(client.ApiException):
            options = client.V1DeleteOptions(grace_period_seconds=0)
            await self.core.delete_namespaced_pod(body["metadata"]["name"], self.namespace, body=options)

    def failures(self) -> list[BaseException]:
        """Return what went wrong in the lives themselves."""
        ended = [life for life in self._lives.values() if life.done() and not life.cancelled()]
        return [error for life in ended if (error := life.exception())]

    async def close(self) -> None:
        for life in self._lives.values():
            life.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def node_of(connection: client.ApiClient, namespace: str, gpus: int = GPUS) -> AsyncIterator[Node]:
    """Have a node that takes the pods of one namespace, and no others."""
    node, name = Node(connection, namespace), f"node-{namespace}"
    await node.register(name, gpus)
    kubelet = [asyncio.create_task(node.run()), asyncio.create_task(node.stay_ready(name))]
    try:
        yield node
    finally:
        for task in kubelet:
            task.cancel()
        await node.close()
        await node.core.delete_node(name)


@dataclass
class Cluster:
    """What a user sees of one namespace."""

    connection: client.ApiClient
    namespace: str
    node: Node
    system: System

    def __post_init__(self) -> None:
        self._studies = client.CustomObjectsApi(self.connection)
        self._place = (names.GROUP, names.VERSION, self.namespace, names.PLURAL)

    async def apply(self, name: str = "mnist", pod: Json | None = None, **spec: Any) -> None:
        container = {"name": "trainer", "image": "python:3.12", "resources": {"limits": {GPU: 1}}}
        pod = {"nodeSelector": {"for": self.namespace}, "containers": [container], **(pod or {})}
        trial = {
            "objective": "train:objective",
            "template": {"spec": pod},
            **spec.pop("trial", {}),
        }
        base = {
            "objectives": [{"metric": "accuracy", "direction": "maximize"}],
            "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
            "sampler": {"name": "RandomSampler", "args": {"seed": 1}},
            "maxTrials": 4,
            "parallelism": 2,
        }
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name},
                "spec": {**base, **spec, "trial": trial}}  # fmt: skip
        await self._studies.create_namespaced_custom_object(*self._place, body)

    async def patch(self, name: str = "mnist", **spec: Any) -> None:
        await self._studies.patch_namespaced_custom_object(
            *self._place, name, {"spec": spec}, _content_type="application/merge-patch+json"
        )

    async def delete(self, name: str = "mnist") -> None:
        await self._studies.delete_namespaced_custom_object(*self._place, name)

    async def get(self, name: str = "mnist") -> Json:
        found: Json = await self._studies.get_namespaced_custom_object(*self._place, name)
        return found

    async def wait(self, until: Callable[[Json], bool], name: str = "mnist", seconds: float = 500) -> Json:
        """Follow the study until its status is as wanted; return the status."""
        status: Json = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    stream = watch.Watch().stream(
                        self._studies.list_namespaced_custom_object, *self._place, timeout_seconds=60,
                        field_selector=f"metadata.name={name}",
                    )  # fmt: skip
                    async for event in stream:
                        status = event["object"].get("status", {})
                        if until(status):
                            return status
        except TimeoutError:
            last = json.dumps(status, indent=1)
            logs = f"{self.system.operator.log()}\n{self.system.server.log()}"
            raise AssertionError(f"{self.namespace}/{name} after {seconds} s: {last}\n{logs}") from None

    async def events(self, name: str = "mnist") -> dict[str, str]:
        """Return the messages of a study's Events by reason, one a line."""
        found = await self.node.core.list_namespaced_event(
            self.namespace, field_selector=f"involvedObject.kind={names.KIND},involvedObject.name={name}"
        )
        messages: dict[str, list[str]] = {}
        for event in found.items:
            messages.setdefault(event.reason, []).append(event.message)
        return {reason: "\n".join(texts) for reason, texts in messages.items()}

    async def wait_for_events(self, *reasons: str) -> dict[str, str]:
        """Wait for Events of these reasons; they come after the status. Return all messages by reason."""

        async def all_there() -> bool:
            return set(reasons) <= set(await self.events())

        await eventually(all_there)
        return await self.events()

    async def jobs(self, name: str = "mnist") -> dict[str, str]:
        """Return the UIDs of a study's Jobs, by name."""
        batch = client.BatchV1Api(self.connection)
        found = await batch.list_namespaced_job(self.namespace, label_selector=f"{names.LABEL_STUDY}={name}")
        return {job.metadata.name: job.metadata.uid for job in found.items}

    async def record(self, name: str = "mnist") -> Json:
        """Return how the study server says that the study stands."""
        headers = {"Authorization": f"Bearer {mint_operator(SECRET)}"}
        async with httpx.AsyncClient(base_url=self.system.server_url, headers=headers, timeout=120) as http:
            reply = await http.get(f"/v1/studies/{self.namespace}/{name}")
            reply.raise_for_status()
            found: Json = reply.json()
            return found

    async def nothing_runs(self) -> bool:
        return not (await self.record())["counts"]["running"]

    async def no_jobs(self) -> bool:
        return not await self.jobs()


@contextlib.asynccontextmanager
async def new_namespace(kubeconfig: Path, system: System) -> AsyncIterator[Cluster]:
    """Have a namespace with a node of its own, in whose lives nothing may go wrong."""
    namespace = f"operator-{uuid.uuid4().hex[:6]}"
    async with await config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        core = client.CoreV1Api(connection)
        await core.create_namespace({"metadata": {"name": namespace}})
        async with node_of(connection, namespace) as node:
            yield Cluster(connection, namespace, node, system)
            assert node.failures() == []
        await core.delete_namespace(namespace)


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 500) -> None:
    """Ask until it holds."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110  what is asked is in other processes
            await asyncio.sleep(0.1)


def phase(*wanted: str) -> Callable[[Json], bool]:
    return lambda status: status.get("phase") in wanted


def all_complete(trials: int) -> dict[str, int]:
    """Return `status.trials` of a study with so many trials, all of which have completed."""
    return {"total": trials, "pending": 0, "running": 0, "complete": trials, "pruned": 0, "failed": 0}


def condition(status: Json, kind: str) -> Json:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def holds(kind: str, value: str = "True") -> Callable[[Json], bool]:
    return lambda status: condition(status, kind).get("status") == value


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
