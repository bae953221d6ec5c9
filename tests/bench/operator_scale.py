"""What the operator costs, and how fast it is, with many trials and many studies, on simulated nodes.

    uv run python -m tests.bench.operator_scale start       # n trials at once, beside plain creators
    uv run python -m tests.bench.operator_scale studies     # 500 trials in 1, 10 and 50 studies
    uv run python -m tests.bench.operator_scale workload    # trials of 40 s, as others have published
    uv run python -m tests.bench.operator_scale long        # 10,000 trials in a study

A control plane of its own, the operator's and the study server's own processes, Postgres, and kwok for the
nodes. All of them share this machine, so Jobs are created faster where the API server has one of its own.
"""

from __future__ import annotations

import asyncio
import copy
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from kubernetes.aio import client
from tuning_operator.resource import names

from tests.bench.simulated import Cluster, Cost, cluster, memory, training, until

if TYPE_CHECKING:
    from collections.abc import Awaitable

CREATORS = 8
RUNNING = "status.phase=Running"
PASSES = 20
TRIALS_OF_STUDIES = 500
SECONDS_OF_TRIALS = 40
PUBLISHED = {1: (44, 27), 100: (93, 70), 300: (216, 173)}
"""The overhead in seconds of Katib 0.14 and Polyaxon by the number of trials, on their authors' machines."""

app = typer.Typer(help=__doc__)


@app.command()
def start(
    trials: Annotated[list[int] | None, typer.Option(help="Trials at once, by study.")] = None,
    repeat: Annotated[int, typer.Option(help="Runs with at most 100 trials; the median counts.")] = 3,
) -> None:
    """Start n trials at once; then have eight clients create as many of the same Jobs."""
    asyncio.run(_start(trials or [10, 100, 300, 1000], repeat))


async def _start(counts: list[int], repeat: int) -> None:
    _header("trials", "Jobs/s", "eight creators", "ratio", "until all run", "until all of the creators run",
            "CPU of the operator, each", "of the study server", "CPU of a pass",
            "memory: before, most, after", "requests for each trial")  # fmt: skip
    async with cluster(max(counts)) as found:
        for count in counts:
            runs = [await _side_by_side(found, count, n) for n in range(repeat if count <= 100 else 1)]
            runs.sort(key=lambda run: run[0] / run[1])
            jobs, plain, all_run, plain_run, cost, each_pass, used = runs[len(runs) // 2]
            _row(count, f"{jobs:.0f}", f"{plain:.0f}", f"{jobs / plain:.2f}", f"{all_run:.1f} s",
                 f"{plain_run:.1f} s", f"{cost.operator_seconds / count * 1000:.1f} ms",
                 f"{cost.server_seconds / count * 1000:.1f} ms", f"{each_pass * 1000:.0f} ms", used,
                 cost.per(count))  # fmt: skip


async def _side_by_side(found: Cluster, count: int, number: int) -> tuple[Any, ...]:
    """Return Jobs a second of ours and of plain creators, seconds until all run, and what ours cost."""
    ours, plain = f"ours-{count}-{number}", f"plain-{count}-{number}"
    for namespace in (ours, plain):
        await found.make_namespace(namespace)
    async with memory(found.system) as used:
        before = Cost.of(found.system)
        jobs, all_run = await _timed(found, ours, count, found.apply(ours, count))
        cost = Cost.of(found.system).since(before)
    each_pass = await _cpu_of_a_pass(found, ours)
    listed = await found.batch.list_namespaced_job(ours, limit=1)
    template: dict[str, Any] = client.ApiClient().sanitize_for_serialization(listed.items[0])
    await found.remove(ours)
    plain_jobs, plain_run = await _timed(found, plain, count, _create(found, plain, count, template))
    await found.remove(plain)
    return count / jobs, count / plain_jobs, all_run, plain_run, cost, each_pass, used


async def _timed(found: Cluster, namespace: str, count: int, begin: Awaitable[None]) -> tuple[float, float]:
    """Return in how many seconds the Jobs exist, and in how many their pods run."""

    async def seen(kind: str, fields: str = "") -> float:
        await found.see(kind, namespace, count, fields)
        return time.perf_counter()

    jobs, pods = asyncio.create_task(seen("Job")), asyncio.create_task(seen("Pod", RUNNING))
    began = time.perf_counter()
    await begin
    try:
        return await jobs - began, await pods - began
    except TimeoutError:
        raise AssertionError(found.system.operator.log()) from None


async def _cpu_of_a_pass(found: Cluster, namespace: str) -> float:
    """Return the CPU time of the operator for a pass over a study in which nothing happens."""
    await asyncio.sleep(3)  # until the last passes are over
    before = Cost.of(found.system)
    for number in range(PASSES):
        await found.touch(namespace, number)
        await asyncio.sleep(1)  # reading the metrics to see the pass would cost the operator CPU time, too
    cost = Cost.of(found.system).since(before)
    return cost.operator_seconds / cost.passes


async def _create(found: Cluster, namespace: str, count: int, job: dict[str, Any]) -> None:
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
        for number in range(count)
    )

    async def creator() -> None:
        for body in bodies:
            await found.kube.create(body)

    await asyncio.gather(*(creator() for _ in range(CREATORS)))


@app.command()
def studies(
    numbers: Annotated[list[int] | None, typer.Option("--studies", help="Studies at once.")] = None,
) -> None:
    """Start 500 trials at once in one study and in many."""
    asyncio.run(_studies(numbers or [1, 10, 50]))


async def _studies(numbers: list[int]) -> None:
    _header("studies", "trials of each", "until all run", "CPU of the operator for each trial",
            "of the study server", "memory: before, most, after", "requests for each trial")  # fmt: skip
    async with cluster(TRIALS_OF_STUDIES) as found:
        for number in numbers:
            each = TRIALS_OF_STUDIES // number
            namespaces = [f"study-{number}-{n}" for n in range(number)]
            for namespace in namespaces:
                await found.make_namespace(namespace)
            async with memory(found.system) as used:
                before, began = Cost.of(found.system), time.perf_counter()
                all_run = asyncio.create_task(found.see("Pod", "", each * number, RUNNING))
                await asyncio.gather(*(found.apply(namespace, each) for namespace in namespaces))
                await all_run
                seconds = time.perf_counter() - began
                cost = Cost.of(found.system).since(before)
            trials = each * number
            _row(number, each, f"{seconds:.1f} s", f"{cost.operator_seconds / trials * 1000:.1f} ms",
                 f"{cost.server_seconds / trials * 1000:.1f} ms", used, cost.per(trials))  # fmt: skip
            await asyncio.gather(*(found.remove(namespace) for namespace in namespaces))


@app.command()
def workload(
    trials: Annotated[list[int] | None, typer.Option(help="Trials at once, by study.")] = None,
) -> None:
    """Run trials of 40 s, all at once: how much longer than one trial does it take?"""
    asyncio.run(_workload(trials or [1, 10, 100, 300]))


async def _workload(counts: list[int]) -> None:
    _header("trials of 40 s, at once", "until the study has completed", "overhead", "published: Katib 0.14",
            "published: Polyaxon")  # fmt: skip
    async with cluster(max(counts)) as found:
        for count in counts:
            namespace = f"workload-{count}"
            await found.make_namespace(namespace)
            async with training(found, namespace, SECONDS_OF_TRIALS):
                began = time.perf_counter()
                await found.apply(namespace, count)
                await found.completes(namespace)
                seconds = time.perf_counter() - began
            theirs = (f"{overhead} s" for overhead in PUBLISHED[count]) if count in PUBLISHED else ("", "")
            _row(count, f"{seconds:.1f} s", f"{seconds - SECONDS_OF_TRIALS:.1f} s", *theirs)
            await found.remove(namespace)


@app.command("long")
def long_study(
    trials: Annotated[int, typer.Option(help="Trials of the study.")] = 10_000,
    parallelism: Annotated[int, typer.Option(help="Trials at once.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Of a trial.")] = 1.0,
) -> None:
    """Run a study of many trials, and see whether its costs grow."""
    asyncio.run(_long(trials, parallelism, seconds))


async def _long(trials: int, parallelism: int, seconds: float) -> None:
    _header("trials finished", "trials/s", "CPU of the operator for each", "of the study server",
            "memory: before, most, after", "requests for each trial")  # fmt: skip
    async with cluster(parallelism) as found:
        await found.make_namespace("long")
        async with training(found, "long", seconds) as trainers:
            await found.apply("long", trials, parallelism)
            part = trials // 5
            for number in range(5):
                before, began, finished = Cost.of(found.system), time.perf_counter(), trainers.finished
                async with memory(found.system) as used:
                    if number < 4:
                        await until(lambda goal=part * (number + 1): trainers.finished >= goal)  # type: ignore[misc]
                    else:
                        await found.completes("long")
                cost, took = Cost.of(found.system).since(before), time.perf_counter() - began
                done = trainers.finished - finished
                _row(trainers.finished, f"{done / took:.0f}", f"{cost.operator_seconds / done * 1000:.1f} ms",
                     f"{cost.server_seconds / done * 1000:.1f} ms", used, cost.per(done))  # fmt: skip


def _header(*titles: str) -> None:
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    app()
