"""Acknowledged writes are kept, once, whatever happens to the connection or the database."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from tuning_operator.studies.storage import PostgresStorage, StorageUnavailable, schema
from tuning_operator.studies.storage.committer import Committer

from tests.support.postgres import EmbeddedPostgres

MINIMIZE = [StudyDirection.MINIMIZE]
NewStorage = Callable[..., PostgresStorage]
DEADLINE = 240.0


def kill_writer(url: str) -> int:
    """End the writers' sessions; return how many there were."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        ended = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tuning-studies-%' AND datname = current_database()"
            )
        )
        return len(ended.all())


def in_database(url: str, study_id: int) -> list[FrozenTrial]:
    plain = RDBStorage(url, skip_table_creation=True)
    found = plain.get_all_trials(study_id)
    plain.engine.dispose()
    return found


class Load:
    """Threads that create trials and report to them, and note what was acknowledged."""

    def __init__(self, storage: PostgresStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._stop = threading.Event()
        self.acknowledged: dict[int, dict[int, float]] = {}
        self.ended: set[int] = set()
        self.errors: list[Exception] = []
        self.progress = threading.Semaphore(0)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                trial_id = self._storage.create_new_trial(self._study_id)
                self.acknowledged[trial_id] = {}
                for step in range(5):
                    self._storage.set_trial_intermediate_value(trial_id, step, step / 8)
                    self.acknowledged[trial_id][step] = step / 8
                    self.progress.release()
                self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(trial_id)])
                self.ended.add(trial_id)
        except Exception as error:  # noqa: BLE001  the test reports it
            self.errors.append(error)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._work) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        assert not self.errors

    def await_progress(self, writes: int = 30) -> None:
        for _ in range(writes):
            assert self.progress.acquire(timeout=DEADLINE)

    def check(self, url: str) -> None:
        found = in_database(url, self._study_id)
        assert [trial.number for trial in found] == list(range(len(found)))
        by_id = {trial._trial_id: trial for trial in found}
        assert by_id.keys() == self.acknowledged.keys(), "no trial is lost, none doubled"
        for trial_id, reported in self.acknowledged.items():
            assert by_id[trial_id].intermediate_values == reported
        assert {t for t, trial in by_id.items() if trial.state == TrialState.COMPLETE} == self.ended
        assert self._storage.get_all_trials(self._study_id) == found


def test_a_killed_connection_loses_and_doubles_nothing(storage: PostgresStorage, database_url: str) -> None:
    load = Load(storage, storage.create_new_study(MINIMIZE))
    with load.running():
        for _ in range(5):
            load.await_progress()
            assert wait_until(lambda: kill_writer(database_url) == 1)
        load.await_progress()
    load.check(database_url)


def test_a_crash_of_the_database_loses_and_doubles_nothing(postgres: EmbeddedPostgres) -> None:
    url = schema.database_url(postgres.url).render_as_string(hide_password=False)
    storage = PostgresStorage(url, shard=7)
    try:
        load = Load(storage, storage.create_new_study(MINIMIZE))
        with load.running():
            for _ in range(2):
                load.await_progress()
                postgres.crash()
                assert wait_until(lambda: not storage.writable())
                postgres.start()
                load.await_progress()
        load.check(url)
    finally:
        storage.close()


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True


@pytest.fixture
def lost_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each connection that is in the list at a commit is lost: "before" it or "after" it."""
    when: list[str] = []
    original = Committer._execute

    def execute(self: Committer, connection: Connection, *args: object) -> object:
        done = original(self, connection, *args)
        if when:
            _break_at_commit(connection, when.pop(0))
        return done

    monkeypatch.setattr(Committer, "_execute", execute)
    yield when
    assert when == []


def _break_at_commit(connection: Connection, when: str) -> None:
    raw = connection.connection.dbapi_connection
    assert raw is not None

    def at_commit(_: Connection) -> None:
        event.remove(connection, "commit", at_commit)
        if when == "after":
            raw.commit()
        raw.close()
        raise OperationalError("COMMIT", {}, Exception("the answer is lost"), connection_invalidated=True)

    event.listen(connection, "commit", at_commit)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_to_a_commit(
    storage: PostgresStorage, database_url: str, lost_answers: list[str], when: str
) -> None:
    """Committed or not, the trial is created once, and it is the one that the caller gets."""
    study_id = storage.create_new_study(MINIMIZE)
    lost_answers.append(when)
    trial_id = storage.create_new_trial(study_id)
    lost_answers.append(when)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    lost_answers.append(when)
    other = storage.create_new_study(MINIMIZE, "other")
    found = in_database(database_url, study_id)
    assert [trial._trial_id for trial in found] == [trial_id]
    assert found == storage.get_all_trials(study_id)
    assert found[0].state == TrialState.COMPLETE
    assert storage.get_study_id_from_name("other") == other
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial_id, "late", 1)


def test_writes_wait_while_the_database_is_away(postgres: EmbeddedPostgres) -> None:
    url = schema.database_url(postgres.url).render_as_string(hide_password=False)
    storage = PostgresStorage(url, shard=8)
    try:
        study_id = storage.create_new_study(MINIMIZE)
        trial_id = storage.create_new_trial(study_id)
        postgres.crash()
        storage._timeout = 0.2
        try:
            with pytest.raises(StorageUnavailable):
                storage.set_trial_intermediate_value(trial_id, 0, 0.5)
            with pytest.raises(StorageUnavailable):
                storage.create_new_trial(study_id)
            with storage.deferred(wait=False) as writes:
                storage.set_trial_intermediate_value(trial_id, 1, 0.25)
            assert storage.get_trial(trial_id).intermediate_values == {0: 0.5, 1: 0.25}
            assert not storage.writable()
        finally:
            postgres.start()
        writes.wait(DEADLINE)
        assert storage.writable()
        assert storage.get_n_trials(study_id) == 1, "a creation without a waiting caller is withdrawn"
        assert in_database(url, study_id) == storage.get_all_trials(study_id)
        assert in_database(url, study_id)[0].intermediate_values == {0: 0.5, 1: 0.25}
    finally:
        storage.close()


def test_close_writes_the_queue(new_storage: NewStorage, database_url: str) -> None:
    storage = new_storage(wait=False)
    study_id = storage.create_new_study(MINIMIZE)
    trial_id = storage.create_new_trial(study_id)
    for step in range(100):
        storage.set_trial_intermediate_value(trial_id, step, 0.5)
    storage.close()
    assert in_database(database_url, study_id)[0].intermediate_values == dict.fromkeys(range(100), 0.5)
    with pytest.raises(StorageUnavailable, match="closed"):
        storage.set_trial_intermediate_value(trial_id, 100, 0.5)
