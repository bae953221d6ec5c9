"""The load that the study server sustains: reports per second from 50 pods, and the time of an ask.

    uv run python -m tests.bench.server                 # in memory
    uv run python -m tests.bench.server --durable       # in a Postgres of its own, with fsync
    uv run python -m tests.bench.server --postgres URL  # durable; leaves its studies in the database

The server has a process of its own, the clients share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import random
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx
import optuna
import typer
import uvloop
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial
from pydantic import SecretStr
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod
from tuning_operator.studies.server import SWITCH_INTERVAL, StudyServer, make_store
from tuning_operator.studies.settings import StudySettings

from tests.support.postgres import EmbeddedPostgres
from tests.support.study_server import NO_TLS, SECRET

CLIENTS = 50
STEPS = 10
DISTRIBUTIONS: dict[str, Any] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "momentum": FloatDistribution(0, 1),
    "dropout": FloatDistribution(0, 0.5),
    "layers": IntDistribution(1, 8),
    "optimizer": CategoricalDistribution(["Adam", "SGD", "RMSprop", "Lion"]),
}
DEFINITION = {
    "objectives": [{"metric": "accuracy", "direction": "maximize"}],
    "searchSpace": [
        {"name": "lr", "type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        {"name": "momentum", "type": "float", "low": 0, "high": 1},
        {"name": "dropout", "type": "float", "low": 0, "high": 0.5},
        {"name": "layers", "type": "int", "low": 1, "high": 8},
        {"name": "optimizer", "type": "categorical", "choices": ["Adam", "SGD", "RMSprop", "Lion"]},
    ],
    "deletionPolicy": "Delete",
}


def main(
    durable: Annotated[bool, typer.Option("--durable", help="In a Postgres of its own.")] = False,
    postgres: Annotated[str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/DATABASE")] = None,
    trials: Annotated[list[int] | None, typer.Option(help="Finished trials of the studies.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to report.")] = 5,
) -> None:
    """Measure, and print a table."""
    with EmbeddedPostgres(fsync=True) if durable else contextlib.nullcontext() as embedded:
        _table(embedded.url if embedded else postgres, trials or [0, 1_000, 20_000], seconds)


def _table(postgres: str | None, trials: list[int], seconds: float) -> None:
    print(f"{'finished trials':>15} {'ask p50':>10} {'ask max':>10} {'one pod p50':>12}", end="")
    print(f" {f'{CLIENTS} pods':>12} {'p50':>9} {'p99':>9}")
    for count in trials:
        name = f"bench-{count}-{os.getpid()}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = multiprocessing.get_context("fork").Process(
                target=serve, args=(postgres, name, count, listener), daemon=True
            )
            process.start()
            try:
                measure(f"http://127.0.0.1:{listener.getsockname()[1]}", name, count, seconds)
            finally:
                process.terminate()
                process.join()


def serve(postgres: str | None, name: str, count: int, listener: socket.socket, shard: int = 0) -> None:
    """Serve one study with some finished trials."""
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    settings = StudySettings(
        database_url=SecretStr(postgres or "memory:"), token_secret=SecretStr(SECRET), shard=shard
    )
    store = make_store(settings)
    study = optuna.create_study(study_name=f"ml/{name}", direction="maximize", storage=store.storage)
    with ThreadPoolExecutor(64 if postgres else 1) as executor:
        list(executor.map(study.add_trial, (finished(number) for number in range(count))))
    uvloop.run(StudyServer(settings, store).run([listener]))


def finished(number: int) -> optuna.trial.FrozenTrial:
    """Return a trial with five parameters and ten intermediate values."""
    chance = random.Random(number)
    final = chance.random()
    return create_trial(
        value=final,
        distributions=DISTRIBUTIONS,
        params={
            "lr": 10 ** chance.uniform(-5, -1),
            "momentum": chance.random(),
            "dropout": chance.random() / 2,
            "layers": chance.randint(1, 8),
            "optimizer": chance.choice(["Adam", "SGD", "RMSprop", "Lion"]),
        },
        intermediate_values={step: final * (step + 1) / STEPS for step in range(STEPS)},
    )


def measure(url: str, name: str, count: int, seconds: float) -> None:
    """Print one row."""
    operator = httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {mint_operator(SECRET)}"}, timeout=300, verify=NO_TLS
    )
    while operator.get("/readyz").status_code != 200:
        time.sleep(0.05)
    path = f"/v1/studies/ml/{name}"
    operator.put(path, json=DEFINITION).raise_for_status()
    asks = []
    for running in range(1, CLIENTS + 1):
        began = time.perf_counter()
        reply = operator.post(f"{path}/ask", json={"parallelism": running, "maxTrials": 10**6})
        asks.append(time.perf_counter() - began)
        reply.raise_for_status()
    numbers = [trial["number"] for trial in reply.json()["running"]]
    one, _ = asyncio.run(report(url, name, numbers[:1], seconds / 2, 0))
    many, took = uvloop.run(report(url, name, numbers, seconds, 1_000_000))
    p50, p99 = quantiles(many)
    print(f"{count:>15} {ms(statistics.median(asks))} {ms(max(asks))} {ms(quantiles(one)[0]):>12}", end="")
    print(f" {f'{len(many) / took:,.0f}/s':>12} {ms(p50):>9} {ms(p99):>9}", flush=True)
    operator.delete(path).raise_for_status()


async def report(
    url: str, name: str, numbers: list[int], seconds: float, first_step: int
) -> tuple[list[float], float]:
    """Have each trial's pod report as fast as it can; return the latencies and the time it took."""
    began = time.perf_counter()
    pods = [pod(url, name, number, began + seconds, first_step) for number in numbers]
    latencies = await asyncio.gather(*pods)
    return [latency for of_pod in latencies for latency in of_pod], time.perf_counter() - began


async def pod(url: str, name: str, number: int, until: float, step: int) -> list[float]:
    """Report over one connection with minimal HTTP, since the clients share the machine."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    token = mint_pod(SECRET, "ml", f"{name}-{number}-abcde")
    head = (
        f"POST /v1/studies/ml/{name}/trials/{number}/report HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    latencies = []
    while (began := time.perf_counter()) < until:
        body = json.dumps({"values": [[step, random.random()]]})  # most steps are the trial's own: no pruning
        writer.write(f"{head}{len(body)}\r\n\r\n{body}".encode())
        status = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in status[:16], status
        length = int(status.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - began)
        step += 1
    writer.close()
    return latencies


def quantiles(latencies: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def ms(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1000:.2f} ms"


if __name__ == "__main__":
    typer.run(main)
