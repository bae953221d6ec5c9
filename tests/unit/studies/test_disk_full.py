"""Postgres on a disk that is really full: nothing is lost, and all continues once there is space."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy.exc import DBAPIError
from tuning_operator.studies.storage import PostgresStore, schema

from tests.support.postgres import EmbeddedPostgres
from tests.support.small_disk import SmallDisk
from tests.support.study_server import running_server
from tests.unit.studies.test_storage_outage import execute, in_database

STUDY = "/v1/studies/ml/mnist"
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}]}
TRIALS = 4
BYTES = 25_000
"""Of an attribute: it takes new pages of a table."""


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with SmallDisk(128) as disk:
        yield disk


@pytest.fixture
def postgres(disk: SmallDisk) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(parent=disk.path) as postgres:
        yield postgres


@pytest.mark.fault(
    "The disk of Postgres is full: it refuses writes, and then crashes and can't start",
    "Requests wait; nothing that was acknowledged is lost. All continues once there is space.",
)
@pytest.mark.timeout(1200)
def test_a_full_disk(disk: SmallDisk, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning_operator.studies.study.context.COMMIT_SECONDS", 0.3)
    url = schema.database_url(postgres.url).render_as_string(hide_password=False)
    with running_server(PostgresStore(url, write_timeout=0.3)) as server:
        operator = server.operator()
        every = {"parallelism": TRIALS, "maxTrials": TRIALS}
        server.wait_until("is declared", lambda: operator.put(STUDY, json=DEFINITION).is_success)
        server.wait_until("trials run", lambda: operator.post(f"{STUDY}/ask", json=every).is_success)
        pods = [server.pod("ml", "mnist", number) for number in range(TRIALS)]
        acknowledged: list[dict[str, str]] = [{} for _ in pods]

        def write(number: int, key: str) -> int:
            value = random.Random(f"{number} {key}").randbytes(BYTES).hex()
            status = pods[number].post("/attributes", json={"userAttrs": {key: value}}).status_code
            if status == 200:
                acknowledged[number][key] = value
            return status

        for number in range(TRIALS):
            server.wait_until("writes", lambda n=number: write(n, "before") == 200)
        disk.fill()
        assert 503 in [write(number, "full") for number in range(TRIALS)]
        server.wait_until("is not ready", lambda: operator.get("/readyz").status_code == 503)
        postmaster = postgres.processes()[0]
        new_file = "SELECT pg_switch_wal(), pg_current_xact_id()"  # of the log
        with pytest.raises(DBAPIError):
            execute(url, new_file)
        for _ in range(100):
            with contextlib.suppress(psutil.TimeoutExpired):
                postmaster.wait(6)
                break
            with contextlib.suppress(DBAPIError):  # it may have recovered, and found space for one
                execute(url, new_file)
        assert not postmaster.is_running()
        assert write(0, "away") == 503
        disk.make_room()
        postgres.start()
        for key in ("full", "away", "after"):
            for number in range(TRIALS):
                server.wait_until("writes", lambda n=number, k=key: write(n, k) == 200)
    for trial in in_database(url, "ml/mnist"):
        assert trial.user_attrs == acknowledged[trial.number]
        assert trial.user_attrs.keys() == {"before", "full", "away", "after"}
