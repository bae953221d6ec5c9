"""A database that hangs, is locked, refuses, or has lost transactions: no acknowledged write is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tuning_operator.studies.server import WriterEnded
from tuning_operator.studies.storage import PostgresStorage, PostgresStore, StorageUnavailable, schema
from tuning_operator.studies.storage.library import Library

from tests.support.postgres import EmbeddedPostgres
from tests.support.study_server import RunningServer, running_server

MINIMIZE = [StudyDirection.MINIMIZE]
NewStorage = Callable[..., PostgresStorage]
STUDY = "/v1/studies/ml/mnist"
X = {"name": "x", "type": "float", "low": 0, "high": 1}
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}], "searchSpace": [X]}
WRITERS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE application_name LIKE 'tuning-studies-%' AND datname = current_database()"
)


def execute(url: str, statement: str) -> Any:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return result.all() if result.returns_rows else None


@contextmanager
def hung_writer(url: str) -> Iterator[None]:
    """Stop the process in the database that serves the writer, which therefore does not answer."""
    [(pid,)] = execute(url, WRITERS)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def locked_writers(url: str) -> Iterator[None]:
    """Lock the table that names the writer, as a schema migration or a backup might."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE tuning_writers IN ACCESS EXCLUSIVE MODE"))
        yield


def in_database(url: str, study: int | str) -> list[FrozenTrial]:
    plain = RDBStorage(url, skip_table_creation=True)
    study_id = study if isinstance(study, int) else plain.get_study_id_from_name(study)
    found = plain.get_all_trials(study_id)
    plain.engine.dispose()
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[RunningServer]:
    """A server that waits for the database for a short time only."""
    monkeypatch.setattr("tuning_operator.studies.study.context.COMMIT_SECONDS", 0.3)
    with running_server(PostgresStore(database_url, write_timeout=0.3)) as server:
        yield server


def answered(server: RunningServer, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Send a request of the operator until it is answered."""
    operator, replies = server.operator(), []

    def is_answered() -> bool:
        replies.append(operator.request(method, path, json=body))
        return replies[-1].status_code != 503

    server.wait_until("answers", is_answered)
    assert replies[-1].status_code in (200, 204), replies[-1].text
    return replies[-1].json() if replies[-1].content else {}


@pytest.mark.parametrize("initial", [[], [{"x": 0.5}]], ids=["new", "enqueued"])
def test_a_trial_that_starts_after_its_request_was_given_up(
    impatient: RunningServer, database_url: str, initial: list[dict[str, float]]
) -> None:
    """It gets its parameters, and it is the only one of a study with maxTrials: 1."""
    operator = impatient.operator()
    answered(impatient, "PUT", STUDY, DEFINITION | {"initialTrials": initial})
    request = {"parallelism": 2, "maxTrials": 1}
    with hung_writer(database_url):
        assert [operator.post(f"{STUDY}/ask", json=request).status_code for _ in range(2)] == [503, 503]
    answered(impatient, "POST", f"{STUDY}/ask", request)
    [trial] = answered(impatient, "POST", f"{STUDY}/ask", request)["running"]
    assert trial["parameters"].keys() == {"x"}
    [recorded] = in_database(database_url, "ml/mnist")
    assert (recorded.state, recorded.params) == (TrialState.RUNNING, trial["parameters"])


def test_initial_trials_enqueued_after_their_request_was_given_up(
    impatient: RunningServer, database_url: str
) -> None:
    answered(impatient, "PUT", STUDY, DEFINITION)
    wanted = DEFINITION | {"initialTrials": [{"x": 0.5}, {"x": 0.25}]}
    with hung_writer(database_url):
        assert impatient.operator().put(STUDY, json=wanted).status_code == 503
    answered(impatient, "PUT", STUDY, wanted)
    fixed = [trial.system_attrs["fixed_params"] for trial in in_database(database_url, "ml/mnist")]
    assert fixed == [{"x": 0.5}, {"x": 0.25}]


def test_a_study_deleted_after_its_request_was_given_up(impatient: RunningServer, database_url: str) -> None:
    operator = impatient.operator()
    answered(impatient, "PUT", STUDY, DEFINITION | {"deletionPolicy": "Delete"})
    with hung_writer(database_url):
        assert operator.delete(STUDY).status_code == 503
    answered(impatient, "DELETE", STUDY)
    impatient.wait_until("has deleted the study", lambda: operator.get(STUDY).status_code == 404)
    assert answered(impatient, "PUT", STUDY, DEFINITION)["counts"]["waiting"] == 0


def test_retries_do_not_write_attributes_again(impatient: RunningServer, database_url: str) -> None:
    pod = impatient.pod("ml", "mnist", 0)
    answered(impatient, "PUT", STUDY, DEFINITION)
    answered(impatient, "POST", f"{STUDY}/ask", {"parallelism": 1, "maxTrials": 1})
    committer = impatient.server.service._store._postgres._committer  # type: ignore[attr-defined]
    attributes = {"userAttrs": {"one": 1, "list": [1, {"a": 2}]}, "studyAttrs": {"data": "v1"}}
    before = committer.last
    with hung_writer(database_url):
        assert {pod.post("/attributes", json=attributes).status_code for _ in range(20)} == {503}
        assert committer.last == before + 3
        assert committer.settled._waiting == []
        assert pod.post("/attributes", json={"userAttrs": {"one": True}}).status_code == 503
        assert committer.last == before + 4
    impatient.wait_until(
        "answers", lambda: pod.post("/attributes", json={"userAttrs": {}}).status_code == 200
    )
    [trial] = in_database(database_url, "ml/mnist")
    assert trial.user_attrs == {"one": True, "list": [1, {"a": 2}]}


FULL = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE 'could not extend file "base/5/16384": No space left on device' USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER disk_is_full BEFORE INSERT ON trial_intermediate_values
    FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def test_writes_wait_until_a_full_disk_has_room(
    impatient: RunningServer,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Postgres still accepts connections: attempts must be some time apart."""
    monkeypatch.setattr("tuning_operator.studies.storage.fence._SHORTEST_WAIT", 0.5)
    answered(impatient, "PUT", STUDY, DEFINITION)
    answered(impatient, "POST", f"{STUDY}/ask", {"parallelism": 1, "maxTrials": 1})
    execute(database_url, FULL)
    pod, began = impatient.pod("ml", "mnist", 0), time.monotonic()
    for value in (0.5, 0.25):
        assert pod.post("/report", json={"values": [[0, value]]}).status_code == 503
    impatient.wait_until("is not ready", lambda: impatient.operator().get("/readyz").status_code == 503)
    impatient.wait_until("has tried", lambda: caplog.text.count("No space left on device") >= 4)
    assert time.monotonic() - began > 2.4  # 0.5, 1 and 1 s between them
    execute(database_url, "DROP TRIGGER disk_is_full ON trial_intermediate_values")
    impatient.wait_until(
        "answers", lambda: pod.post("/report", json={"values": [[1, 0.75]]}).status_code == 200
    )
    [trial] = in_database(database_url, "ml/mnist")
    assert trial.intermediate_values == {0: 0.5, 1: 0.75}


@pytest.mark.parametrize("connected", [True, False])
def test_writes_wait_for_a_lock_on_the_row_that_names_the_writer(
    new_storage: NewStorage, database_url: str, connected: bool
) -> None:
    ended: list[Exception] = []
    storage = new_storage(on_end=ended.append)
    study_id = storage.create_new_study(MINIMIZE)
    trial_id = storage.create_new_trial(study_id)
    with locked_writers(database_url):
        if not connected:
            execute(database_url, WRITERS.replace("pid", "pg_terminate_backend(pid)", 1))
        with storage.deferred(wait=False) as writes:
            storage.set_trial_intermediate_value(trial_id, 0, 0.5)
        with pytest.raises(StorageUnavailable):
            writes.wait(1.5)  # longer than a statement waits for a lock
    writes.wait(120)
    assert in_database(database_url, study_id)[0].intermediate_values == {0: 0.5}
    assert ended == []


@pytest.mark.parametrize(
    ("break_it", "repair", "message"),
    [
        (
            "ALTER TABLE tuning_writers RENAME TO elsewhere",
            "ALTER TABLE elsewhere RENAME TO tuning_writers",
            'relation "tuning_writers" does not exist',
        ),
        (
            "ALTER TABLE tuning_writers RENAME COLUMN batch TO elsewhere",
            "ALTER TABLE tuning_writers RENAME COLUMN elsewhere TO batch",
            "column tuning_writers.batch does not exist",
        ),
    ],
)
def test_an_error_at_reconnect_ends_the_process(
    database_url: str, break_it: str, repair: str, message: str
) -> None:
    serving = running_server(PostgresStore(database_url))
    server = serving.__enter__()
    try:
        execute(database_url, break_it)
        execute(database_url, WRITERS.replace("pid", "pg_terminate_backend(pid)", 1))
        server.operator().put(STUDY, json=DEFINITION)
        server.thread.join(120)
        assert not server.thread.is_alive()
    finally:
        execute(database_url, repair)
    with pytest.raises(WriterEnded, match=message):
        serving.__exit__(None, None, None)


def test_a_read_whose_connection_is_lost_in_the_middle_is_repeated(database_url: str) -> None:
    library = Library(schema.database_url(database_url), shard=0, timeout=60)
    sessions = []

    def look(connection: Connection) -> Any:
        sessions.append(connection.scalar(text("SELECT pg_backend_pid()")))
        if len(sessions) == 1:
            execute(database_url, f"SELECT pg_terminate_backend({sessions[0]}, 10000)")
        return connection.scalar(text("SELECT current_setting('transaction_isolation')"))

    assert library._read(look) == "repeatable read"
    assert len(sessions) == 2
    with pytest.raises(DBAPIError, match="division by zero"):
        library._read(lambda connection: connection.scalar(text("SELECT 1 / 0")))
    assert library._read(look, one_statement=True) == "read committed", "no transaction is left open"
    library.close()


def test_what_a_restored_database_has_lost_is_written_again(
    postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a standby that lagged behind, the backup lacks the last transactions; pods notice nothing.

    Another shard writes back what it has in memory later, when the first one has new trials.
    """
    url = schema.database_url(postgres.url).render_as_string(hide_password=False)
    store, beside = PostgresStore(url), PostgresStorage(url, shard=1)
    storage = store._postgres
    ask = {"parallelism": 1, "maxTrials": 2}
    with running_server(store) as server:
        study_id = storage.create_new_study(MINIMIZE, "before")
        deleted = storage.create_new_study(MINIMIZE, "deleted")
        running, ended = (storage.create_new_trial(study_id) for _ in range(2))
        theirs = beside.create_new_study(MINIMIZE, "beside")
        storage.set_trial_intermediate_value(running, 0, 0.5)
        postgres.back_up()
        storage.set_trial_intermediate_value(running, 1, 0.25)
        storage.set_trial_user_attr(running, "note", {"kept": True})
        storage.set_trial_state_values(ended, TrialState.COMPLETE, [1.0])
        storage.set_study_system_attr(study_id, "definition", "the second")
        storage.delete_study(deleted)
        lost = storage.create_new_trial(study_id)
        several = storage.create_new_study([*MINIMIZE, StudyDirection.MAXIMIZE], "after")
        last = storage.create_new_trial(several)
        answered(server, "PUT", STUDY, DEFINITION)
        asked = answered(server, "POST", f"{STUDY}/ask", ask)
        pod = server.pod("ml", "mnist", 0)
        assert pod.post("/report", json={"values": [[0, 0.5]]}).status_code == 200
        memory = storage.get_all_trials(study_id)
        plain = RDBStorage(url, skip_table_creation=True)
        with plain.engine.begin() as another:
            schema.leave_gap(another)  # as at each connection
        plain.engine.dispose()
        beside.create_trials(theirs, [create_trial(value=1)] * 50)
        connection, allowed = beside._committer._fenced_connection, threading.Event()
        connect = connection._connect
        monkeypatch.setattr(connection, "_connect", lambda: allowed.wait(240) and connect())
        postgres.restore()
        assert answered(server, "POST", f"{STUDY}/ask", ask) == asked
        assert pod.post("/report", json={"values": [[1, 0.25]]}).status_code == 200
        assert pod.post("/result", json={"state": "COMPLETE", "values": [1]}).status_code == 200
        assert storage.get_all_trials(study_id) == memory
        storage.set_trial_intermediate_value(lost, 1, 0.5)
        ids = [trial._trial_id for trial in beside.get_all_trials(theirs)]
        new = storage.create_trials(study_id, [create_trial(value=1)] * 50)
        allowed.set()
        new.append(beside.create_new_trial(theirs))
        assert min(new) > max(ids) + schema.GAP, "though there were more gaps before the loss than after it"
        assert storage.create_new_trial(study_id) > last
        assert storage.create_new_study(MINIMIZE, "deleted") > several
    assert "The database has lost transactions" in caplog.text
    assert in_database(url, study_id)[:2] == memory[:2]
    assert [trial.number for trial in in_database(url, study_id)] == list(range(54))
    assert [trial._trial_id for trial in in_database(url, theirs)][:50] == ids
    beside.close()
    assert in_database(url, study_id)[2].intermediate_values == {1: 0.5}
    assert len(in_database(url, several)) == 1
    [trial] = in_database(url, "ml/mnist")
    assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {0: 0.5, 1: 0.25})
    assert plain.get_study_system_attrs(study_id) == {"definition": "the second"}
    assert plain.get_study_directions(several) == [*MINIMIZE, StudyDirection.MAXIMIZE]
    plain.engine.dispose()


def test_the_operator_hears_of_a_database_that_is_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, and each request is answered soon, although a short interruption is waited for."""
    monkeypatch.setattr("tuning_operator.studies.storage.committer.HUNG_SECONDS", 0.3)
    monkeypatch.setattr("tuning_operator.studies.study.context.COMMIT_SECONDS", 120)
    with running_server(PostgresStore(database_url)) as server, ThreadPoolExecutor() as pool:
        operator, other = server.operator(), server.operator()
        answered(server, "PUT", STUDY, DEFINITION)
        cursor = operator.get("/v1/changes").json()["cursor"]
        with hung_writer(database_url):
            pool.submit(other.post, f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 1})
            changes = operator.get("/v1/changes", params={"after": cursor, "timeout": 60}).json()
            assert changes["unavailable"] == "the database does not answer"
            start = time.monotonic()
            assert operator.get(STUDY).status_code == 503
            assert time.monotonic() - start < 60
        answered(server, "GET", STUDY)
        server.wait_until(
            "has its database", lambda: operator.get("/v1/changes").json()["unavailable"] is None
        )


def test_whether_the_database_answers_is_asked_while_a_transaction_ends(
    new_storage: NewStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads ask, and the transaction may end at any moment."""
    storage = new_storage()
    study_id = storage.create_new_study(MINIMIZE)
    asked = []

    def after_the_transaction() -> float:
        if threading.current_thread() is threading.main_thread():
            asked.append(hung.close())
            written.result(60)
        return time.monotonic()

    clock = SimpleNamespace(monotonic=after_the_transaction)
    monkeypatch.setattr("tuning_operator.studies.storage.committer.time", clock)
    with ThreadPoolExecutor() as pool, ExitStack() as hung:
        hung.enter_context(hung_writer(database_url))
        written = pool.submit(storage.set_study_user_attr, study_id, "a", 1)
        while not asked:
            assert storage.writable()
