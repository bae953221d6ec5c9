"""A refresh picks up what other processes wrote to a study; where both wrote, theirs stays."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tuning_operator.studies.storage import PostgresStorage, StorageUnavailable, loader

MINIMIZE = [StudyDirection.MINIMIZE]


@pytest.fixture
def study_id(storage: PostgresStorage) -> int:
    study_id = storage.create_new_study(MINIMIZE, "shared")
    storage.create_new_trial(study_id)
    return study_id


def test_an_enqueued_trial_is_asked_for_next(
    storage: PostgresStorage, plain: RDBStorage, study_id: int
) -> None:
    theirs = optuna.load_study(study_name="shared", storage=plain)
    theirs.enqueue_trial({"x": 0.25}, user_attrs={"from": "dashboard"})
    storage.refresh(study_id)
    trial = optuna.load_study(study_name="shared", storage=storage).ask()
    assert trial.number == 1
    assert trial.suggest_float("x", 0, 1) == 0.25
    assert trial.user_attrs == {"from": "dashboard"}
    assert theirs.trials[1].state == TrialState.RUNNING
    assert theirs.trials[1].params == {"x": 0.25}


def test_an_older_read_does_not_undo_a_start(
    storage: PostgresStorage, plain: RDBStorage, study_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh that read a waiting trial just before it was started, and ends just after."""
    number = plain.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    storage.refresh(study_id)
    waiting = storage.get_trial(number)
    read, ready, original = threading.Event(), threading.Event(), loader.trials

    def read_early(*arguments: Any) -> list[FrozenTrial]:
        if read.is_set():
            return original(*arguments)
        read.set()
        assert ready.wait(120)
        return [waiting]

    monkeypatch.setattr(loader, "trials", read_early)
    with ThreadPoolExecutor(1) as pool:
        refresh = pool.submit(storage.refresh, study_id)
        assert read.wait(120)
        assert storage.set_trial_state_values(number, TrialState.RUNNING)
        ready.set()
        refresh.result(120)
    assert storage.get_trial(number).state == TrialState.RUNNING


def test_numbers_never_collide(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    """Also without a refresh: creating a trial reads new trials from the database first."""
    plain.create_new_trial(study_id)
    plain.create_new_trial(study_id, create_trial(value=1.0))
    mine = storage.create_new_trial(study_id)
    plain.create_new_trial(study_id)
    assert storage.get_trial(mine).number == 3
    assert [trial.number for trial in storage.get_all_trials(study_id)] == [0, 1, 2, 3]
    assert [trial.number for trial in plain.get_all_trials(study_id)] == [0, 1, 2, 3, 4]
    assert storage.get_best_trial(study_id).number == 2


def test_a_waiting_trial_that_another_popped(
    storage: PostgresStorage, plain: RDBStorage, study_id: int
) -> None:
    waiting = [storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING)) for _ in range(2)]
    plain.set_trial_state_values(waiting[0], TrialState.RUNNING)
    plain.set_trial_state_values(waiting[1], TrialState.FAIL)
    assert storage.set_trial_state_values(waiting[0], TrialState.RUNNING) is False
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(waiting[1], "key", "value")
    assert storage.get_trial(waiting[0]) == plain.get_trial(waiting[0])
    assert storage.get_trial(waiting[1]) == plain.get_trial(waiting[1])
    assert storage.get_all_trials(study_id, states=(TrialState.WAITING,)) == []


def test_changes_to_a_foreign_trial(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    theirs = plain.create_new_trial(study_id)
    storage.refresh(study_id)
    plain.set_trial_param(theirs, "x", 0.5, FloatDistribution(0, 1))
    plain.set_trial_intermediate_value(theirs, 3, 0.1)
    storage.refresh(study_id)
    assert storage.get_trial(theirs) == plain.get_trial(theirs)
    assert storage.get_trial(theirs).intermediate_values == {3: 0.1}
    plain.set_trial_state_values(theirs, TrialState.COMPLETE, [0.5])
    storage.refresh(study_id)
    assert storage.get_best_trial(study_id).number == 1
    assert storage.counts(study_id)[TrialState.RUNNING] == 1


def test_study_attributes(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    storage.set_study_user_attr(study_id, "ours", 1)
    plain.set_study_user_attr(study_id, "theirs", {"a": [1]})
    plain.set_study_system_attr(study_id, "dashboard:note", "text")
    storage.refresh(study_id)
    assert storage.get_study_user_attrs(study_id) == {"ours": 1, "theirs": {"a": [1]}}
    assert storage.get_study_system_attrs(study_id) == {"dashboard:note": "text"}


def test_the_first_end_of_a_trial_stays(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    storage.set_trial_intermediate_value(trial_id, 0, 1.0)
    plain.set_trial_state_values(trial_id, TrialState.COMPLETE, [7.0])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
    assert storage.get_trial(trial_id) == plain.get_trial(trial_id)
    assert storage.get_trial(trial_id).values == [7.0]
    assert storage.get_best_trial(study_id).number == 0
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_intermediate_value(trial_id, 1, 1.0)


def test_a_refused_result_is_not_the_best(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    good = storage.create_new_trial(study_id, create_trial(value=3.0))
    contested = storage.create_new_trial(study_id)
    plain.set_trial_state_values(contested, TrialState.FAIL)
    with storage.deferred(wait=False) as writes:
        storage.set_trial_state_values(contested, TrialState.COMPLETE, [1.0])
    with pytest.raises(UpdateFinishedTrialError):
        writes.wait(240)
    assert storage.get_best_trial(study_id)._trial_id == good
    assert storage.counts(study_id)[TrialState.FAIL] == 1
    assert storage.get_all_trials(study_id) == plain.get_all_trials(study_id)


def test_a_foreign_lock_on_one_study_does_not_stop_the_others(
    storage: PostgresStorage, study_id: int, database_url: str
) -> None:
    other = storage.create_new_study(MINIMIZE, "other")
    trial_id = storage.create_new_trial(other)
    engine = create_engine(database_url, poolclass=NullPool)
    with ThreadPoolExecutor(1) as threads, engine.begin() as connection:
        connection.execute(text("SELECT * FROM studies WHERE study_name = 'shared' FOR UPDATE"))
        blocked = threads.submit(storage.create_new_trial, study_id)
        storage.set_trial_intermediate_value(trial_id, 0, 0.5)
        with pytest.raises(StorageUnavailable, match="Another session"):
            blocked.result(30)
        storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    assert storage.get_trial_number_from_id(storage.create_new_trial(study_id)) == 1
    assert storage.get_trial(trial_id).intermediate_values == {0: 0.5, 1: 0.5}


async def test_a_refused_write_raises_for_the_caller_that_waits(
    storage: PostgresStorage, plain: RDBStorage, study_id: int
) -> None:
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    plain.set_trial_state_values(trial_id, TrialState.FAIL)
    with storage.deferred(wait=False) as writes:
        storage.set_trial_intermediate_value(trial_id, 0, 1.0)
        storage.set_study_user_attr(study_id, "key", 1)
    with pytest.raises(UpdateFinishedTrialError):
        await asyncio.wait_for(writes.durable(), 240)
    assert plain.get_study_user_attrs(study_id) == {"key": 1}
    assert storage.get_trial(trial_id).intermediate_values == {}


def test_a_study_that_another_deleted(storage: PostgresStorage, plain: RDBStorage, study_id: int) -> None:
    plain.delete_study(study_id)
    with pytest.raises(KeyError):
        storage.create_new_trial(study_id)
    with pytest.raises(KeyError):
        storage.refresh(study_id)
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("shared")
    again = storage.create_new_study(MINIMIZE, "shared")
    assert storage.get_study_id_from_name("shared") == again
    assert storage.get_all_trials(again) == []


def test_a_foreign_study_is_found(storage: PostgresStorage, plain: RDBStorage) -> None:
    theirs = plain.create_new_study(MINIMIZE, "theirs")
    trial_id = plain.create_new_trial(theirs)
    assert storage.get_study_id_from_name("theirs") == theirs
    assert storage.get_trial(trial_id) == plain.get_trial(trial_id)
    assert [study.study_name for study in storage.get_all_studies()] == ["theirs"]
    assert storage.running() == ["theirs"]
    younger = plain.create_new_trial(theirs)
    assert storage.get_trial(younger) == plain.get_trial(younger)
