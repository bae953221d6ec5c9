"""Group commit: one thread writes all that is queued in one transaction, and wakes those that wait for it."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import TrialState
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tuning_operator.studies.storage import statements
from tuning_operator.studies.storage.base import Fenced, StorageUnavailable
from tuning_operator.studies.storage.batch import Batch, Done, Known
from tuning_operator.studies.storage.changes import Barrier, Change, SetState, TrialChange
from tuning_operator.studies.storage.fence import FencedConnection, is_away, is_locked, is_transient
from tuning_operator.studies.storage.writes import Progress

log = logging.getLogger(__name__)

LARGEST_BATCH = 2000
_PATIENCE = 5  # attempts at a change in a deadlock; a batch is halved, so that the rest continues
HUNG_SECONDS = 10.0
"""A database that takes longer for a transaction counts as away."""
_HEARTBEAT = 5.0  # seconds without a write after which the connection is tried


class WriterRowLocked(Exception):  # noqa: N818
    """Another session locks the row that names the writer, so that no transaction can begin."""


class Ledger(Protocol):
    """The memory that is updated with the outcome of the changes. Called from the committer's thread only."""

    def begin(self, guard: Mapping[str, Any]) -> None:
        """Forget what was read before this process became the writer, as `guard` names it."""

    def committed(self, number: int) -> None:
        """Remember the number of the last transaction: a database without it is not to be read."""

    def restore(self, connection: Connection, unsettled: Container[int]) -> int:
        """Write what is in memory to a database that has lost it; return the number of studies.

        The ends of the `unsettled` trials are left out, since they are still to be written.
        """

    def known_trials(self, study_id: int) -> Known:
        """Return how much of a study's trials is in memory."""

    def settle(self, done: Done) -> None:
        """Add a committed transaction's new trials, and the trials that others changed first."""

    def refuse(self, connection: Connection, change: Change, rest: Callable[[], list[Change]]) -> None:
        """Read the subject of a refused change again; `rest` returns the changes still to be written."""


class Committer:
    """The queue and its thread."""

    def __init__(
        self, connection: FencedConnection, ledger: Ledger, on_end: Callable[[Exception], None] | None
    ) -> None:
        self._fenced_connection = connection
        self._ledger = ledger
        self._on_end = on_end
        self._queue: deque[Change] = deque()
        self._changed = threading.Condition()
        self._seq = 0
        self._taken: deque[Change] = deque()
        self._attempts = 0
        self._began: float | None = None
        """When the transaction began that the database has not answered yet."""
        self._acknowledged = 0
        """The number of the last transaction with changes that was committed."""
        self._closing = False
        self._end: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="study-committer", daemon=True)
        self.ready = threading.Event()
        """Set when this process is the writer, and when it never will be: see `check`."""
        self.settled = Progress()
        """All changes up to this number are durable or refused, and memory agrees."""
        self.commits = 0
        """How many transactions were committed."""

    @property
    def is_open(self) -> bool:
        """Whether the lock is held as far as is known, and the database answers."""
        began = self._began  # the committer's thread may change it at any moment
        hangs = began is not None and time.monotonic() - began > HUNG_SECONDS
        return self._end is None and self._fenced_connection.is_open and not hangs

    @property
    def idle(self) -> bool:
        """Whether every change has its outcome."""
        return self.settled.reached >= self._seq

    @property
    def last(self) -> int:
        """The number of the last change in the queue."""
        return self._seq

    def start(self) -> None:
        """Start the thread; it begins with waiting for the lock."""
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the writer, if one did."""
        if self._end is not None:
            raise self._end

    def enqueue(self, change: Change) -> None:
        """Queue a change for the next transaction. Raises Fenced, or StorageUnavailable after `close`.

        An idle thread leaves it in the queue until `flush`, so that changes that nobody waits for yet share a
        transaction.
        """
        with self._changed:
            self.check()
            self._seq += 1
            change.seq = self._seq
            self._queue.append(change)

    def flush(self) -> None:
        """Write what is queued: someone waits for it."""
        with self._changed:
            if self._queue:
                self._changed.notify()

    def withdraw(self, change: Change) -> None:
        """Take a change out of the queue, if no transaction with it has begun."""
        with self._changed:
            if change in self._queue:
                self._queue[self._queue.index(change)] = Barrier(seq=change.seq)

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds, then let the lock go."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self.idle:  # it may be waiting for the lock or the database, to write nothing
            self._fenced_connection.stop()
        self._thread.join(timeout)
        self._fenced_connection.stop()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._fenced_connection.open()
            self._ledger.begin(self._fenced_connection.guard)
            self.ready.set()
            while self._take():
                for part in _parts(self._taken):
                    self._write(part)
        except Exception as error:
            if not isinstance(error, Fenced | StorageUnavailable):
                log.exception("The storage's writer failed")
            self._abandon(error)
        else:
            self._abandon(StorageUnavailable("The storage is closed."))
        finally:
            self._fenced_connection.close()

    def _abandon(self, error: Exception) -> None:
        with self._changed:
            self._end = error
            left = [*self._taken, *self._queue]
            self._queue.clear()
        self.ready.set()
        for change in left:
            change.outcome.set_exception(error)
        self.settled.reach(math.inf)
        if self._on_end is not None and not isinstance(error, StorageUnavailable):
            self._on_end(error)

    def _take(self) -> bool:
        """Move the next batch from the queue; returns False when closed and done."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return False
                if not self._changed.wait(_HEARTBEAT):
                    break
            while self._queue and len(self._taken) < LARGEST_BATCH:
                self._taken.append(self._queue.popleft())
        if not self._taken:
            self._attempt([])
        return True

    def _rest(self) -> list[Change]:
        with self._changed:
            return [*list(self._taken)[1:], *self._queue]

    def _write(self, part: Sequence[Change]) -> None:
        changes = [change for change in part if not isinstance(change, Barrier)]
        try:
            done = self._attempt(changes) if changes else Done()
        except (Fenced, StorageUnavailable):
            raise
        except Exception as error:
            if len(part) > 1:
                middle = len(part) // 2
                self._write(part[:middle])
                self._write(part[middle:])
            else:
                log.exception("The database refused a %s", type(part[0]).__name__)
                if is_locked(error):
                    error = StorageUnavailable("Another session holds the study or the trial: try again.")
                self._refuse(part[0], error)
            return
        self._settle(part, done)

    def _settle(self, part: Sequence[Change], done: Done) -> None:
        self._ledger.settle(done)
        for change in part:
            self._taken.popleft()
            if error := done.refused.get(change):
                log.warning("A %s was not written: %s", type(change).__name__, error)
                change.outcome.set_exception(error)
            else:
                change.outcome.set_result(done.results.get(change))
        self.settled.reach(part[-1].seq)

    def _refuse(self, change: Change, error: Exception) -> None:
        while True:
            try:
                self._ledger.refuse(self._open(), change, self._rest)
                break
            except Exception as problem:
                if not _is_away(problem):
                    raise
                self._fenced_connection.drop()
        self._taken.popleft()
        change.outcome.set_exception(error)
        self.settled.reach(change.seq)

    def _attempt(self, changes: Sequence[Change]) -> Done:
        """Commit a transaction exactly once, however often the connection is lost."""
        failures = losses = 0
        number, done = 0, None
        while True:
            connection = self._open()
            if done is not None and self._fenced_connection.last_committed == number:
                return done  # it was committed; only the answer was lost
            self._attempts += 1
            number, done = self._attempts, None
            try:
                self._began = time.monotonic()
                with connection.begin():
                    done = self._execute(connection, number, changes)
            except Exception as error:
                self._began = None
                if _is_away(error):
                    log.warning("The database is unavailable, writes wait: %s", error)
                    losses += 1
                    self._fenced_connection.drop(losses)
                elif is_transient(error) and len(changes) == 1 and failures < _PATIENCE:
                    failures += 1
                else:
                    raise
            else:
                self._began = None
                self.commits += 1
                self._fenced_connection.last_committed = number
                if changes:
                    self._acknowledged = number
                    self._ledger.committed(number)
                return done

    def _open(self) -> Connection:
        """Return the connection. A database that has lost transactions gets what is in memory first."""
        while True:
            connection = self._fenced_connection.open()
            if self._fenced_connection.last_committed >= self._acknowledged:
                return connection
            try:
                self._restore(connection)
            except Exception as error:
                if not _is_away(error):
                    raise
                self._fenced_connection.drop()

    def _restore(self, connection: Connection) -> None:
        log.error(
            "The database has lost transactions: its last is %d, but %d was committed. It was restored from "
            "a backup, or a standby took over that had not received them. What is in memory is written "
            "again; studies that were not in memory are as they were at the time of the backup.",
            self._fenced_connection.last_committed,
            self._acknowledged,
        )
        with self._changed:
            pending = [*self._taken, *self._queue]
        unsettled = {change.trial_id for change in pending if isinstance(change, SetState)}
        with connection.begin():
            self._begin(connection, self._acknowledged, [])
            studies = self._ledger.restore(connection, unsettled)
        self._fenced_connection.last_committed = self._acknowledged
        log.error("The %d studies in memory are in the database again", studies)

    def _execute(self, connection: Connection, number: int, changes: Sequence[Change]) -> Done:
        ids = sorted({change.trial_id for change in changes if isinstance(change, TrialChange)})
        states = self._begin(connection, number, ids)
        return Batch(self._ledger.known_trials).write(connection, states, changes)

    def _begin(self, connection: Connection, number: int, ids: Sequence[int]) -> dict[int, TrialState]:
        """Begin a transaction if this process is still the writer; return the trials' states by id."""
        parameters = {**self._fenced_connection.guard, "number": number, "ids": ids}
        try:
            rows = connection.execute(statements.BEGIN, parameters).all()
        except DBAPIError as error:
            if is_locked(error):
                raise WriterRowLocked("another session locks the table tuning_writers") from error
            raise
        if not rows:
            raise Fenced("Another process has become the writer.")
        return {row.trial_id: row.state for row in rows if row.trial_id is not None}


def _is_away(error: Exception) -> bool:
    """Whether nothing can be written now, so that all changes wait."""
    return is_away(error) or isinstance(error, WriterRowLocked)


def _parts(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Cut so that no part changes a trial's state twice: one statement sets all states of a part."""
    part: list[Change] = []
    changed: set[int] = set()
    for change in list(changes):
        if isinstance(change, SetState):
            if change.trial_id in changed:
                yield part
                part, changed = [], set()
            changed.add(change.trial_id)
        part.append(change)
    if part:  # there is none in a heartbeat
        yield part
