"""What the storage costs compared with Optuna's RDBStorage, on an embedded Postgres with fsync.

    uv run python -m tests.bench.storage

Durable writes: `clients` threads (or asyncio tasks) report intermediate values, each waiting until its value
is committed. Loading: the first look at a study of 5 parameters and 10 intermediate values a trial, all
finished, in CPU seconds of this process, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import optuna
import typer
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from sqlalchemy import create_engine, text
from tuning_operator.studies.storage import PostgresStorage, schema

from tests.support.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

MINIMIZE = [StudyDirection.MINIMIZE]
FLOAT = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'
SEED = [
    "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)"
    " SELECT i, :study, 'COMPLETE', now(), now() FROM generate_series(0, :n - 1) i",
    "INSERT INTO trial_values (trial_id, objective, value, value_type)"
    " SELECT trial_id, 0, random(), 'FINITE' FROM trials WHERE study_id = :study",
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)"
    " SELECT trial_id, 'p' || j, random(), :distribution"
    " FROM trials, generate_series(0, 4) j WHERE study_id = :study ORDER BY trial_id, j",
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)"
    " SELECT trial_id, j, random(), 'FINITE' FROM trials, generate_series(0, 9) j"
    " WHERE study_id = :study ORDER BY trial_id, j",
    "ANALYZE",
]


def main(
    trials: Annotated[list[int] | None, typer.Option(help="Finished trials of the studies.")] = None,
    clients: Annotated[int, typer.Option(help="Threads or tasks that write.")] = 50,
) -> None:
    """Measure, and print tables."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    with EmbeddedPostgres(fsync=True) as server:
        url = schema.database_url(server.url).render_as_string(hide_password=False)
        ours = PostgresStorage(url)
        ours.wait_for_lock()
        writes(url, ours, clients)
        for count in trials or [1_000, 20_000]:
            looks(url, ours, count)
        ours.close()


def writes(url: str, ours: PostgresStorage, clients: int) -> None:
    """Print how many durable reports a second there are."""
    theirs = RDBStorage(url, skip_table_creation=True, engine_kwargs={"pool_size": clients})
    slow = by_threads(theirs, clients, each=10)
    theirs.engine.dispose()
    before = ours.commits
    fast = by_threads(ours, clients, each=100)
    commits = ours.commits - before
    loop, middle, slowest = asyncio.run(by_tasks(ours, clients, each=100))
    print(f"| {clients} clients | durable reports | ratio | commits | p50 | p99 |\n|---|---|---|---|---|---|")
    print(f"| RDBStorage, threads | {slow:,.0f}/s | 1.0 | | | |")
    print(f"| ours, threads | {fast:,.0f}/s | {fast / slow:.1f} | {commits} | | |")
    print(f"| ours, event loop | {loop:,.0f}/s | {loop / slow:.1f} | ", end="")
    print(f"| {middle * 1e3:.1f} ms | {slowest * 1e3:.1f} ms |", flush=True)


def by_threads(storage: BaseStorage, clients: int, each: int) -> float:
    """Return reports a second."""
    study_id = storage.create_new_study(MINIMIZE)
    ids = [storage.create_new_trial(study_id) for _ in range(clients)]

    def report(trial_id: int) -> None:
        for step in range(each):
            storage.set_trial_intermediate_value(trial_id, step, 0.5)

    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        list(threads.map(report, ids))
        return clients * each / (time.perf_counter() - start)


async def by_tasks(storage: PostgresStorage, clients: int, each: int) -> tuple[float, float, float]:
    """Return reports a second, and the seconds that one takes: the median and the 99th percentile."""
    study_id = storage.create_new_study(MINIMIZE)
    ids = [storage.create_new_trial(study_id) for _ in range(clients)]
    took: list[float] = []

    async def report(trial_id: int) -> None:
        for step in range(each):
            start = time.perf_counter()
            with storage.deferred(wait=False) as written:
                storage.set_trial_intermediate_value(trial_id, step, 0.5)
            await written.durable()
            took.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*map(report, ids))
    rate = clients * each / (time.perf_counter() - start)
    return rate, statistics.median(took), statistics.quantiles(took, n=100)[-1]


def looks(url: str, ours: PostgresStorage, count: int) -> None:
    """Print what loading, refreshing and creating cost for a study of `count` finished trials."""
    study_id = ours.create_new_study(MINIMIZE)
    fill(url, study_id, count)
    plain = RDBStorage(url, skip_table_creation=True)
    slow = cpu(lambda: _CachedStorage(plain).get_all_trials(study_id, deepcopy=False))
    fast = cpu(lambda: ours.get_all_trials(study_id, deepcopy=False))
    print(f"\n| {count:,} finished trials | RDBStorage | ours | ratio |\n|---|---|---|---|")
    print(f"| loading, CPU time | {slow:.2f} s | {fast:.2f} s | {slow / fast:.1f} |")
    for what, theirs, mine in (
        ("create_new_trial", lambda: plain.create_new_trial(study_id), ours.create_new_trial),
        ("get_best_trial", lambda: plain.get_best_trial(study_id), ours.get_best_trial),
        ("refresh", None, ours.refresh),
    ):
        fast = often(lambda mine=mine: mine(study_id))
        slow = often(theirs) if theirs else None
        theirs_took, ratio = (f"{slow * 1e3:.2f} ms", f"{slow / fast:,.1f}") if slow else ("", "")
        print(f"| {what} | {theirs_took} | {fast * 1e3:.2f} ms | {ratio} |", flush=True)
    plain.engine.dispose()


def fill(url: str, study_id: int, count: int) -> None:
    """Give a study finished trials of 5 parameters and 10 intermediate values."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in SEED:
            values = {"study": study_id, "n": count, "distribution": FLOAT}
            connection.execute(text(statement), values if ":" in statement else {})
    engine.dispose()


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds that it takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def often(work: Callable[[], object]) -> float:
    """Return the wall seconds that it takes, the median of some."""
    took = []
    for _ in range(30):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


if __name__ == "__main__":
    typer.run(main)
