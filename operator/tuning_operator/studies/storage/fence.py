"""The one connection that writes, the proof that nobody else does, and what the database's errors mean.

Two guards: a session's advisory lock, held by the writing connection itself, so that the next writer waits
until this one is gone, its last transaction included; and a row that names the holder and the last
transaction, checked within every transaction. A writer that comes back after a lost connection learns from
that row whether another process wrote in between, and whether its last commit took place.
"""

import hashlib
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Connection, create_engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import NullPool
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from tuning_operator.studies.storage import schema
from tuning_operator.studies.storage.base import Fenced, StorageUnavailable

log = logging.getLogger(__name__)

_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 1.0  # seconds between two attempts

# Classes of SQLSTATE codes.
_AWAY = ("08", "53", "57", "25006")  # connection, resources, shutdown; a standby answers after a failover
_TRANSIENT = ("40001", "40P01")  # serialization failure, deadlock
_LOCKED = "55P03"

# Both ends must notice within about 25 seconds that the other's machine is gone: the client to continue, the
# server to release the lock.
CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c lock_timeout=1s",
}


LOCK_HOLDERS = text(
    "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND datname = current_database() AND datid = database"
    " AND classid = CAST(CAST(:key AS integer) AS oid) AND objid = CAST(CAST(:value AS integer) AS oid)"
    " AND starts_with(application_name, :mine)"
)
"""The processes of Postgres that hold a lock, if the names of their sessions start with `mine`."""


class LockHeldError(Exception):
    """Another session holds the shard's lock at the moment."""


class FencedConnection:
    """Connects, and again after a loss, and holds the shard's lock. For one thread, except `stop`."""

    def __init__(self, url: URL, shard: int, on_first: Callable[[], None], pod: str | None = None) -> None:
        """Connect to nothing yet.

        Args:
            url: of the database.
            shard: the number of the lock.
            on_first: called with the lock held, before the first transaction, and again if that fails.
            pod: the name of this process's pod. A former process in a pod of this name has been replaced, so
                that its sessions may be ended, though it may still run on a node that is lost.
        """
        self._holder = str(uuid.uuid4())
        digest = hashlib.sha256(pod.encode()).hexdigest()[:8] if pod else ""
        self._replaced = f"tuning-studies-{shard}-{digest}-" if pod else None
        self._shard = shard
        self._on_first = on_first
        self._session = f"{self._replaced or f'tuning-studies-{shard}-'}{self._holder}"[:63]
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,  # an error's text goes to logs; users' values need not
            connect_args={**CONNECT_ARGS, "application_name": self._session},
        )
        self._connection: Connection | None = None
        self._has_held = False
        self._database_started: object = None
        self._stopping = threading.Event()
        self._logged = ""
        self.last_committed = 0
        """The number of the last transaction that the database has."""

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def is_open(self) -> bool:
        """Whether the lock is held as far as is known."""
        return self._connection is not None

    @property
    def guard(self) -> dict[str, Any]:
        """The parameters of `statements.BEGIN` that name the holder."""
        return {"of_shard": self._shard, "me": self._holder}

    def open(self) -> Connection:
        """Return the connection; waits until there is one and the lock is held.

        Raises Fenced when another process has been the writer since, StorageUnavailable after `stop`.
        """
        if self._connection is None:
            self._connection = self._patiently(self._connect)
        return self._connection

    def drop(self, times: int = 1) -> None:
        """Give the connection up: it failed, so many times in a row. Returns after a moment.

        A database may accept connections and still no writes, for example when its disk is full.
        """
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
        self._stopping.wait(min(_SHORTEST_WAIT * 2.0 ** min(times - 1, 16), _LONGEST_WAIT))

    def close(self) -> None:
        """Let the lock go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        """Let `open` wait no longer."""
        self._stopping.set()

    def _patiently(self, connect: Callable[[], Connection]) -> Connection:
        attempts = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, LockHeldError) or is_away(error) or is_locked(error)
            ),
            wait=wait_random_exponential(multiplier=_SHORTEST_WAIT, max=_LONGEST_WAIT),
            stop=stop_when_event_set(self._stopping),
            sleep=sleep_using_event(self._stopping),
            before_sleep=self._log,
            reraise=True,
        )
        self._logged = ""
        try:
            return attempts(connect)
        except (LockHeldError, DBAPIError) as error:
            if not self.stopped:  # another attempt would fail as well: the process must not continue
                raise
            raise StorageUnavailable(f"Shard {self._shard} cannot be written: {error}") from error

    def _log(self, attempt: RetryCallState) -> None:
        """Log the reason of the wait, once: a wrong password looks as if the database were away."""
        error = attempt.outcome.exception() if attempt.outcome else None
        reason = str(getattr(error, "orig", None) or error).strip()
        if reason != self._logged:
            self._logged = reason
            log.warning("Shard %s cannot be written yet, trying again: %s", self._shard, reason)

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        try:
            self._lock(connection)
            if not self._has_held:
                self._on_first()
            with connection.begin():
                self._note_holder(connection)
                started = connection.execute(select(func.pg_postmaster_start_time())).scalar()
                if started != self._database_started:  # another one, which may have lost transactions
                    schema.leave_gap(connection)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._has_held, self._database_started = True, started
        return connection

    def _lock(self, connection: Connection) -> None:
        """Take the lock. Raises LockHeldError, Fenced."""
        with connection.begin():
            if self._has_held:
                self._check_holder(connection)
            taken = self._try_lock(connection)
        if not taken:
            raise LockHeldError("another process holds the lock")

    def _try_lock(self, connection: Connection) -> bool:
        """Take the lock, or end its holder's session if that is ours; return whether it was taken.

        After a loss, the holder may be our own former session that the server has not given up yet. A process
        that was never the writer also ends the session of the pod that it replaces, after it has written
        itself down: the former process then finds that it is not the writer when it connects again.
        """
        key, value = schema.lock_key(self._shard)
        if connection.execute(select(func.pg_try_advisory_lock(key, value))).scalar():
            return True
        replaces = self._replaced is not None and not self._has_held
        mine = self._replaced if replaces else self._session
        holders = connection.execute(LOCK_HOLDERS, {"key": key, "value": value, "mine": mine}).scalars().all()
        if holders and replaces:
            self._note_holder(connection)
        for pid in holders:
            connection.execute(select(func.pg_terminate_backend(pid)))
        return False

    def _check_holder(self, connection: Connection) -> None:
        writers = schema.writers
        holder = connection.execute(select(writers.c.holder).where(writers.c.shard == self._shard)).scalar()
        if holder != self._holder:
            raise Fenced(
                f"Another process writes shard {self._shard} now ({holder}), or the database was restored to "
                "a state from before this process started."
            )

    def _note_holder(self, connection: Connection) -> None:
        writers = schema.writers
        if self._has_held:
            mine = (writers.c.shard == self._shard) & (writers.c.holder == self._holder)
            # Written, not only read: a database that cannot be written to is of no use.
            same = update(writers).where(mine).values(batch=writers.c.batch).returning(writers.c.batch)
            last = connection.execute(same).scalar()
            if last is None:
                raise Fenced(f"Another process has written to shard {self._shard}.")
            self.last_committed = last
            return
        row = {"shard": self._shard, "holder": self._holder, "batch": 0}
        connection.execute(
            insert(writers).values(row).on_conflict_do_update(index_elements=["shard"], set_=row)
        )


def is_away(error: BaseException) -> bool:
    """Whether the error means that the database cannot be reached or cannot write now, whatever was asked."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "pgcode", None)
    if code is None:
        return isinstance(error, OperationalError | InterfaceError)
    return bool(code.startswith(_AWAY))


def is_transient(error: BaseException) -> bool:
    """Whether the same statements may well succeed when they are tried again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) in _TRANSIENT


def is_locked(error: BaseException) -> bool:
    """Whether another session holds a row for longer than we wait."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) == _LOCKED
