"""Memory and database together: what is not in memory is read once; what others wrote, at a refresh."""

import copy
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_delay, stop_never, wait_random_exponential

from tuning_operator.studies.storage import loader, schema, statements
from tuning_operator.studies.storage.base import Extent, StorageUnavailable
from tuning_operator.studies.storage.batch import Batch, Done, Known
from tuning_operator.studies.storage.changes import (
    Change,
    CreateTrial,
    DeleteStudy,
    RenameStudy,
    SetState,
    SetStudyAttr,
    TrialChange,
)
from tuning_operator.studies.storage.fence import CONNECT_ARGS, is_away
from tuning_operator.studies.storage.memory import (
    Memory,
    StudyRecord,
    id_of,
    put_back_attrs,
    put_back_trial,
)

_T = TypeVar("_T")


class Library:
    """Finds studies and trials; the committer's ledger."""

    def __init__(self, url: URL, shard: int, timeout: float | None) -> None:
        """Start with nothing in memory.

        Args:
            url: the database.
            shard: the shard whose studies are kept in memory. Those of others are read each time.
            timeout: seconds until a read that the database does not answer raises StorageUnavailable.
        """
        self._url = url
        self._shard = shard
        self._guard: Mapping[str, Any] = {}
        self._at_least = 0
        """The number of the last transaction that this process committed; 0: it has not written yet."""
        self._timeout = timeout
        self._memory = Memory()
        self._prepared = False
        self._engine = create_engine(
            url,
            pool_size=4,
            max_overflow=4,
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            connect_args=CONNECT_ARGS,
        )

    def prepare(self) -> None:
        """Make the tables that are missing."""
        if not self._prepared:
            schema.prepare(self._url)
            self._prepared = True

    def close(self) -> None:
        """Close the connections that read."""
        self._engine.dispose()

    def known(self, study_id: int) -> StudyRecord:
        """Return a study; maybe without its trials. Raises KeyError."""
        if record := self._memory.study(study_id):
            return record
        found = self._read(
            lambda connection: loader.headers(connection, schema.studies.c.study_id == study_id)
        )
        record = self._take_in(found[0]) if found else None
        if record is None:
            raise KeyError(f"No study with study_id {study_id} exists.")
        return record

    def _take_in(self, header: loader.Header) -> StudyRecord | None:
        """Return the study; None for one that was deleted here. One of another shard is not kept."""
        return self._memory.take_in(header) if header.shard == self._shard else StudyRecord(header)

    def loaded(self, study_id: int) -> StudyRecord:
        """Return a study with its trials. Raises KeyError."""
        record = self.known(study_id)
        if not record.loaded:
            with record.loading:
                if not record.loaded:
                    trials = self._read(lambda c: loader.study_trials(c, study_id))
                    if record.shard == self._shard:
                        self._memory.fill(record, trials)
                    else:
                        for trial in trials:
                            record.add(trial)
                    record.loaded = True
        return record

    def of_trial(self, trial_id: int) -> StudyRecord:
        """Return the study of a trial. Raises KeyError."""
        if record := self._memory.of_trial(trial_id):
            return record
        study_id = self._read(lambda connection: loader.study_of(connection, trial_id))
        if study_id is None:
            raise KeyError(f"No trial with trial_id {trial_id} exists.")
        record = self.loaded(study_id)
        if trial_id not in record.trials:  # it was created after the study was read
            self.refresh(study_id, settled=0)
        return record

    def id_of_name(self, name: str) -> int:
        """Return a study's id. Raises KeyError."""
        known = self._memory.id_of_name(name)
        if known is not None:
            return known
        found = self._read(lambda connection: loader.headers(connection, schema.studies.c.study_name == name))
        record = self._take_in(found[0]) if found else None
        if record is None:
            raise KeyError(f"No study of the name {name!r} exists.")
        return record.study_id

    def all_known(self) -> list[StudyRecord]:
        """Return all studies of the database, by id; maybe without their trials."""
        records = [self._take_in(header) for header in self._read(loader.headers)]
        return [record for record in records if record is not None]

    def running(self) -> list[str]:
        """Return the names of the studies with a running trial."""
        return self._read(loader.running)

    def extents(self, prefix: str) -> dict[str, Extent]:
        """Return the studies of the database whose names start with a prefix, by name."""
        return self._read(lambda connection: loader.extents(connection, prefix))

    def conflicts(self, study_id: int) -> int:
        """Return how often memory was corrected after a refused write to a trial of a study."""
        record = self._memory.study(study_id)
        return 0 if record is None else record.conflicts

    def release(self, study_id: int, settled: float) -> None:
        """Drop a study, to be read again when it is needed; not while a change after `settled` is queued."""
        record = self._memory.study(study_id)
        if record is not None and record.is_settled(settled):
            self._memory.release(record)

    def refresh(self, study_id: int, settled: float) -> None:
        """Read what others wrote to a study, except where a change of ours after `settled` is newer.

        Raises KeyError when the study is gone.
        """
        if self.known(study_id).shard != self._shard:
            return  # it is read each time
        record = self.loaded(study_id)
        with record.lock:
            known = {trial_id: record.trials[trial_id].state for trial_id in record.unfinished}
            foreign = [trial_id for trial_id in known if record.is_foreign(trial_id)]
            beyond = record.known_trials().last_id

        attrs, ids = self._read(lambda c: loader.news(c, study_id, beyond, known), one_statement=True)
        if attrs is None:
            self._memory.drop(study_id)
            raise KeyError(f"Another process deleted the study with study_id {study_id}.")
        changed = sorted({*ids, *foreign})
        trials = self._read(lambda c: loader.trials(c, changed)) if changed else []
        self._take_attrs(record, attrs, settled)
        with record.lock:
            for trial in trials:
                if id_of(trial) in record.trials and not record.changed_since(id_of(trial), settled):
                    record.replace_by_foreign(trial)
        self._memory.fill(record, trials)

    @staticmethod
    def _take_attrs(record: StudyRecord, fresh: loader.StudyAttrs, settled: float) -> None:
        with record.lock:
            for kind, attrs in fresh.items():
                for key, value in attrs.items():
                    if not record.changed_since((kind, key), settled):
                        record.set_attr(kind, key, value)

    def _read(self, work: Callable[[Connection], _T], *, one_statement: bool = False) -> _T:
        """Do work that reads as of one moment; it is repeated while the database is unavailable.

        That of `one_statement` needs no transaction, whose beginning and end are two round trips.

        Raises StorageUnavailable.
        """
        stop = stop_never if self._timeout is None else stop_after_delay(self._timeout)
        attempts = Retrying(
            retry=retry_if_exception(is_away),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop,
            reraise=True,
        )
        try:
            result: _T = attempts(self._read_once, work, one_statement)
        except DBAPIError as error:
            if is_away(error):
                raise StorageUnavailable(f"The database is unavailable: {error}") from error
            raise
        return result

    def _read_once(self, work: Callable[[Connection], _T], one_statement: bool) -> _T:
        self.prepare()
        at_least = self._at_least
        with (
            self._engine.connect() as connection,
            nullcontext() if one_statement else _snapshot(connection),
        ):
            if at_least and loader.batch(connection, self._guard, at_least) < at_least:
                raise StorageUnavailable("The database has lost transactions, which are being written again.")
            return work(connection)

    # The committer's ledger

    def begin(self, guard: Mapping[str, Any]) -> None:
        """Forget what was read before this process became the writer, as `guard` names it."""
        self._guard = guard
        self._memory.clear()

    def committed(self, number: int) -> None:
        """Remember the number of the last transaction: a database without it is not to be read."""
        self._at_least = number

    def restore(self, connection: Connection, unsettled: Container[int]) -> int:
        """Write the studies in memory to a database that has lost the last transactions; return how many.

        Studies that were deleted are deleted again. The ends of the `unsettled` trials are left out.
        """
        records = self._memory.all()
        gone = self._memory.gone()
        for study_id in gone:
            for statement in statements.DELETE_STUDY:
                connection.execute(statement, {"study_id": study_id})
        for record in records:
            header, trials = record.snapshot()
            Batch(self.known_trials).restore(
                connection, header, [_running(t) if id_of(t) in unsettled else t for t in trials]
            )
        schema.skip_ids(connection, schema.studies.c.study_id, max(gone, default=0))
        schema.skip_ids(connection, schema.trials.c.trial_id, 0)
        schema.leave_gap_after_loss(connection)
        return len(records)

    def known_trials(self, study_id: int) -> Known:
        """Return how much of a study's trials is in memory."""
        record = self._memory.study(study_id)
        if record is None:
            return Known(0, -1)
        with record.lock:
            return record.known_trials()

    def settle(self, done: Done) -> None:
        """Add a committed transaction's new trials, claims, and the trials that others changed first."""
        for study_id, trials in done.found.items():
            if record := self._memory.study(study_id):
                self._memory.fill(record, trials)
        for change, result in done.results.items():
            self._settle_answer(change, result)
        for trial_id, trial in done.changed_by_others.items():
            record = self._memory.of_trial(trial_id)
            if record is None:
                continue
            if trial is None:  # only with its study
                self._memory.drop(record.study_id)
            else:
                put_back_trial(record, trial, list)

    def _settle_answer(self, change: Change, result: Any) -> None:
        """Add what only the database could answer, also when nobody waits for it any more."""
        if isinstance(change, DeleteStudy):
            self._memory.drop(change.study_id)
        elif isinstance(change, RenameStudy):
            if record := self._memory.study(change.study_id):
                self._memory.release(record)
        elif isinstance(change, CreateTrial) and (record := self._memory.study(change.study_id)):
            with record.lock:
                record.note_ours(result, change.seq)
        elif (
            isinstance(change, SetState)
            and change.claims
            and result
            and (record := self._memory.of_trial(change.trial_id))
        ):
            with record.lock:
                record.note_change(change)
                record.replace(change.apply(record.trials[change.trial_id]))

    def refuse(self, connection: Connection, change: Change, rest: Callable[[], list[Change]]) -> None:
        """Read the subject of a refused change again."""
        with connection.begin():
            if isinstance(change, TrialChange):
                if (record := self._memory.of_trial(change.trial_id)) is None:
                    return
                for trial in loader.trials(connection, [change.trial_id]):
                    put_back_trial(record, trial, rest)
            elif isinstance(change, SetStudyAttr):
                if (record := self._memory.study(change.study_id)) is None:
                    return
                if attrs := loader.study_attrs(connection, change.study_id):
                    put_back_attrs(record, attrs, rest)


@contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    """Let all statements see the database as of the first one."""
    connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not connection.invalidated:  # one that was lost has no transaction any more
            connection.exec_driver_sql("ROLLBACK")


def _running(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial without its end."""
    running = copy.copy(trial)
    running.state, running.values, running.datetime_complete = TrialState.RUNNING, None, None
    return running
