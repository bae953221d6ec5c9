"""Optuna's tables, one more of our own, how Optuna codes values in them, and what they can hold.

The tables are those of `optuna.storages.RDBStorage`, made by it, so that every Optuna tool opens what is
written here.
"""

from datetime import UTC, datetime
from typing import Any, cast

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    make_url,
    select,
)
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.functions import Function


def _table(model: Any) -> Table:
    return cast("Table", model.__table__)


studies = _table(models.StudyModel)
study_directions = _table(models.StudyDirectionModel)
study_user_attrs = _table(models.StudyUserAttributeModel)
study_system_attrs = _table(models.StudySystemAttributeModel)
trials = _table(models.TrialModel)
trial_user_attrs = _table(models.TrialUserAttributeModel)
trial_system_attrs = _table(models.TrialSystemAttributeModel)
trial_params = _table(models.TrialParamModel)
trial_values = _table(models.TrialValueModel)
trial_intermediate_values = _table(models.TrialIntermediateValueModel)
trial_heartbeats = _table(models.TrialHeartbeatModel)

writers = Table(
    "tuning_writers",
    MetaData(),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("holder", String(36), nullable=False),
    Column("batch", BigInteger, nullable=False),
    comment="The writer of each shard of the studies, and its last transaction. Optuna ignores this table.",
)

GAP = 10_000
"""More ids than several shards use within the seconds that a standby may lag behind."""
GAP_AFTER_LOSS = 100 * GAP
"""More than the gaps of many connections, since those before the loss are lost as well."""
KEY_CHARACTERS = models.MAX_INDEXED_STRING_LENGTH
_LARGEST_STEP = 2**31 - 1
# "tune": the class of our advisory locks, so that a shard's number is no other application's lock.
_LOCK_CLASS = 0x74756E65
_SCHEMA_LOCK = 0x74756E65_00000001  # one number: PostgreSQL keeps those apart from the locks of two numbers
_GAP_LOCK = _SCHEMA_LOCK + 1
_IDS = (studies.c.study_id, trials.c.trial_id)


def database_url(url: str) -> URL:
    """Return the URL with the driver that is used here."""
    return make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg2")


def prepare(url: URL) -> None:
    """Make the tables that are missing. Raises RuntimeError for those of another version of Optuna."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        # Optuna's own way to make tables fails when two processes make them at once.
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        try:
            RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"poolclass": NullPool})
        except StorageInternalError as error:
            raise (
                error.__cause__ or error
            ) from None  # its own text is that the data is invalid, whatever happened
        writers.create(connection, checkfirst=True)


def lock_key(shard: int) -> tuple[int, int]:
    """Return the advisory lock that only the writer of a shard holds."""
    return _LOCK_CLASS, shard


def skip_ids(connection: Connection, column: Column[int], used: int) -> None:
    """Let new rows have ids above those of a table, above `used`, and above those that were given before."""
    highest = select(func.coalesce(func.max(column), 0)).scalar_subquery()
    last = func.greatest(highest, used)
    # Never back: another shard may take ids at the same time.
    connection.execute(select(func.setval(_sequence(column), last)).where(_next_id(column) < last))


def leave_gap(connection: Connection) -> None:
    """Leave out some ids of new studies and trials, unless this is the only shard.

    A database that has lost transactions would give their ids again. Each shard writes back what it has in
    memory, under the former ids, but does not know those of the others.
    """
    if _has_several_shards(connection):
        for column in _IDS:
            connection.execute(select(func.max(_next_id(column))).select_from(func.generate_series(1, GAP)))


def leave_gap_after_loss(connection: Connection) -> None:
    """Leave out more ids than the gaps that are lost as well, unless this is the only shard."""
    if _has_several_shards(connection):
        connection.execute(select(func.pg_advisory_xact_lock(_GAP_LOCK)))  # never back, see `skip_ids`
        for column in _IDS:
            connection.execute(select(func.setval(_sequence(column), _next_id(column) + GAP_AFTER_LOSS)))


def _has_several_shards(connection: Connection) -> bool:
    return (connection.execute(select(func.count()).select_from(writers)).scalar() or 0) > 1


def _next_id(column: Column[int]) -> Function[int]:
    return func.nextval(_sequence(column), type_=BigInteger)


def _sequence(column: Column[int]) -> Function[str]:
    return func.pg_get_serial_sequence(column.table.name, column.name)


def stored_time(time: datetime | None) -> datetime | None:
    """Optuna's tables hold naive times in UTC, its trials naive local times."""
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


def local_time(time: datetime | None) -> datetime | None:
    """Return a stored time as a trial has it."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def stored_value(value: float) -> tuple[float | None, str]:
    """Return an objective's value as a row has it: (value, type)."""
    number, kind = models.TrialValueModel.value_to_stored_repr(value)
    return number, kind.name


def stored_intermediate(value: float) -> tuple[float | None, str]:
    """Return an intermediate value as a row has it: (value, type)."""
    number, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return number, kind.name


_SPECIAL = {
    kind.name: models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(None, kind)
    for kind in models.TrialIntermediateValueModel.TrialIntermediateValueType
    if kind.name != "FINITE"
}
"""The values whose rows have no number, by the type that they have; only reports can be NaN."""


def loaded_value(value: float | None, kind: str) -> float:
    """Return the number that a row of either table of values holds."""
    return _SPECIAL[kind] if value is None else value


# Checked before a write is queued: later, the caller could not get a good error.


def checked_key(text: str, longest: int = KEY_CHARACTERS) -> str:
    """Return a name or an attribute's key. Raises ValueError for one that no row can hold."""
    if len(text) > longest:
        raise ValueError(f"{text[:40]!r}... has {len(text)} characters; Optuna's tables take {longest}.")
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL character, which PostgreSQL cannot store.")
    text.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
    return text


def checked_step(number: int) -> int:
    """Return a step. Raises ValueError for one that no row can hold."""
    if not -_LARGEST_STEP - 1 <= number <= _LARGEST_STEP:
        raise ValueError(f"The step {number} is too large: Optuna's tables take up to {_LARGEST_STEP}.")
    return int(number)


def read_back(value: float) -> float:
    """Return a number as it is read back: PostgreSQL takes Optuna's -0.0 for 0.0."""
    return float(value) + 0.0


def check_template(trial: FrozenTrial) -> None:
    """Check all names and steps of a trial that is to be created. Raises ValueError."""
    for name in (*trial.params, *trial.user_attrs, *trial.system_attrs):
        checked_key(name)
    for step in trial.intermediate_values:
        checked_step(step)
