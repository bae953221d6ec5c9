"""The one connection that writes, and the proof that nobody else does.

Two guards: a session's advisory lock, held by the writing connection itself, so that the next writer waits
until this one is gone, its last transaction included; and a row that names the holder and the last
transaction, looked at within every transaction. A writer that comes back after a lost connection learns from
that row whether another was there meanwhile, and whether the commit that it did not see answered was one.
"""

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Connection, create_engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
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
from tuning_operator.studies.storage.errors import Fenced, StorageUnavailable, is_away

log = logging.getLogger(__name__)

_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 1.0  # seconds between two attempts

# Both ends must notice within about 25 seconds that the other's machine is gone: the client to go on, the
# server to let the lock go.
CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c lock_timeout=1s",
}


class LockHeldError(Exception):
    """Another session holds the shard's lock at the moment."""


class FencedConnection:
    """Connects, and again after a loss, and holds the shard's lock. For one thread, except `stop`."""

    def __init__(self, url: URL, shard: int, on_first: Callable[[], None]) -> None:
        """`on_first` is called with the lock held, before the first transaction, and again if that fails."""
        self._holder = str(uuid.uuid4())
        self._shard = shard
        self._on_first = on_first
        self._session = f"tuning-studies-{shard}-{self._holder}"[:63]
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,  # an error's text goes to logs; users' values need not
            connect_args={**CONNECT_ARGS, "application_name": self._session},
        )
        self._connection: Connection | None = None
        self._has_held = False
        self._stopping = threading.Event()
        self._told = ""
        self.last_committed = 0
        """The number of the last transaction that the database has, as seen when the connection was made."""

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

    def drop(self) -> None:
        """Give the connection up: it failed."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

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
            retry=retry_if_exception(lambda error: isinstance(error, LockHeldError) or is_away(error)),
            wait=wait_random_exponential(multiplier=_SHORTEST_WAIT, max=_LONGEST_WAIT),
            stop=stop_when_event_set(self._stopping),
            sleep=sleep_using_event(self._stopping),
            before_sleep=self._tell,
            reraise=True,
        )
        self._told = ""
        try:
            return attempts(connect)
        except (LockHeldError, DBAPIError) as error:
            raise StorageUnavailable(f"Shard {self._shard} cannot be written: {error}") from error

    def _tell(self, attempt: RetryCallState) -> None:
        """Log what is waited for, once: a wrong password or database looks as if the database were away."""
        error = attempt.outcome.exception() if attempt.outcome else None
        reason = str(getattr(error, "orig", None) or error).strip()
        if reason != self._told:
            self._told = reason
            log.warning("Shard %s cannot be written yet, trying again: %s", self._shard, reason)

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        try:
            with connection.begin():
                if self._has_held:
                    self._check_holder(connection)
                self._lock(connection)
            if not self._has_held:
                self._on_first()
            with connection.begin():
                self._note_holder(connection)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._has_held = True
        return connection

    def _lock(self, connection: Connection) -> None:
        if connection.execute(select(func.pg_try_advisory_lock(*schema.lock_key(self._shard)))).scalar():
            return
        # After a loss it may be our own former session that the server has not given up yet.
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = :session AND pid <> pg_backend_pid()"
            ),
            {"session": self._session},
        )
        raise LockHeldError("another process holds the lock")

    def _check_holder(self, connection: Connection) -> None:
        writers = schema.writers
        holder = connection.execute(select(writers.c.holder).where(writers.c.shard == self._shard)).scalar()
        if holder != self._holder:
            raise Fenced(f"Another process writes shard {self._shard} now ({holder}).")

    def _note_holder(self, connection: Connection) -> None:
        writers = schema.writers
        if self._has_held:
            mine = (writers.c.shard == self._shard) & (writers.c.holder == self._holder)
            # Written, not only read: a database that cannot be written to is no better than none.
            same = update(writers).where(mine).values(batch=writers.c.batch).returning(writers.c.batch)
            last = connection.execute(same).scalar()
            if last is None:
                raise Fenced(f"Another process wrote shard {self._shard} meanwhile.")
            self.last_committed = last
            return
        row = {"shard": self._shard, "holder": self._holder, "batch": 0}
        connection.execute(
            insert(writers).values(row).on_conflict_do_update(index_elements=["shard"], set_=row)
        )
