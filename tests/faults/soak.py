"""Thousands of short trials while operator, study server and Postgres are killed at random.

    uv run python -m tests.faults.soak

A control plane of its own, the operator's and the study server's own processes and a real Postgres; only the
node and the trainers are simulated, which repeat a request until it is answered, as the trainer does. In the
first half of the trials, one of the processes is killed a few seconds after the last one was back. Nothing is
killed in the second half, where memory is measured. The audit at the end reads the record with Optuna. The
result is written to docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from kubernetes.aio import config
from tuning_operator.resource import names

from dev.cluster import control_plane, programs
from dev.cluster.run import run, succeeds, wait
from tests.api.operator_kit import Cluster, Process, System, node_of, running_system
from tests.api.trainers import Trainers, audit
from tests.faults.report import write_soak
from tests.support.postgres import EmbeddedPostgres

CRDS = Path(__file__).parents[2] / "crds"
NAMESPACE = "soak"
MINUTES = 60
GROWTH_MIB = 16
"""What a process may grow in the last two fifths: 2,000 trials in memory take less than 10 MiB."""


class Chaos:
    """Kills one of the processes every few seconds, and starts it again after a moment."""

    def __init__(self, system: System, postgres: EmbeddedPostgres, every: float, seed: int) -> None:
        self._system, self._postgres, self._every = system, postgres, every
        self._random = random.Random(seed)
        self.kills = 0
        self.enough = False

    async def run(self) -> None:
        while not self.enough:
            await asyncio.sleep(self._random.uniform(self._every / 2, self._every * 3 / 2))
            victim = self._random.choice([self._system.operator, self._system.server, self._postgres])
            await self._kill(victim, self._random.uniform(0, 2))

    async def _kill(self, victim: Process | EmbeddedPostgres, away: float) -> None:
        self.kills += 1
        await asyncio.to_thread(victim.crash if isinstance(victim, EmbeddedPostgres) else victim.kill)
        await asyncio.sleep(away)
        await asyncio.to_thread(victim.start)


@dataclass
class Outcome:
    """What the soak measured."""

    kills: int = 0
    requests: int = 0
    retries: int = 0
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Trials finished, and then the MiB of the operator and of the study server."""


def main(
    trials: Annotated[int, typer.Option()] = 2000, parallelism: int = 32, every: float = 10, seed: int = 8
) -> None:
    """Run the soak and write what it measured to the page on reliability; fail if something was lost.

    Args:
        trials: how many.
        parallelism: how many of them run at a time.
        every: the mean number of seconds between a process that is back and the next kill.
        seed: of what is killed, and when.
    """
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        control_plane.temporary() as plane,
        EmbeddedPostgres() as postgres,
    ):
        kubectl = (programs.kubectl(), f"--kubeconfig={plane.kubeconfig}")
        run(*kubectl, "apply", "-f", CRDS)
        wait("the CRD", lambda: succeeds(*kubectl, "get", names.PLURAL), 30)
        run(*kubectl, "create", "namespace", NAMESPACE)
        with running_system(Path(folder), plane.kubeconfig, postgres.url) as system:
            chaos = Chaos(system, postgres, every, seed)
            outcome = asyncio.run(soak(plane.kubeconfig, system, chaos, trials, parallelism))
            audit(postgres.url, f"{NAMESPACE}/soak", trials)
    (_, *first), *_, (_, *last) = outcome.memory
    assert all(now - before <= GROWTH_MIB for before, now in zip(first, last, strict=True)), outcome.memory
    minutes = (time.monotonic() - started) / MINUTES
    summary = (
        f"{trials:,} trials, {parallelism} at a time, in {minutes:.0f} minutes: clean after {outcome.kills} "
        f"kills, with {outcome.retries:,} of {outcome.requests:,} requests repeated."
    )
    print(summary)
    write_soak(summary, outcome.memory)


async def soak(kubeconfig: Path, system: System, chaos: Chaos, trials: int, parallelism: int) -> Outcome:
    async with (
        await config.new_client_from_config(config_file=str(kubeconfig)) as connection,
        httpx.AsyncClient(timeout=10) as http,
        node_of(connection, NAMESPACE, parallelism) as node,
    ):
        trainers = Trainers(http)
        node.life = trainers.live
        cluster = Cluster(connection, NAMESPACE, node, system)
        spec = {
            "trial": {"ttlAfterFinished": "60s"},
            "maxFailedTrials": 0,
            "pruner": {"name": "NopPruner"},  # the trainers don't stop when they are asked to
        }
        await cluster.apply("soak", maxTrials=trials, parallelism=parallelism, **spec)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(chaos.run())
            await _finished(cluster, trials // 2)
            chaos.enough = True
        outcome = Outcome(chaos.kills)
        for part in (6, 7, 8, 9, 10):
            count = trials * part // 10
            status = await _finished(cluster, count)
            outcome.memory.append((count, _memory(system.operator), _memory(system.server)))
            print(f"{count} trials finished")
        assert status["phase"] == "Completed", status
        assert status["trials"]["complete"] == trials, status["trials"]
        assert len(node.jobs) == trials, f"{len(node.jobs)} Jobs had pods"
        assert not node.failures(), node.failures()
        outcome.requests, outcome.retries = trainers.requests, trainers.retries
        return outcome


async def _finished(cluster: Cluster, count: int) -> dict:
    def finished(status: dict) -> bool:
        trials = status.get("trials", {})
        return sum(trials.get(state, 0) for state in ("complete", "pruned", "failed")) >= count

    return await cluster.wait(finished, "soak", seconds=30 * MINUTES)


def _memory(process: Process) -> int:
    """Return the resident memory of a process, in MiB."""
    return psutil.Process(process.pid).memory_info().rss >> 20


if __name__ == "__main__":
    typer.run(main)
