"""How fast the operator starts a study's Jobs, and what that costs the API server, beside plain creators.

    uv run python -m tests.bench.operator_scale --trials 100 --trials 1000

A control plane of its own, the operator's and the study server's own processes, Postgres, and kwok for the
nodes: a study asks for as many trials at once as there are GPUs. Then eight clients create as many Jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from kubernetes.aio import client, config, watch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from tuning_operator.kube.ports.kubernetes import KubernetesApi
from tuning_operator.kube.probes import Metrics
from tuning_operator.resource import names

from dev.cluster import control_plane, processes, programs
from dev.cluster.run import run as run_program
from tests.api.operator_kit import GPU, System, running_system
from tests.support.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

CRDS = Path(__file__).parents[2] / "crds"
CREATORS = 8
GPUS_PER_NODE = 8
PATIENCE = 600
"""Seconds for each step."""

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
"""What kwok simulates. Pods run until they are deleted: kwok's own stages complete those of Jobs."""


@dataclass
class Row:
    """The measurement of one number of trials."""

    trials: int
    jobs_seconds: float
    """From `kubectl apply` until the last Job exists."""
    running_seconds: float
    """From `kubectl apply` until all pods run."""
    plain_jobs_seconds: float
    plain_running_seconds: float
    cpu_seconds: float
    """CPU time of the operator until all pods run."""
    requests: dict[str, int]
    """The operator's requests until all pods run, by verb and kind."""

    @property
    def jobs_per_second(self) -> float:
        return self.trials / self.jobs_seconds

    @property
    def requests_per_trial(self) -> float:
        return sum(self.requests.values()) / self.trials


def main(
    trials: Annotated[list[int] | None, typer.Option(help="Trials that run at once, by study.")] = None,
) -> None:
    """Measure; print a table, and the same as JSON."""
    counts = trials or [100, 1000]
    with (
        tempfile.TemporaryDirectory() as folder,
        control_plane.temporary() as plane,
        kwok(plane),
        EmbeddedPostgres() as postgres,
    ):
        kubectl = programs.kubectl()
        run_program(kubectl, f"--kubeconfig={plane.kubeconfig}", "apply", "-f", CRDS)
        crd = f"crd/{names.PLURAL}.{names.GROUP}"
        run_program(kubectl, f"--kubeconfig={plane.kubeconfig}", "wait", "--for=condition=Established", crd)
        with running_system(Path(folder), plane.kubeconfig, postgres.url) as system:
            rows = asyncio.run(measure(plane.kubeconfig, system, counts))
    show(rows)


@contextlib.contextmanager
def kwok(plane: control_plane.ControlPlane) -> Iterator[None]:
    """Have nodes and pods simulated."""
    stages = plane.folder / "stages.yaml"
    stages.write_text(STAGES)
    arguments = f"--kubeconfig={plane.kubeconfig}", f"--config={stages}", "--manage-all-nodes"
    processes.start(plane.folder, "kwok", programs.program("kwok"), *arguments)
    try:
        yield
    finally:
        processes.stop(plane.folder, "kwok")


async def measure(kubeconfig: Path, system: System, counts: list[int]) -> list[Row]:
    async with await config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        bench = Bench(connection, system)
        await bench.make_nodes(max(counts))
        return [await bench.row(count) for count in counts]


class Bench:
    """One cluster and its operator."""

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

    async def row(self, trials: int) -> Row:
        ours, plain = f"ours-{trials}", f"plain-{trials}"
        for namespace in (ours, plain):
            await self.core.create_namespace({"metadata": {"name": namespace}})
        before = Cost.of(self.system)
        seconds = await self.timed(ours, trials, self.apply(ours, trials))
        after = Cost.of(self.system)
        cost = (
            after.cpu_seconds - before.cpu_seconds,
            dict(sorted((after.requests - before.requests).items())),
        )
        jobs = await self.batch.list_namespaced_job(ours, limit=1)
        template: dict[str, Any] = client.ApiClient().sanitize_for_serialization(jobs.items[0])
        await self.remove(ours)
        plain_seconds = await self.timed(plain, trials, self.create(plain, trials, template))
        await self.remove(plain)
        return Row(trials, *seconds, *plain_seconds, *cost)

    async def apply(self, namespace: str, trials: int) -> None:
        """Create the study."""
        container = {"name": "trainer", "image": "python:3.12", "resources": {"limits": {GPU: 1}}}
        spec = {
            "objectives": [{"metric": "accuracy", "direction": "maximize"}],
            "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
            "sampler": {"name": "RandomSampler"},
            "maxTrials": trials,
            "parallelism": trials,
            "trial": {"objective": "train:objective", "template": {"spec": {"containers": [container]}}},
        }
        metadata = {"name": "scale", "namespace": namespace}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}
        await self.kube.create(body)

    async def create(self, namespace: str, trials: int, job: dict[str, Any]) -> None:
        """Create the same Jobs by a few clients, each doing nothing else."""
        spec = copy.deepcopy(job["spec"])
        spec.pop("selector", None)
        labels = {k: v for k, v in job["metadata"]["labels"].items() if not k.startswith(names.GROUP)}
        for kind in ("labels", "annotations"):
            spec["template"].get("metadata", {}).pop(kind, None)
        bodies = iter(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": f"plain-{number}", "namespace": namespace, "labels": labels},
                "spec": spec,
            }
            for number in range(trials)
        )

        async def creator() -> None:
            for body in bodies:
                await self.kube.create(body)

        await asyncio.gather(*(creator() for _ in range(CREATORS)))

    async def timed(self, namespace: str, count: int, begin: Any) -> tuple[float, float]:
        """Return in how many seconds the Jobs exist, and in how many their pods run."""
        jobs = asyncio.create_task(
            self.seen(self.batch.list_namespaced_job, namespace, count, lambda _: True)
        )
        pods = asyncio.create_task(self.seen(self.core.list_namespaced_pod, namespace, count, runs))
        began = time.perf_counter()
        await begin
        try:
            return await jobs - began, await pods - began
        except TimeoutError:
            raise AssertionError(f"after {PATIENCE} s\n{self.system.operator.log()}") from None

    async def seen(self, lister: Any, namespace: str, count: int, counts: Any) -> float:
        """Watch until so many objects of a kind are as wanted; return when that was."""
        found: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while True:
                async for event in watch.Watch().stream(lister, namespace, timeout_seconds=60):
                    body = event["raw_object"]
                    if counts(body):
                        found.add(body["metadata"]["name"])
                    if len(found) == count:
                        return time.perf_counter()

    async def remove(self, namespace: str) -> None:
        """Delete everything that was made, and wait until it is gone."""
        with contextlib.suppress(client.ApiException):
            await client.CustomObjectsApi(self.connection).delete_namespaced_custom_object(
                names.GROUP, names.VERSION, namespace, names.PLURAL, "scale"
            )
        async with asyncio.timeout(PATIENCE):
            while (await self.batch.list_namespaced_job(namespace, limit=1)).items:
                with contextlib.suppress(client.ApiException):  # of many, it deletes what it can in a minute
                    await self.batch.delete_collection_namespaced_job(
                        namespace, propagation_policy="Background"
                    )
            while (await self.core.list_namespaced_pod(namespace, limit=1)).items:  # noqa: ASYNC110
                await asyncio.sleep(0.5)


def runs(pod: dict[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Running")


@dataclass
class Cost:
    """What the operator's process has used so far."""

    cpu_seconds: float
    requests: Counter[str]
    """To the Kubernetes API, watches excluded, by verb and kind."""

    @classmethod
    def of(cls, system: System) -> Self:
        with urllib.request.urlopen(system.operator.url("/metrics")) as reply:
            text = reply.read().decode()
        cost = cls(0, Counter())
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "process_cpu_seconds_total":
                    cost.cpu_seconds = sample.value
                elif sample.name == "tuning_operator_kubernetes_requests_total":
                    cost.requests[f"{sample.labels['verb']} {sample.labels['kind']}"] += int(sample.value)
        return cost


def show(rows: list[Row]) -> None:
    table = Table(
        "trials", "Jobs/s", "plain Jobs/s", "ratio", "last Job", "all run", "plain all run", "requests",
        "per trial", "CPU per trial",
    )  # fmt: skip
    for row in rows:
        plain = row.trials / row.plain_jobs_seconds
        table.add_row(
            str(row.trials), f"{row.jobs_per_second:.0f}", f"{plain:.0f}",
            f"{row.jobs_per_second / plain:.2f}", f"{row.jobs_seconds:.2f} s", f"{row.running_seconds:.2f} s",
            f"{row.plain_running_seconds:.2f} s", str(sum(row.requests.values())),
            f"{row.requests_per_trial:.2f}", f"{row.cpu_seconds / row.trials * 1000:.1f} ms",
        )  # fmt: skip
    console = Console(width=140)
    console.print(table)
    for row in rows:
        made = ", ".join(f"{number} {what}" for what, number in row.requests.items())
        console.print(f"{row.trials} trials: {made}", highlight=False)
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    typer.run(main)
