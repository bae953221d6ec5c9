"""One writer at a time: the next waits for the lock, and the former can write no more."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool
from tuning_operator.studies.storage import (
    Fenced,
    PostgresStorage,
    PostgresStore,
    StorageUnavailable,
    schema,
)
from tuning_operator.studies.storage.committer import Committer
from tuning_operator.studies.storage.fence import FencedConnection
from tuning_operator.studies.storage.library import Library

from tests.support.postgres import EmbeddedPostgres

MINIMIZE = [StudyDirection.MINIMIZE]
NewStorage = Callable[..., PostgresStorage]


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def execute(url: str, statement: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(statement))


def steal(url: str) -> None:
    """Act as another server that got the lock while the writer's connection was lost."""
    execute(url, "UPDATE tuning_writers SET holder = 'another', batch = 0")


def count_attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that gets an entry for each attempt in vain to get the lock."""
    attempts: list[object] = []
    original = FencedConnection._log
    monkeypatch.setattr(
        FencedConnection, "_log", lambda self, attempt: (original(self, attempt), attempts.append(attempt))
    )
    return attempts


def wait_in_vain(storage: PostgresStorage, seconds: float, until: Callable[[], bool]) -> None:
    """Wait for the lock, for this long each time."""
    deadline = time.monotonic() + 120
    while True:
        with pytest.raises(StorageUnavailable):
            storage.wait_for_lock(seconds)
        if until():
            break
        assert time.monotonic() < deadline


KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'tuning-studies-%' AND datname = current_database()"
)


def test_the_second_waits_for_the_first(new_storage: NewStorage) -> None:
    first, second = new_storage(), new_storage()
    study_id = first.create_new_study(MINIMIZE, "study")
    with pytest.raises(StorageUnavailable):
        second.wait_for_lock(0.2)
    assert not second.writable()
    assert second.get_n_trials(study_id) == 0
    first.create_new_trial(study_id)
    waiting = in_background(second.wait_for_lock)
    assert waiting.is_alive()
    first.close()
    waiting.join(120)
    assert second.writable()
    assert second.get_n_trials(study_id) == 1, "what it read before it was the writer is read again"
    second.create_new_trial(study_id)
    assert second.get_n_trials(study_id) == 2


def test_a_pod_ends_the_sessions_of_the_one_that_it_replaces(new_storage: NewStorage) -> None:
    """The former one may run on, on a lost node that still reaches the database."""
    ended: list[Exception] = []
    former = new_storage(pod="tuning/server-0", on_end=ended.append)
    study_id = former.create_new_study(MINIMIZE, "study")
    other, pod = new_storage(pod="tuning/server-1"), new_storage(pod="tuning/server-0")
    with pytest.raises(StorageUnavailable):
        other.wait_for_lock(0.5)
    other.close()
    assert former.writable()
    pod.wait_for_lock(120)
    with pytest.raises(Fenced):
        former.create_new_trial(study_id)
    assert [type(error) for error in ended] == [Fenced]
    pod.create_new_trial(study_id)
    assert pod.get_n_trials(study_id) == 1


def test_a_waiting_storage_can_be_closed(new_storage: NewStorage) -> None:
    first, second = new_storage(), new_storage()
    first.wait_for_lock(120)
    with pytest.raises(StorageUnavailable):
        second.wait_for_lock(0.1)
    second.close(timeout=120)
    with pytest.raises(StorageUnavailable):
        second.create_new_study(MINIMIZE)
    assert first.writable()


def test_the_reason_of_the_wait_is_logged_once(
    new_storage: NewStorage,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = count_attempts(monkeypatch)
    elsewhere = make_url(database_url).set(database="nobody_made_it").render_as_string(hide_password=False)
    wait_in_vain(new_storage(url=elsewhere), 0.2, until=lambda: len(attempts) >= 3)
    warnings = [record.message for record in caplog.records if "cannot be written yet" in record.message]
    assert len(warnings) == 1
    assert 'database "nobody_made_it" does not exist' in warnings[0]


def test_shards_do_not_wait_for_each_other(new_storage: NewStorage) -> None:
    first, second = new_storage(shard=0), new_storage(shard=1)
    assert first.create_new_study(MINIMIZE) != second.create_new_study(MINIMIZE)


def test_a_writer_that_lost_the_lock_writes_nothing_more(new_storage: NewStorage, database_url: str) -> None:
    fenced: list[Exception] = []
    called = threading.Event()
    first = new_storage(on_end=lambda error: (fenced.append(error), called.set()))
    study_id = first.create_new_study(MINIMIZE, "study")
    trial_id = first.create_new_trial(study_id)
    second = new_storage()
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:  # so that the second gets the lock, and the first does not come back
        connection.execute(text("SELECT * FROM tuning_writers FOR UPDATE"))
        waiting = in_background(second.wait_for_lock)
        with first.deferred(wait=False) as writes:
            first.set_trial_intermediate_value(trial_id, 0, 0.5)
        steal_under_lock(connection)
        connection.execute(text(KILL))
    with pytest.raises(Fenced):
        writes.wait(120)
    assert called.wait(120)
    assert isinstance(fenced[0], Fenced)
    with pytest.raises(Fenced):
        first.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(Fenced):
        first.create_new_trial(study_id)
    assert not first.writable()
    waiting.join(120)
    assert second.get_trial(trial_id).intermediate_values == {}
    second.set_trial_intermediate_value(trial_id, 0, 0.25)
    plain = RDBStorage(database_url, skip_table_creation=True)
    assert plain.get_trial(trial_id).intermediate_values == {0: 0.25}
    assert plain.get_trial(trial_id).state == TrialState.RUNNING
    plain.engine.dispose()


def steal_under_lock(connection: object) -> None:
    connection.execute(text("UPDATE tuning_writers SET holder = 'another'"))  # type: ignore[attr-defined]


def test_the_row_fences_even_a_writer_that_is_connected(storage: PostgresStorage, database_url: str) -> None:
    study_id = storage.create_new_study(MINIMIZE)
    trial_id = storage.create_new_trial(study_id)
    steal(database_url)
    with pytest.raises(Fenced):
        storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    with pytest.raises(Fenced):
        storage.set_trial_intermediate_value(trial_id, 1, 0.5)


async def test_durable_raises_fenced(storage: PostgresStorage, database_url: str) -> None:
    study_id = storage.create_new_study(MINIMIZE)
    steal(database_url)
    with storage.deferred(wait=False):
        storage.set_study_user_attr(study_id, "key", 1)
    with pytest.raises(Fenced):
        await storage.durable()
    with pytest.raises(Fenced):
        await storage.durable()


def test_a_writer_that_lost_only_its_connection_goes_on(storage: PostgresStorage, database_url: str) -> None:
    study_id = storage.create_new_study(MINIMIZE)
    execute(database_url, KILL)
    assert storage.get_trial(storage.create_new_trial(study_id)).number == 0


def test_two_servers_make_the_tables_at_once(postgres: EmbeddedPostgres) -> None:
    url = schema.database_url(postgres.url)
    admin = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE bare"))
    bare = url.set(database="bare").render_as_string(hide_password=False)
    storages = [PostgresStorage(bare, shard=shard) for shard in range(4)]
    threads = [in_background(storage.wait_for_lock) for storage in storages]
    for thread in threads:
        thread.join(120)
    assert all(storage.writable() for storage in storages)
    for storage in storages:
        storage.create_new_study(MINIMIZE)
        storage.close()


def test_tables_of_another_optuna_are_reported(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    try:
        with pytest.raises(RuntimeError, match="optuna storage upgrade"):
            PostgresStorage(database_url).wait_for_lock(120)
    finally:
        execute(database_url, f"UPDATE alembic_version SET version_num = '{head()}'")


def head() -> str:
    plain = RDBStorage("sqlite:///:memory:")
    return plain.get_head_version()


async def test_the_servers_store(database_url: str) -> None:
    store = PostgresStore(database_url)
    await store.open()
    assert store.writable
    study_id = store.storage.create_new_study(MINIMIZE, "ml/mnist")
    trial_id = store.storage.create_new_trial(study_id)
    with store.deferred() as writes:
        store.storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    await writes.durable()
    store.storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    await store.durable()
    store.refresh(study_id)
    assert store.running() == ["ml/mnist"]
    plain = RDBStorage(database_url, skip_table_creation=True)
    assert plain.get_trial(trial_id) == store.storage.get_trial(trial_id)
    plain.engine.dispose()
    steal(database_url)
    store.storage.set_trial_intermediate_value(trial_id, 2, 0.5)
    await store.lost()
    assert not store.writable
    await store.close()


def test_an_error_of_the_writer_reaches_all_callers(
    new_storage: NewStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Exception] = []
    called = threading.Event()
    storage = new_storage(on_end=lambda error: (ended.append(error), called.set()))
    study_id = storage.create_new_study(MINIMIZE)
    monkeypatch.setattr(Committer, "_settle", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        storage.create_new_trial(study_id)
    assert called.wait(120)
    assert isinstance(ended[0], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        storage.set_study_user_attr(study_id, "key", 1)


def test_a_writer_that_ends_without_a_server_has_nobody_to_notify(database_url: str) -> None:
    """Before `open`, and after the server's event loop was closed."""
    store = PostgresStore(database_url)
    store._note_end(Fenced())
    loop = asyncio.new_event_loop()
    store._loop = loop
    store._note_end(Fenced())
    loop.run_until_complete(asyncio.wait_for(store.lost(), 120))
    loop.close()
    store._note_end(Fenced())


def test_attempts_to_get_the_lock_are_some_time_apart(
    new_storage: NewStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_storage(), new_storage()
    first.create_new_study(MINIMIZE, "study")
    attempts, began = count_attempts(monkeypatch), time.monotonic()
    wait_in_vain(second, 1.0, until=lambda: bool(attempts))
    assert len(attempts) < 30 * (time.monotonic() - began)


def test_a_read_gives_up_when_the_database_is_away() -> None:
    library = Library(make_url("postgresql+psycopg2://nobody@127.0.0.1:1/nothing"), 0, timeout=0.2)
    library._prepared = True
    with pytest.raises(StorageUnavailable, match="The database is unavailable"):
        library.id_of_name("study")
    library.close()
