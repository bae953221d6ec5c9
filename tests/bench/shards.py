"""The load that several study servers with one database sustain: reports from 50 pods.

    uv run python -m tests.bench.shards                                       # 1, 2 and 4 study servers
    uv run python -m tests.bench.shards --servers 1 --servers 3 --seconds 2

Each server has a process of its own, the clients share one, and Postgres runs with fsync. All of them share
the machine, whose cores are the limit; the CPU time of a report says what more cores would bring.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from typing import TYPE_CHECKING, Annotated

import psutil
import typer
import uvloop

from tests.bench.server import CLIENTS, DEFINITION, ms, operator_of, quantiles, report, serve
from tests.support.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_UP_SECONDS = 1.0


def main(
    servers: Annotated[list[int] | None, typer.Option(help="Numbers of study servers.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to report.")] = 10,
) -> None:
    """Measure, and print a table."""
    columns = (
        "study servers",
        "reports/s",
        "p50",
        "p99",
        "CPU of a report",
        "in Postgres",
        "in clients",
        "busy cores",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for count in servers or [1, 2, 4]:
        with EmbeddedPostgres(fsync=True) as postgres, _running(postgres.url, count) as running:
            print(_measured(postgres, running, seconds), flush=True)
    print(
        f"\nServers, Postgres and clients share {os.cpu_count()} cores, which limits the sum of all servers. "
        "A server uses one core: the CPU time of a report limits what it can sustain."
    )


class Server:
    """A study server in a process of its own, with one study."""

    def __init__(self, database: str, shard: int) -> None:
        self.name = f"bench-{shard}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self.process = multiprocessing.get_context("fork").Process(
                target=serve, args=(database, self.name, 0, listener, shard), daemon=True
            )
            self.process.start()

    def start_trials(self, count: int) -> list[int]:
        """Declare the study and start trials; return their numbers."""
        path = f"/v1/studies/ml/{self.name}"
        with contextlib.closing(operator_of(self.url)) as operator:
            operator.put(path, json=DEFINITION).raise_for_status()
            numbers: list[int] = []
            while len(numbers) < count:
                reply = operator.post(f"{path}/ask", json={"parallelism": count, "maxTrials": count})
                numbers = [trial["number"] for trial in reply.raise_for_status().json()["running"]]
        return numbers


@contextlib.contextmanager
def _running(database: str, count: int) -> Iterator[list[Server]]:
    servers = [Server(database, shard) for shard in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
            server.process.join()


def _measured(postgres: EmbeddedPostgres, servers: list[Server], seconds: float) -> str:
    """Return one row."""
    trials = [server.start_trials(CLIENTS // len(servers)) for server in servers]

    async def all_report(seconds: float, first_step: int) -> list[float]:
        several = (
            report(server.url, server.name, numbers, seconds, first_step)
            for server, numbers in zip(servers, trials, strict=True)
        )
        return [latency for found, _ in await asyncio.gather(*several) for latency in found]

    uvloop.run(all_report(WARM_UP_SECONDS, 0))
    ours = [psutil.Process(server.process.pid) for server in servers]
    theirs = postgres.processes()
    before, began = (_cpu(ours), _cpu(theirs), time.process_time()), time.perf_counter()
    latencies = uvloop.run(all_report(seconds, 1_000_000))
    took = time.perf_counter() - began
    spent = [
        after - earlier
        for after, earlier in zip((_cpu(ours), _cpu(theirs), time.process_time()), before, strict=True)
    ]
    p50, p99 = quantiles(latencies)
    cells = [
        str(len(servers)),
        f"{len(latencies) / took:,.0f}",
        ms(p50),
        ms(p99),
        *(ms(one / len(latencies)) for one in spent),
        f"{sum(spent) / took:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _cpu(processes: list[psutil.Process]) -> float:
    """Return the CPU time that processes have used, in seconds."""
    times = [process.cpu_times() for process in processes if process.is_running()]
    return sum(time.user + time.system for time in times)


if __name__ == "__main__":
    typer.run(main)
