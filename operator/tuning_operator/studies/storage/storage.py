"""An Optuna storage that answers from memory and writes to Optuna's own schema in Postgres."""

import copy
import json
import threading
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning_operator.studies.storage import schema
from tuning_operator.studies.storage.base import Extent, OtherShard, StorageUnavailable
from tuning_operator.studies.storage.changes import (
    AttrKind,
    Change,
    CreateStudy,
    CreateTrial,
    DeleteStudy,
    RenameStudy,
    SetIntermediates,
    SetParam,
    SetState,
    SetStudyAttr,
    SetTrialAttr,
    TrialChange,
    as_recorded,
)
from tuning_operator.studies.storage.committer import Committer
from tuning_operator.studies.storage.fence import FencedConnection
from tuning_operator.studies.storage.library import Library
from tuning_operator.studies.storage.memory import StudyRecord
from tuning_operator.studies.storage.writes import Writes, wait_for


class PostgresStorage(BaseStorage):
    """Reads from memory; writes with group commit, in one process at a time for each `shard`.

    A write is applied to memory at once and waits until it is durable, at most `write_timeout` seconds,
    unless `wait` is False or it is made in a `deferred` block. Thread-safe. Connects at the first use.

    Args:
        url: postgresql://user:password@host:port/database; without a pooler that shares sessions.
        shard: The number of the lock; its holder is the only writer. A study belongs to the shard in which
            it was created. Those of other shards can be read, and a write raises OtherShard.
        pod: The name of this process's pod, which takes the place of a former process in a pod of this name.
        write_timeout: Seconds until a waiting call raises StorageUnavailable; None: never.
        wait: Whether a write outside a `deferred` block waits until it is durable.
        on_end: Called from another thread, with Fenced or another error, when this process can never
            write again.
    """

    def __init__(
        self,
        url: str,
        *,
        shard: int = 0,
        pod: str | None = None,
        write_timeout: float | None = 60.0,
        wait: bool = True,
        on_end: Callable[[Exception], None] | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "url": url,
            "shard": shard,
            "pod": pod,
            "write_timeout": write_timeout,
            "wait": wait,
        }
        self._timeout = write_timeout
        self._wait = wait
        self._shard = shard
        self._library = Library(schema.database_url(url), shard, write_timeout)
        connection = FencedConnection(schema.database_url(url), shard, self._library.prepare, pod)
        self._committer = Committer(connection, self._library, on_end)
        self._starting = threading.Lock()
        self._started = False
        self._collecting: ContextVar[Writes | None] = ContextVar("collecting", default=None)

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy is another storage on the same database

    # The writer

    def wait_for_lock(self, timeout: float | None = None) -> None:
        """Wait until this process is the shard's only writer; the first write does it otherwise.

        Raises StorageUnavailable after `timeout` seconds; the wait continues in the background and can
        be repeated. Raises RuntimeError when the tables are of another version of Optuna.
        """
        if not self._committer.ready.is_set():
            self._start()
        if not self._committer.ready.wait(timeout):
            raise StorageUnavailable("Another process is the writer, or the database is unavailable.")
        self._committer.check()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                self._started = True
                self._committer.start()

    def writable(self) -> bool:
        """Whether the lock is held, as far as is known without asking the database."""
        return self._committer.is_open

    def close(self, timeout: float = 10.0) -> None:
        """Write what is queued, for at most `timeout` seconds, and let the lock go."""
        with self._starting:
            if self._started:
                self._committer.close(timeout)
        self._library.close()

    @contextmanager
    def deferred(self, *, wait: bool = True) -> Iterator[Writes]:
        """Let the block's writes not wait, each by itself; those that need the database's answer still do.

        With `wait` the block's end waits until all are durable and raises the first one's error. Otherwise
        the caller waits: see Writes. They are written once anyone waits, together with all others that are
        queued. It applies to the thread or asyncio task.
        """
        writes = Writes(self._committer.settled, self._committer.flush)
        token = self._collecting.set(writes)
        try:
            yield writes
        finally:
            self._collecting.reset(token)
        if wait:
            writes.wait(self._timeout)

    async def durable(self) -> None:
        """Return when every write made before, by anyone, is durable or refused. Raises Fenced."""
        self._committer.flush()
        await self._committer.settled.wait(self._committer.last)
        self._committer.check()

    def refresh(self, study_id: int) -> None:
        """Read what others wrote to a study. Raises KeyError when it is gone, StorageUnavailable."""
        settled = self._committer.settled.reached
        self._library.refresh(study_id, settled)

    def conflicts(self, study_id: int) -> int:
        """Return how often memory was corrected after a refused write to a trial of a study."""
        return self._library.conflicts(study_id)

    def release(self, study_id: int) -> None:
        """Drop a study from memory, to be read again when needed. Nobody may be using it.

        One with a write that is not durable stays.
        """
        self._library.release(study_id, self._committer.settled.reached)

    def counts(self, study_id: int) -> dict[TrialState, int]:
        """Return how many trials there are in each state. Raises KeyError."""
        record = self._library.loaded(study_id)
        with record.lock:
            return dict(record.counts)

    @property
    def commits(self) -> int:
        """How many transactions were committed, for metrics."""
        return self._committer.commits

    def running(self) -> list[str]:
        """Return the names of the studies with a running trial, as the database has them."""
        return self._library.running()

    def extents(self, prefix: str) -> dict[str, Extent]:
        """Return the studies of the database whose names start with a prefix, by name."""
        return self._library.extents(prefix)

    def _own(self, record: StudyRecord) -> StudyRecord:
        """Return a study that can be written here. Raises OtherShard."""
        if record.shard != self._shard:
            raise OtherShard(f"The study {record.name} is written by shard {record.shard}.")
        return record

    def _answer(self, change: Change) -> Any:
        """Write a change whose outcome only the database knows; return it."""
        self.wait_for_lock(self._timeout)
        return self._answers([change])[0]

    def _answers(self, changes: Sequence[Change]) -> list[Any]:
        for change in changes:
            self._committer.enqueue(change)
        self._committer.flush()
        try:
            return [wait_for(change.outcome, self._timeout) for change in changes]
        except StorageUnavailable:
            for change in changes:
                self._committer.withdraw(change)
            raise

    def _write(self, record: StudyRecord, change: Change) -> None:
        """Queue a change that is in memory already; the record's lock is held."""
        self._committer.enqueue(change)
        record.note_change(change)

    def _finish(self, change: Change) -> None:
        writes = self._collecting.get()
        if writes is not None:
            writes.add(change)
            return
        self._committer.flush()
        if self._wait:
            wait_for(change.outcome, self._timeout)

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study. Raises DuplicatedStudyError."""
        name = (
            DEFAULT_STUDY_NAME_PREFIX + str(uuid.uuid4())
            if study_name is None
            else schema.checked_key(study_name)
        )
        study_id: int = self._answer(CreateStudy(name, list(directions), self._shard))
        return study_id

    def delete_study(self, study_id: int) -> None:
        """Delete a study with its trials. Raises KeyError."""
        self._own(self._library.known(study_id))
        self._answer(DeleteStudy(study_id))

    def rename_study(self, study_id: int, name: str) -> None:
        """Give a study another name; it is read again when it is needed. Raises KeyError."""
        self._own(self._library.known(study_id))
        self._answer(RenameStudy(study_id, schema.checked_key(name)))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute. Raises KeyError."""
        self._set_study_attr(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute. Raises KeyError."""
        self._set_study_attr(study_id, "system", key, value)

    def _set_study_attr(self, study_id: int, kind: AttrKind, key: str, value: Any) -> None:
        self.wait_for_lock(self._timeout)
        change = SetStudyAttr(study_id, kind, schema.checked_key(key), json.dumps(value))
        record = self._own(self._library.known(study_id))
        with record.lock:
            record.set_attr(kind, key, json.loads(change.text))
            self._write(record, change)
        self._finish(change)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return a study's id. Raises KeyError."""
        return self._library.id_of_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return a study's name. Raises KeyError."""
        return self._library.known(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return a study's directions. Raises KeyError."""
        return list(self._library.known(study_id).directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's user attributes; not to be changed. Raises KeyError."""
        return self._library.known(study_id).attrs["user"]

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes; not to be changed. Raises KeyError."""
        return self._library.known(study_id).attrs["system"]

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies of the database, by id, without their trials."""
        return [record.freeze() for record in self._library.all_known()]

    # Writing to trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial. Raises KeyError."""
        self.wait_for_lock(self._timeout)
        record = self._own(self._library.loaded(study_id))
        if template_trial is None:
            template = create_trial(state=TrialState.RUNNING)
            template.datetime_start = datetime.now()  # noqa: DTZ005  Optuna's trials have naive local times
        else:
            template = _recordable(record, template_trial)
        trial_id: int = self._answer(CreateTrial(study_id, template))
        return trial_id

    def create_trials(self, study_id: int, templates: Sequence[FrozenTrial]) -> list[int]:
        """Create trials, numbered in this order, in as few transactions as possible; return their ids.

        Raises KeyError, ValueError for a trial that is incompatible with the others, StorageUnavailable.
        """
        self.wait_for_lock(self._timeout)
        record = self._own(self._library.loaded(study_id))
        changes = [CreateTrial(study_id, _recordable(record, template)) for template in templates]
        return self._answers(changes)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter. Raises KeyError, UpdateFinishedTrialError, ValueError for an incompatible one."""

        def check(record: StudyRecord) -> None:
            if param_name in record.distributions:
                check_distribution_compatibility(record.distributions[param_name], distribution)

        name, text = schema.checked_key(param_name), distribution_to_json(distribution)
        self._change_trial(SetParam(trial_id, name, schema.read_back(param_value_internal), text), check)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set a step's value. Raises KeyError, UpdateFinishedTrialError."""
        self.set_trial_intermediate_values(trial_id, {step: intermediate_value})

    def set_trial_intermediate_values(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Set the values of several steps. Raises KeyError, UpdateFinishedTrialError."""
        read_back = {schema.checked_step(step): schema.read_back(value) for step, value in values.items()}
        self._change_trial(SetIntermediates(trial_id, read_back))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute. Raises KeyError, UpdateFinishedTrialError."""
        self._change_trial(SetTrialAttr(trial_id, "user", schema.checked_key(key), json.dumps(value)))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute. Raises KeyError, UpdateFinishedTrialError."""
        self._change_trial(SetTrialAttr(trial_id, "system", schema.checked_key(key), json.dumps(value)))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state and values; return False for a trial that another started before.

        Raises KeyError, UpdateFinishedTrialError.
        """
        trial = self._trial(self._own(self._library.of_trial(trial_id)), trial_id)
        now = datetime.now()  # noqa: DTZ005  Optuna's trials have naive local times
        change = SetState(
            trial_id, state, None if values is None else [schema.read_back(value) for value in values]
        )
        if state == TrialState.RUNNING:
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.state != TrialState.WAITING:
                return False
            change.started, change.claims = now, True
            return bool(self._answer(change))
        change.completed = now if state.is_finished() else None
        self._change_trial(change)
        return True

    def _change_trial(self, change: TrialChange, check: Callable[[StudyRecord], None] | None = None) -> None:
        self.wait_for_lock(self._timeout)
        record = self._own(self._library.of_trial(change.trial_id))
        with record.lock:
            trial = self._trial(record, change.trial_id)
            self.check_trial_is_updatable(change.trial_id, trial.state)
            if check is not None:
                check(record)
            changed = change.apply(trial)
            self._write(record, change)
            record.replace(changed)
        self._finish(change)

    # Reading trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return a trial's id. Raises KeyError."""
        record = self._library.loaded(study_id)
        if trial_number not in record.ids:
            raise KeyError(f"No trial with number {trial_number} exists in study with study_id {study_id}.")
        return record.ids[trial_number]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it is now; not to be changed. Raises KeyError."""
        return self._trial(self._library.of_trial(trial_id), trial_id)

    @staticmethod
    def _trial(record: StudyRecord, trial_id: int) -> FrozenTrial:
        trial = record.trials.get(trial_id)
        if trial is None:
            raise KeyError(f"No trial with trial_id {trial_id} exists.")
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials, by id; without `deepcopy` shared ones, not to be changed. Raises KeyError."""
        record = self._library.loaded(study_id)
        with record.lock:
            trials = record.select(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """Return how many trials there are. Raises KeyError."""
        wanted = tuple(TrialState) if state is None else (state,) if isinstance(state, TrialState) else state
        counts = self.counts(study_id)
        return sum(counts[each] for each in set(wanted))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the complete trial of the best value, of several such the first.

        Raises KeyError, RuntimeError for a study of several objectives, ValueError when no trial is complete.
        """
        record = self._library.loaded(study_id)
        if len(record.directions) > 1:
            raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
        if record.best is None:
            raise ValueError("No trials are completed yet.")
        return record.best

    def remove_session(self) -> None:
        """Optuna calls this at the end of a worker; the storage serves others still."""


def _recordable(record: StudyRecord, template: FrozenTrial) -> FrozenTrial:
    """Return the trial that is read back once the template is stored. Raises ValueError."""
    trial = as_recorded(template, -1, -1)
    schema.check_template(trial)
    with record.lock:
        known = dict(record.distributions)
    for name in known.keys() & trial.distributions.keys():
        check_distribution_compatibility(known[name], trial.distributions[name])
    return trial
