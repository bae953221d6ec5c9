"""How long trial.report and should_prune take: ours, plain Optuna, and Optuna's gRPC proxy.

    uv run --group bench python -m tests.bench.reports

All of them use MedianPruner and the same Postgres with fsync: a value is durable when `report` returns. Each
client is a process. Ours have the trial of the trainer images, and the study server writes to Postgres; plain
Optuna writes from each client; with the proxy, one process writes for all clients. They take turns. A trial
reports ten values, as the finished ones did; they are so good that no trial is pruned.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import socket
import statistics
import tempfile
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import optuna
import typer
from optuna.storages import GrpcStorageProxy, RDBStorage, get_storage, run_grpc_proxy_server
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tuning_operator.studies.auth.tokens import mint_pod
from tuning_operator.studies.storage.schema import database_url
from tuning_trainer.optuna_api.trial import Trial
from tuning_trainer.wire.client import Client
from tuning_trainer.wire.outbox import Outbox

from tests.bench.server import DEFINITION, STEPS, ask, ms, operator_of, serve, settle
from tests.bench.storage import fill
from tests.support.postgres import EmbeddedPostgres
from tests.support.study_server import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

CLIENTS = 8
ROUNDS = 12
NAME = "bench-reports"
PRUNED = DEFINITION | {"pruner": {"name": "MedianPruner"}, "sampler": {"name": "RandomSampler"}}


def main(
    trials: Annotated[list[int] | None, typer.Option(help="Finished trials of the studies.")] = None,
) -> None:
    """Measure, and print a table as Markdown."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"| finished trials | reports go to | one client, p50 | {CLIENTS} clients |\n|---|---|---|---|")
    for count in trials or [1_000]:
        with EmbeddedPostgres(fsync=True) as postgres, contextlib.ExitStack() as stack:
            measure(count, [kind(postgres.url, count, stack) for kind in (Ours, Plain, Proxy)], stack)


def measure(count: int, systems: list[Ours | Plain], stack: contextlib.ExitStack) -> None:
    """Print a row for each system."""
    clients = [[stack.enter_context(_client(system)) for _ in range(CLIENTS)] for system in systems]
    for system, several in zip(systems, clients, strict=True):
        turn(system, several)  # warm up: Optuna's clients load the study
    alone: list[list[float]] = [[] for _ in systems]
    seconds = [0.0 for _ in systems]
    for _ in range(ROUNDS):
        for i, system in enumerate(systems):
            alone[i] += turn(system, clients[i][:1])[0]
            seconds[i] += turn(system, clients[i])[1]
    p50s = [statistics.median(took) for took in alone]
    rates = [ROUNDS * CLIENTS * STEPS / took for took in seconds]
    for system, p50, rate in zip(systems, p50s, rates, strict=True):
        one, many = f"{ms(p50)} ({p50 / p50s[0]:.1f}x)", f"{rate:,.0f}/s ({rate / rates[0]:.2f}x)"
        print(f"| {count:,} | {system.title} | {one} | {many} |", flush=True)


def turn(system: Ours | Plain, clients: list[Connection]) -> tuple[list[float], float]:
    """Have each client run a trial; return how long each report took, and the seconds for all of them."""
    _together(clients, system.trials(len(clients)))
    times = _together(clients, [None] * len(clients))
    _together(clients, [None] * len(clients))
    latencies = [after - before for of_trial in times for before, after in of_trial]
    return latencies, max(t[-1][1] for t in times) - min(t[0][0] for t in times)


class Ours:
    """The study server, and the trial that an objective gets in a pod."""

    title = "the study server"

    def __init__(self, postgres: str, count: int, stack: contextlib.ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuning-bench-")))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            stack.enter_context(_process(serve, postgres, NAME, count, listener))
        self._operator = operator_of(self._url)
        self._operator.put(f"/v1/studies/ml/{NAME}", json=PRUNED).raise_for_status()

    def trials(self, count: int) -> list[Any]:
        """Return what the clients need for a trial each: its number."""
        return ask(self._operator, f"/v1/studies/ml/{NAME}", count)[0]

    def begin(self, number: int) -> Trial:
        """Start a trial, in a client."""
        token = self._folder / str(number)
        token.write_text(mint_pod(SECRET, "ml", f"{NAME}-{number}-abcde"))
        self._client = Client(f"{self._url}/v1/studies/ml/{NAME}/trials/{number}", str(token))
        return Trial(self._client, Outbox(self._client), NAME, self._client.call("GET", "", patience=0))

    def end(self, trial: Trial) -> None:
        """End the trial, in a client."""
        self._client.call("POST", "/result", {"state": "COMPLETE", "values": [0.5]}, patience=0)
        self._client.close()


class Plain:
    """Optuna in each client, with a connection to the database."""

    title = "RDBStorage in each client"

    def __init__(self, postgres: str, count: int, stack: contextlib.ExitStack) -> None:
        database = type(self).__name__.lower()
        engine = create_engine(database_url(postgres), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {database}"))
        self._url = database_url(postgres).set(database=database).render_as_string(hide_password=False)
        storage = RDBStorage(self._url, engine_kwargs={"poolclass": NullPool})
        study = optuna.create_study(study_name=NAME, storage=storage, direction="maximize")
        fill(self._url, study._study_id, count)
        settle(self._url)

    def trials(self, count: int) -> list[Any]:
        """Return what the clients need for a trial each: nothing."""
        return [None] * count

    def begin(self, _: None) -> optuna.Trial:
        """Start a trial, in a client."""
        return self._study.ask()

    def end(self, trial: optuna.Trial) -> None:
        """End the trial, in a client."""
        self._study.tell(trial, 0.5)

    @cached_property
    def _study(self) -> optuna.Study:
        """The study, as a client has loaded it."""
        sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.MedianPruner()
        return optuna.load_study(study_name=NAME, storage=self._storage(), sampler=sampler, pruner=pruner)

    def _storage(self) -> optuna.storages.BaseStorage:
        return get_storage(self._url)


class Proxy(Plain):
    """Optuna in each client, with a connection to Optuna's gRPC proxy."""

    title = "Optuna's gRPC proxy"

    def __init__(self, postgres: str, count: int, stack: contextlib.ExitStack) -> None:
        super().__init__(postgres, count, stack)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        stack.enter_context(_process(self._serve))

    def _serve(self) -> None:
        run_grpc_proxy_server(get_storage(self._url), host="127.0.0.1", port=self._port)

    def _storage(self) -> optuna.storages.BaseStorage:
        storage = GrpcStorageProxy(host="127.0.0.1", port=self._port)
        storage.wait_server_ready(timeout=60)
        return storage


@contextlib.contextmanager
def _process(target: Callable[..., None], *args: Any) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def _client(system: Ours | Plain) -> Iterator[Connection]:
    """Start a client; yield the connection to it."""
    here, there = multiprocessing.Pipe()
    with _process(_run_trials, system, there):
        yield here


def _run_trials(system: Ours | Plain, connection: Connection) -> None:
    """Be a client: begin a trial, report its values and end it, each when asked to."""
    while True:
        trial: Any = system.begin(connection.recv())
        connection.send(None)
        connection.recv()
        times = []
        for step in range(STEPS):
            before = time.perf_counter()
            trial.report(1 + random.random(), step)
            trial.should_prune()
            times.append((before, time.perf_counter()))
        connection.send(times)
        connection.recv()
        system.end(trial)
        connection.send(None)


def _together(clients: list[Connection], messages: list[Any]) -> list[Any]:
    """Send each client its message; return the replies of all."""
    for connection, message in zip(clients, messages, strict=True):
        connection.send(message)
    return [connection.recv() for connection in clients]


if __name__ == "__main__":
    typer.run(main)
