"""Group commit: writes share transactions, and each gets its own outcome."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tuning_operator.studies.storage import PostgresStorage, committer
from tuning_operator.studies.storage.batch import Done
from tuning_operator.studies.storage.changes import Change, SetIntermediates
from tuning_operator.studies.storage.committer import Committer

MINIMIZE = [StudyDirection.MINIMIZE]


@pytest.fixture
def study_id(storage: PostgresStorage) -> int:
    return storage.create_new_study(MINIMIZE, "study")


@contextmanager
def held_back(url: str) -> Iterator[None]:
    """Nothing is committed in the block: another transaction holds the writers' row."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT * FROM tuning_writers FOR UPDATE"))
        yield


def stored(url: str, study_id: int) -> list[dict[int, float]]:
    plain = RDBStorage(url, skip_table_creation=True)
    found = [trial.intermediate_values for trial in plain.get_all_trials(study_id)]
    plain.engine.dispose()
    return found


def test_concurrent_reports_share_commits(storage: PostgresStorage, study_id: int, database_url: str) -> None:
    trials = [storage.create_new_trial(study_id) for _ in range(50)]
    before = storage.commits
    with ThreadPoolExecutor(50) as threads:

        def report(trial_id: int) -> None:
            for step in range(10):
                storage.set_trial_intermediate_value(trial_id, step, float(step))

        list(threads.map(report, trials))
    assert storage.commits - before < 500 / 4
    assert stored(database_url, study_id) == [{step: float(step) for step in range(10)}] * 50


def test_a_waiting_write_returns_when_it_is_durable(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    trial_id = storage.create_new_trial(study_id)
    with ThreadPoolExecutor(1) as threads:
        with held_back(database_url):
            report = threads.submit(storage.set_trial_intermediate_value, trial_id, 0, 1.0)
            while storage.get_trial(trial_id).intermediate_values != {0: 1.0}:
                assert not report.done()
            assert stored(database_url, study_id) == [{}]
            assert not report.done()
        report.result(120)
    assert stored(database_url, study_id) == [{0: 1.0}]


def test_a_deferred_block_waits_once(storage: PostgresStorage, study_id: int, database_url: str) -> None:
    trial_id = storage.create_new_trial(study_id)
    before = storage.commits
    with held_back(database_url), storage.deferred(wait=False) as writes:
        for step in range(100):
            storage.set_trial_intermediate_value(trial_id, step, 0.5)
        storage.set_trial_param(trial_id, "x", 0.5, FloatDistribution(0, 1))
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    writes.wait(120)
    assert storage.commits - before <= 2
    assert stored(database_url, study_id) == [dict.fromkeys(range(100), 0.5)]


@pytest.fixture
def no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle writer, which also writes what is queued at each heartbeat, has none during a test."""
    monkeypatch.setattr(committer, "_HEARTBEAT", 60.0)


@pytest.mark.usefixtures("no_heartbeat")
def test_writes_that_nobody_waits_for_share_a_commit(storage: PostgresStorage, study_id: int) -> None:
    trial_id, before = storage.create_new_trial(study_id), storage.commits
    several = []
    for step in range(20):
        with storage.deferred(wait=False) as writes:
            storage.set_trial_intermediate_value(trial_id, step, 0.5)
        several.append(writes)
    several[3].wait(120)
    assert all(change.outcome.done() for writes in several for change in writes._changes)
    assert storage.commits - before == 1


@pytest.mark.usefixtures("no_heartbeat")
@pytest.mark.parametrize("wait", [True, False])
def test_a_write_outside_of_a_block_is_written_at_once(
    new_storage: Callable[..., PostgresStorage], database_url: str, wait: bool
) -> None:
    storage = new_storage(wait=wait)
    trial_id = storage.create_new_trial(storage.create_new_study(MINIMIZE))
    storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    end = time.monotonic() + 120
    while stored(database_url, storage.get_all_studies()[0]._study_id) != [{0: 0.5}]:
        assert time.monotonic() < end


def test_a_blocks_end_waits_for_it(storage: PostgresStorage, study_id: int, database_url: str) -> None:
    with storage.deferred():
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    assert stored(database_url, study_id) == [{0: 0.5}]


async def test_durable_waits_for_everything_before(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    trial_id = storage.create_new_trial(study_id)
    with held_back(database_url):
        with storage.deferred(wait=False):
            storage.set_trial_intermediate_value(trial_id, 0, 0.5)
        durable = asyncio.create_task(storage.durable())
        done, _ = await asyncio.wait([durable], timeout=0.1)
        assert not done
    await asyncio.wait_for(durable, 120)
    assert stored(database_url, study_id) == [{0: 0.5}]
    await asyncio.wait_for(storage.durable(), 120)


async def test_a_caller_that_stops_waiting_does_not_undo_the_write(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    trial_id = storage.create_new_trial(study_id)
    with held_back(database_url):
        with storage.deferred(wait=False) as writes:
            storage.set_trial_intermediate_value(trial_id, 0, 0.5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writes.durable(), 0.05)
    await asyncio.wait_for(storage.durable(), 120)
    assert stored(database_url, study_id) == [{0: 0.5}]


def test_only_the_refused_write_fails(storage: PostgresStorage, study_id: int, database_url: str) -> None:
    """A constraint of the database serves as an error that only the database can find."""
    engine = create_engine(database_url, poolclass=NullPool)
    rule = "ALTER TABLE trial_intermediate_values ADD CONSTRAINT no_13 CHECK (step <> 13)"
    with engine.begin() as connection:
        connection.execute(text(rule))
    try:
        trials = [storage.create_new_trial(study_id) for _ in range(3)]
        with held_back(database_url), storage.deferred(wait=False) as writes:
            for step in range(20):
                for trial_id in trials[: 2 if step == 13 else 3]:
                    storage.set_trial_intermediate_value(trial_id, step, 0.5)
        with pytest.raises(DBAPIError, match="no_13"):
            writes.wait(120)
        good = {step: 0.5 for step in range(20) if step != 13}
        assert stored(database_url, study_id) == [good] * 3
        assert [t.intermediate_values for t in storage.get_all_trials(study_id)] == [good] * 3
        assert sum(change.outcome.exception() is not None for change in writes._changes) == 2
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE trial_intermediate_values DROP CONSTRAINT no_13"))


def test_values_that_no_row_can_hold_are_refused_at_once(storage: PostgresStorage, study_id: int) -> None:
    trial_id = storage.create_new_trial(study_id)
    with storage.deferred(wait=False) as writes:
        with pytest.raises(ValueError, match="513 characters"):
            storage.set_trial_user_attr(trial_id, "k" * 513, 1)
        with pytest.raises(ValueError, match="NUL"):
            storage.set_study_user_attr(study_id, "a\0b", 1)
        with pytest.raises(ValueError, match="step"):
            storage.set_trial_intermediate_value(trial_id, 2**31, 1.0)
        storage.set_trial_intermediate_value(trial_id, 2**31 - 1, 1.0)
        with pytest.raises(ValueError, match="surrogate"):
            storage.set_trial_system_attr(trial_id, "\ud800", 1)
        with pytest.raises(TypeError):
            storage.set_trial_user_attr(trial_id, "key", object())
        with pytest.raises(ValueError, match="characters"):
            storage.create_new_trial(study_id, create_trial(value=0.0, user_attrs={"k" * 513: 1}))
    writes.wait(120)
    assert storage.get_trial(trial_id).user_attrs == {}
    assert storage.get_trial(trial_id).intermediate_values == {2**31 - 1: 1.0}
    assert storage.get_n_trials(study_id) == 1


def test_state_changes_of_a_trial_keep_their_order(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    trial_id = storage.create_new_trial(study_id)
    with held_back(database_url), storage.deferred(wait=False) as writes:
        storage.set_trial_state_values(trial_id, TrialState.WAITING)
        storage.set_trial_intermediate_value(trial_id, 0, 0.5)
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    writes.wait(120)
    plain = RDBStorage(database_url, skip_table_creation=True)
    assert plain.get_trial(trial_id) == storage.get_trial(trial_id)
    plain.engine.dispose()


def test_concurrent_creations_get_consecutive_numbers(storage: PostgresStorage, study_id: int) -> None:
    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(lambda _: storage.create_new_trial(study_id), range(64)))
    assert sorted(storage.get_trial_number_from_id(trial_id) for trial_id in ids) == list(range(64))
    assert [trial._trial_id for trial in storage.get_all_trials(study_id)] == sorted(ids)


def test_of_studies_of_one_name_one_is_created(storage: PostgresStorage) -> None:
    gate = threading.Barrier(8)

    def create(_: int) -> int | None:
        gate.wait()
        try:
            return storage.create_new_study(MINIMIZE, "one")
        except DuplicatedStudyError:
            return None

    with ThreadPoolExecutor(8) as threads:
        made = [study_id for study_id in threads.map(create, range(8)) if study_id is not None]
    assert made == [storage.get_study_id_from_name("one")]


def test_reads_do_not_wait_for_another_studys_load(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    other = storage.create_new_study(MINIMIZE, "other")
    storage.create_new_trial(study_id)
    engine = create_engine(database_url, poolclass=NullPool)
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE trial_system_attributes IN ACCESS EXCLUSIVE MODE"))
            loading = threads.submit(storage.get_all_trials, other)
            assert storage.get_n_trials(study_id) == 1
            assert len(storage.get_all_trials(study_id)) == 1
            assert not loading.done()
        assert loading.result(120) == []


def test_a_change_returns_another_trial() -> None:
    trial = create_trial(state=TrialState.RUNNING)
    changed = SetIntermediates(0, {3: 0.5}).apply(trial)
    assert changed.intermediate_values == {3: 0.5}
    assert trial.intermediate_values == {}


def test_an_idle_writer_tries_the_connection_and_goes_on(
    new_storage: Callable[..., PostgresStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, attempt = threading.Semaphore(0), Committer._attempt

    def counted(self: Committer, changes: list[Change]) -> Done:
        done = attempt(self, changes)
        if not changes:
            beats.release()
        return done

    monkeypatch.setattr(committer, "_HEARTBEAT", 0.01)
    monkeypatch.setattr(Committer, "_attempt", counted)
    storage = new_storage()
    study_id = storage.create_new_study(MINIMIZE)
    assert all(beats.acquire(timeout=120) for _ in range(3))
    storage.set_study_user_attr(study_id, "still", "here")


def test_many_values_in_one_report_take_no_longer_each(storage: PostgresStorage, database_url: str) -> None:
    """The trial is copied once for a report, not once for each value: that took seconds."""
    trial_id = storage.create_new_trial(storage.create_new_study(MINIMIZE))
    values = {step: step / 8 for step in range(16_000)}
    with storage.deferred() as writes:
        start = time.thread_time()
        storage.set_trial_intermediate_values(trial_id, values)
        assert time.thread_time() - start < 0.2
    writes.wait(120)
    plain = RDBStorage(database_url, skip_table_creation=True)
    assert plain.get_trial(trial_id).intermediate_values == values
    plain.engine.dispose()
