"""What a writer may learn beyond Optuna's own errors, and what the database's errors mean."""

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

_AWAY = ("08", "53", "57", "25006")  # connection, resources, shutdown; a standby answers after a failover
_PASSING = ("40001", "40P01")  # serialization, deadlock
_LOCKED = "55P03"


class Fenced(RuntimeError):  # noqa: N818  it is a state more than a mistake
    """Another process writes this shard now: this one must end, it can never write again."""


class StorageUnavailable(TimeoutError):  # noqa: N818
    """Postgres did not answer in time. A write stays queued and is kept as soon as it can be."""


def is_away(error: BaseException) -> bool:
    """Whether the error says that the database cannot be reached or cannot write now, whatever was asked."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "pgcode", None)
    if code is None:
        return isinstance(error, OperationalError | InterfaceError)
    return bool(code.startswith(_AWAY))


def is_passing(error: BaseException) -> bool:
    """Whether the same statements may well succeed when they are tried again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) in _PASSING


def is_locked(error: BaseException) -> bool:
    """Whether another session holds a row for longer than we wait."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) == _LOCKED
