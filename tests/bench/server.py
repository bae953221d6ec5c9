"""The load that the study server sustains: reports per second from 50 pods, and the time of an ask.

Then the same reports while trials end and others are asked for as fast as it goes, and the time of a report
with each pruner that keeps something, with 200 running trials.

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
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod
from tuning_operator.studies.server import SWITCH_INTERVAL, StudyServer, make_store
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage.schema import database_url

from tests.support.postgres import EmbeddedPostgres
from tests.support.study_server import NO_TLS, SECRET

CLIENTS = 50
RUNNING = 200
PRUNERS: dict[str, dict[str, Any]] = {
    "MedianPruner": {},
    "PercentilePruner": {"percentile": 25.0},
    "SuccessiveHalvingPruner": {"min_resource": 1},
    "HyperbandPruner": {"min_resource": 1, "max_resource": 100},
}
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
    columns = [
        *("finished trials", "ask, p50", "ask, longest", "report of one pod, p50"),
        *(f"reports of {CLIENTS} pods", "p50", "p99"),
        *("p50 while others ask", "p99 while others ask", "ask, p50 while others report"),
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    pruners = {}
    for count in trials:
        name = f"bench-{count}-{os.getpid()}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = multiprocessing.get_context("fork").Process(
                target=serve, args=(postgres, name, count, listener), daemon=True
            )
            process.start()
            try:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                pruners[count] = measure(url, name, count, seconds)
            finally:
                process.terminate()
                process.join()
    print(f"\nThe median time of a report of one pod, with {RUNNING} running trials:\n")
    print(f"| finished trials | {' | '.join(PRUNERS)} |\n|---|{'---|' * len(PRUNERS)}")
    for count, times in pruners.items():
        print(f"| {count:,} | {' | '.join(map(ms, times))} |")


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
    if postgres:
        settle(postgres)
    uvloop.run(StudyServer(settings, store).run([listener]))


def settle(postgres: str) -> None:
    """Have Postgres do now what it would do in the background after so many writes at once."""
    engine = create_engine(database_url(postgres), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


def finished(number: int) -> optuna.trial.FrozenTrial:
    """Return a trial with five parameters, and ten values that SuccessiveHalvingPruner has looked at."""
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
        system_attrs={f"completed_rung_{i}": final * (step + 1) / STEPS for i, step in enumerate((1, 4))},
    )


def operator_of(url: str) -> httpx.Client:
    """Return the operator's connection to a study server, once that is ready."""
    headers = {"Authorization": f"Bearer {mint_operator(SECRET)}"}
    operator = httpx.Client(base_url=url, headers=headers, timeout=300, verify=NO_TLS)
    while operator.get("/readyz").status_code != 200:
        time.sleep(0.05)
    return operator


def measure(url: str, name: str, count: int, seconds: float) -> list[float]:
    """Print one row; return the time of a report with each of PRUNERS."""
    operator = operator_of(url)
    path = f"/v1/studies/ml/{name}"
    operator.put(path, json=DEFINITION).raise_for_status()
    asks = [ask(operator, path, running) for running in range(1, CLIENTS + 1)]
    took = [seconds for _, seconds in asks]
    numbers = asks[-1][0]
    one, _ = asyncio.run(report(url, name, numbers[:1], seconds / 2, 0))
    many, reporting = uvloop.run(report(url, name, numbers, seconds, 1_000_000))
    with ThreadPoolExecutor(1) as executor:
        until = time.perf_counter() + seconds
        asking = executor.submit(ask_until, until, operator, path)
        beside, _ = uvloop.run(report(url, name, numbers, seconds, 2_000_000))
        asks_beside = asking.result()
    asked = [statistics.median(took), max(took)]
    times = [*quantiles(many), *quantiles(beside), statistics.median(asks_beside)]
    cells = [f"{count:,}", *map(ms, asked), ms(quantiles(one)[0])]
    cells += [f"{len(many) / reporting:,.0f}/s", *map(ms, times)]
    print(f"| {' | '.join(cells)} |", flush=True)
    found = [with_pruner(url, name, operator, pruner, seconds) for pruner in PRUNERS]
    operator.delete(path).raise_for_status()
    return found


def ask(operator: httpx.Client, path: str, running: int) -> tuple[list[int], float]:
    """Ask for trials until so many run; return their numbers and how long the last request took."""
    while True:
        began = time.perf_counter()
        reply = operator.post(f"{path}/ask", json={"parallelism": running, "maxTrials": 10**6})
        took = time.perf_counter() - began
        numbers = [trial["number"] for trial in reply.raise_for_status().json()["running"]]
        if len(numbers) == running:
            return numbers, took


def ask_until(until: float, operator: httpx.Client, path: str) -> list[float]:
    """End trials and ask for others, one at a time; return how long each ask took."""
    took = []
    while time.perf_counter() < until:
        numbers, seconds = ask(operator, path, CLIENTS + 1)
        took.append(seconds)
        result = {"state": "COMPLETE", "values": [random.random()]}
        operator.post(f"{path}/trials/{numbers[-1]}/result", json=result).raise_for_status()
    return took


def with_pruner(url: str, name: str, operator: httpx.Client, pruner: str, seconds: float) -> float:
    """Return the median time of a report of one of many running trials."""
    path = f"/v1/studies/ml/{name}"
    definition = DEFINITION | {
        "pruner": {"name": pruner, "args": PRUNERS[pruner]},
        "sampler": {"name": "RandomSampler"},
    }
    operator.put(path, json=definition).raise_for_status()
    numbers, _ = ask(operator, path, RUNNING)
    number = numbers[-1 - list(PRUNERS).index(pruner)]
    latencies, _ = asyncio.run(report(url, name, [number], seconds / 4, 0, 2.0))
    return quantiles(latencies)[0]


async def report(
    url: str, name: str, numbers: list[int], seconds: float, first_step: int, value: float | None = None
) -> tuple[list[float], float]:
    """Have each trial's pod report as fast as it can; return the latencies and the time it took.

    Without a `value`, each report has another one.
    """
    began = time.perf_counter()
    pods = [pod(url, name, number, began + seconds, first_step, value) for number in numbers]
    latencies = await asyncio.gather(*pods)
    return [latency for of_pod in latencies for latency in of_pod], time.perf_counter() - began


async def pod(url: str, name: str, number: int, until: float, step: int, value: float | None) -> list[float]:
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
        reported = random.random() if value is None else value  # most steps are the trial's own: no pruning
        body = json.dumps({"values": [[step, reported]]})
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
