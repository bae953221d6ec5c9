"""A cluster whose nodes and trainers are simulated: control plane, operator and study server are real.

kwok takes the place of the kubelets, and `Trainers` that of the programs in the pods, at the study server's
HTTP interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import psutil
from kubernetes.aio import client, config
from prometheus_client.parser import text_string_to_metric_families
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.kubernetes import KubernetesApi
from tuning_operator.resource import names
from tuning_operator.studies.auth.tokens import mint_pod

from dev.cluster import control_plane, processes, programs
from dev.cluster.run import run as run_program
from tests.api.operator_kit import GPU, SECRET, System, running_system
from tests.support.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

Json = dict[str, Any]

CRDS = Path(__file__).parents[2] / "crds"
GPUS_PER_NODE = 8
PATIENCE = 600
"""Seconds for each step."""
STUDY = "scale"

STAGES = """\
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-is-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      phase: Running
      conditions:
      {{ range NodeConditions }}
      - type: {{ .type | Quote }}
        status: {{ .status | Quote }}
        reason: {{ .reason | Quote }}
        message: {{ .message | Quote }}
        lastHeartbeatTime: {{ $now | Quote }}
        lastTransitionTime: {{ $now | Quote }}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-runs}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      phase: Running
      startTime: {{ $now | Quote }}
      conditions:
      - {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        ready: true
        restartCount: 0
        state: {running: {startedAt: {{ $now | Quote }}}}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-ends}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
"""
"""What kwok simulates. Pods run until they are deleted, or until `Trainers` ends them."""


@contextlib.asynccontextmanager
async def cluster(gpus: int) -> AsyncIterator[Cluster]:
    """Have a cluster with the operator for a while."""
    with (
        tempfile.TemporaryDirectory() as folder,
        control_plane.temporary() as plane,
        _kwok(plane),
        EmbeddedPostgres() as postgres,
    ):
        run_program(programs.kubectl(), f"--kubeconfig={plane.kubeconfig}", "apply", "-f", CRDS)
        with running_system(Path(folder), plane.kubeconfig, postgres.url) as system:
            async with await config.new_client_from_config(config_file=str(plane.kubeconfig)) as connection:
                found = Cluster(connection, system)
                await found.make_nodes(gpus)
                yield found


@contextlib.contextmanager
def _kwok(plane: control_plane.ControlPlane) -> Iterator[None]:
    """Have nodes and pods simulated."""
    stages = plane.folder / "stages.yaml"
    stages.write_text(STAGES)
    arguments = f"--kubeconfig={plane.kubeconfig}", f"--config={stages}", "--manage-all-nodes"
    processes.start(plane.folder, "kwok", programs.program("kwok"), *arguments)
    try:
        yield
    finally:
        processes.stop(plane.folder, "kwok")


class Cluster:
    """A cluster as its user sees it."""

    def __init__(self, connection: client.ApiClient, system: System) -> None:
        self.connection, self.system = connection, system
        self.core, self.batch = client.CoreV1Api(connection), client.BatchV1Api(connection)
        self.kube = KubernetesApi(connection, Metrics(lambda: 0).requests)

    async def make_nodes(self, gpus: int) -> None:
        capacity = {"cpu": "64", "memory": "512Gi", "pods": "500", GPU: str(GPUS_PER_NODE)}
        for number in range(-(-gpus // GPUS_PER_NODE)):
            await self.core.create_node({"metadata": {"name": f"node-{number}"}})
            status = {"capacity": capacity, "allocatable": capacity}
            await self.core.patch_node_status(f"node-{number}", {"status": status})

        async def ready() -> bool:
            nodes = await self.core.list_node()
            return all(
                any(condition.type == "Ready" for condition in node.status.conditions or [])
                and not node.spec.taints
                for node in nodes.items
            )

        async with asyncio.timeout(PATIENCE):
            while not await ready():  # noqa: ASYNC110  what is asked is in other processes
                await asyncio.sleep(0.2)

    async def make_namespace(self, name: str) -> None:
        await self.core.create_namespace({"metadata": {"name": name}})

    async def apply(self, namespace: str, trials: int, parallelism: int | None = None) -> None:
        """Create a study whose trials use a GPU each."""
        container = {"name": "trainer", "image": "python:3.12", "resources": {"limits": {GPU: 1}}}
        spec = {
            "objectives": [{"metric": "accuracy", "direction": "maximize"}],
            "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
            "sampler": {"name": "RandomSampler"},
            "maxTrials": trials,
            "parallelism": parallelism or trials,
            "trial": {"objective": "train:objective", "template": {"spec": {"containers": [container]}}},
        }
        metadata = {"name": STUDY, "namespace": namespace}
        await self.kube.create(
            {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}
        )

    async def touch(self, namespace: str, number: int) -> None:
        """Change something of a study that does not matter, so that it gets a pass."""
        await self.kube.patch(
            names.KIND, namespace, STUDY, "metadata", annotations={"example.com/touched": str(number)}
        )

    async def see(self, kind: str, namespace: str, count: int, fields: str = "") -> None:
        """Watch until there have been so many objects of a kind in a namespace, or in all."""
        found: set[tuple[str, str]] = set()
        async with asyncio.timeout(PATIENCE):
            async for body in self.follow(kind, namespace, fields):
                found.add((body["metadata"]["namespace"], body["metadata"]["name"]))
                if len(found) == count:
                    return

    async def completes(self, namespace: str) -> None:
        """Watch until the study has completed."""
        async with asyncio.timeout(PATIENCE):
            async for study in self.follow(names.KIND, namespace):
                if study.get("status", {}).get("phase") == "Completed":
                    return

    async def follow(self, kind: str, namespace: str, fields: str = "") -> AsyncIterator[Json]:
        """Yield objects as they are created and change."""
        items, version = await self.kube.snapshot(kind, namespace, "", fields)
        for body in items:
            yield body
        while True:
            with contextlib.suppress(KubeError):
                async for event, body in self.kube.watch(kind, namespace, "", fields, version):
                    version = body["metadata"]["resourceVersion"]
                    if event in ("ADDED", "MODIFIED"):
                        yield body

    async def remove(self, namespace: str) -> None:
        """Delete everything that was made, and wait until it is gone."""
        with contextlib.suppress(client.ApiException):
            await client.CustomObjectsApi(self.connection).delete_namespaced_custom_object(
                names.GROUP, names.VERSION, namespace, names.PLURAL, STUDY
            )
        async with asyncio.timeout(PATIENCE):
            while (await self.batch.list_namespaced_job(namespace, limit=1)).items:
                with contextlib.suppress(client.ApiException):  # of many, it deletes what it can in a minute
                    await self.batch.delete_collection_namespaced_job(
                        namespace, propagation_policy="Background"
                    )
            while (await self.core.list_namespaced_pod(namespace, limit=1)).items:  # noqa: ASYNC110
                await asyncio.sleep(0.5)


@dataclass
class Cost:
    """What the operator's and the study server's processes have used so far."""

    operator_seconds: float
    """CPU time."""
    server_seconds: float
    passes: int
    requests: Counter[str]
    """The operator's, to the Kubernetes API, by verb and kind."""

    @classmethod
    def of(cls, system: System) -> Self:
        with urllib.request.urlopen(system.operator.url("/metrics")) as reply:
            text = reply.read().decode()
        passes, requests = 0, Counter[str]()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "tuning_operator_passes_total":
                    passes += int(sample.value)
                elif sample.name == "tuning_operator_kubernetes_requests_total":
                    requests[f"{sample.labels['verb']} {sample.labels['kind']}"] += int(sample.value)
        seconds = (sum(psutil.Process(p.pid).cpu_times()[:2]) for p in (system.operator, system.server))
        return cls(*seconds, passes, requests)

    def since(self, before: Cost) -> Cost:
        return Cost(
            self.operator_seconds - before.operator_seconds,
            self.server_seconds - before.server_seconds,
            self.passes - before.passes,
            Counter(dict(sorted((self.requests - before.requests).items()))),
        )

    def per(self, count: int) -> str:
        """Return the requests for each of so many trials, in words."""
        return ", ".join(f"{number / count:.2f} {what}" for what, number in self.requests.items())


@dataclass
class Memory:
    """Memory of the operator's process, in MB."""

    start: float
    most: float
    end: float

    def __str__(self) -> str:
        return f"{self.start:.0f}, {self.most:.0f}, {self.end:.0f} MB"


@contextlib.asynccontextmanager
async def memory(system: System) -> AsyncIterator[Memory]:
    """Watch the operator's memory for a while."""
    process = psutil.Process(system.operator.pid)

    def now() -> float:
        return float(process.memory_info().rss) / 1e6

    seen = Memory(now(), now(), now())

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            seen.most = max(seen.most, now())

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        seen.end = now()
        seen.most = max(seen.most, seen.end)


@dataclass
class Trainers:
    """The programs in the pods of a namespace: each runs for some seconds and reports a result."""

    cluster: Cluster
    namespace: str
    seconds: float
    finished: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Train in each pod that runs, until cancelled."""
        seen: set[str] = set()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=50)) as http:
            try:
                async for pod in self.cluster.follow("Pod", self.namespace, "status.phase=Running"):
                    if pod["metadata"]["uid"] not in seen:
                        seen.add(pod["metadata"]["uid"])
                        task = asyncio.create_task(self._train(http, pod))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _train(self, http: aiohttp.ClientSession, pod: Json) -> None:
        await asyncio.sleep(self.seconds)
        name, number = pod["metadata"]["name"], pod["metadata"]["labels"][names.LABEL_TRIAL]
        server = self.cluster.system.server_url
        url = f"{server}/v1/studies/{self.namespace}/{STUDY}/trials/{number}/result"
        headers = {"Authorization": f"Bearer {mint_pod(SECRET, self.namespace, name)}"}
        result = {"state": "COMPLETE", "values": [int(number) % 100 / 100]}
        async with http.post(url, json=result, headers=headers) as reply:
            reply.raise_for_status()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}}
        container = {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        status = {
            "phase": "Succeeded",
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
            "containerStatuses": [{**container, "state": ended}],
        }
        with contextlib.suppress(client.ApiException):  # deleted with its study
            await self.cluster.core.patch_namespaced_pod_status(name, self.namespace, {"status": status})
        self.finished += 1


@contextlib.asynccontextmanager
async def training(cluster: Cluster, namespace: str, seconds: float) -> AsyncIterator[Trainers]:
    """Have trainers in the pods of a namespace."""
    trainers = Trainers(cluster, namespace, seconds)
    task = asyncio.create_task(trainers.run())
    try:
        yield trainers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds in another process."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
