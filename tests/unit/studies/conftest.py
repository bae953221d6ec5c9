"""A real Postgres: an embedded one, or the server of TUNING_TEST_DATABASE_URL.

Each session makes a database of its own there and drops it; each test finds Optuna's tables empty.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, delete, text
from sqlalchemy.pool import NullPool
from tuning_operator.studies.storage import PostgresStorage, schema
from tuning_operator.studies.storage.batch import Done
from tuning_operator.studies.storage.changes import Change
from tuning_operator.studies.storage.committer import Committer

from tests.support.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server that tests may restart."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def _database(request: pytest.FixtureRequest) -> Iterator[str]:
    given = os.environ.get("TUNING_TEST_DATABASE_URL")
    server = given or request.getfixturevalue("postgres").url
    name = f"tuning_test_{uuid.uuid4().hex[:12]}"
    admin = create_engine(schema.database_url(server), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = schema.database_url(server).set(database=name)
    schema.prepare(url)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(_database: str) -> str:
    """The URL of a database with Optuna's tables, empty; nobody is connected to it."""
    engine = create_engine(_database, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        for table in [*reversed(schema.trials.metadata.sorted_tables), schema.writers]:
            if table.name != "version_info":
                connection.execute(delete(table))
    return _database


@pytest.fixture
def new_storage(database_url: str) -> Iterator[Callable[..., PostgresStorage]]:
    """Makes storages on the test's database; all are closed at the end."""
    made: list[PostgresStorage] = []

    def make(**arguments: object) -> PostgresStorage:
        arguments = {"url": database_url, "write_timeout": 30.0} | arguments
        storage = PostgresStorage(**arguments)  # type: ignore[arg-type]
        storage._library._prepared = True  # the tables exist; Optuna takes 0.1 s to check
        made.append(storage)
        return storage

    yield make
    for storage in made:
        storage.close(timeout=2.0)


@pytest.fixture
def storage(new_storage: Callable[..., PostgresStorage]) -> PostgresStorage:
    """A storage on an empty database."""
    return new_storage()


@pytest.fixture
def plain(database_url: str) -> Iterator[RDBStorage]:
    """Optuna's own storage on the test's database."""
    storage = RDBStorage(database_url, skip_table_creation=True)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture
def paused_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Callable[[], None]]]:
    """Pauses commits when it is called; what that returns resumes them, as the end of the test does."""
    resumed = threading.Event()
    attempt = Committer._attempt

    def wait_and_attempt(self: Committer, changes: Sequence[Change]) -> Done:
        assert resumed.wait(60)
        return attempt(self, changes)

    def pause() -> Callable[[], None]:
        monkeypatch.setattr(Committer, "_attempt", wait_and_attempt)
        return resumed.set

    yield pause
    resumed.set()
