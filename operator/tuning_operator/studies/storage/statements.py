"""The statements that write, built once: SQLAlchemy Core on Optuna's own tables."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BindParameter,
    DateTime,
    Double,
    Executable,
    FromClause,
    Integer,
    String,
    Table,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from tuning_operator.studies.storage import schema

_Columns: TypeAlias = dict[str, TypeEngine[Any]]


@dataclass(frozen=True)
class RowsStatement:
    """A statement that takes its rows as one array a column; `parameters` are the arrays' names."""

    sql: Executable
    parameters: tuple[str, ...]


def _parameter(column_name: str) -> str:
    return f"new_{column_name}"  # SQLAlchemy keeps the columns' own names to itself


def _rows(columns: _Columns) -> FromClause:
    arrays = [cast(bindparam(_parameter(name)), ARRAY(kind)) for name, kind in columns.items()]
    wanted = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*wanted).render_derived(name="new")


def _upsert(table: Table, key: tuple[str, ...], columns: _Columns) -> RowsStatement:
    rows = _rows(columns)
    # An enumeration travels as text and becomes the column's own type here.
    values = [cast(rows.c[name], table.c[name].type) for name in columns]
    statement = insert(table).from_select(list(columns), select(*values))
    overwritten = {name: statement.excluded[name] for name in columns if name not in key}
    sql = statement.on_conflict_do_update(index_elements=[table.c[name] for name in key], set_=overwritten)
    return RowsStatement(sql, tuple(map(_parameter, columns)))


def _set_state(condition: ColumnElement[bool]) -> RowsStatement:
    table = schema.trials
    columns: _Columns = {
        "trial_id": Integer(),
        "state": String(),
        "started": DateTime(),
        "completed": DateTime(),
    }
    rows = _rows(columns)
    sql = (
        update(table)
        .where(table.c.trial_id == rows.c.trial_id, condition)
        .values(
            state=cast(rows.c.state, table.c.state.type),
            datetime_start=func.coalesce(rows.c.started, table.c.datetime_start),
            datetime_complete=func.coalesce(rows.c.completed, table.c.datetime_complete),
        )
        .returning(table.c.trial_id)
    )
    return RowsStatement(sql, tuple(map(_parameter, columns)))


_TRIAL: _Columns = {
    "study_id": Integer(),
    "number": Integer(),
    "state": String(),
    "datetime_start": DateTime(),
    "datetime_complete": DateTime(),
}


def _create_trials() -> RowsStatement:
    table, columns = schema.trials, _TRIAL
    rows = _rows(columns)
    values = [cast(rows.c[name], table.c[name].type) for name in columns]
    sql = insert(table).from_select(list(columns), select(*values).order_by(rows.c.number))
    return RowsStatement(sql.returning(table.c.trial_id, table.c.number), tuple(map(_parameter, columns)))


def _delete_study() -> list[Executable]:
    of_study: BindParameter[int] = bindparam("study_id")
    mine = select(schema.trials.c.trial_id).where(schema.trials.c.study_id == of_study)
    by_trial = (
        schema.trial_params,
        schema.trial_values,
        schema.trial_intermediate_values,
        schema.trial_user_attrs,
        schema.trial_system_attrs,
        schema.trial_heartbeats,
    )
    by_study = (
        schema.trials,
        schema.study_user_attrs,
        schema.study_system_attrs,
        schema.study_directions,
        schema.studies,
    )
    return [
        *(delete(table).where(table.c.trial_id.in_(mine)) for table in by_trial),
        *(delete(table).where(table.c.study_id == of_study) for table in by_study),
    ]


_IDS = bindparam("ids", type_=ARRAY(Integer))
_ATTR: _Columns = {"key": String(), "value_json": String()}

CREATE_STUDY = (
    insert(schema.studies)
    .values(study_name=bindparam("name"))
    .on_conflict_do_nothing()
    .returning(schema.studies.c.study_id)
)
RENAME_STUDY = (
    update(schema.studies)
    .where(schema.studies.c.study_id == bindparam("of_study"))
    .values(study_name=bindparam("name"))
    .returning(schema.studies.c.study_id)
)
STUDIES = select(schema.studies.c.study_id).where(schema.studies.c.study_id == any_(_IDS))
LOCK_STUDIES = STUDIES.order_by(schema.studies.c.study_id).with_for_update()
STUDY_ATTRS = {
    "user": _upsert(schema.study_user_attrs, ("study_id", "key"), {"study_id": Integer(), **_ATTR}),
    "system": _upsert(schema.study_system_attrs, ("study_id", "key"), {"study_id": Integer(), **_ATTR}),
}
DELETE_STUDY = _delete_study()

CREATE_TRIALS = _create_trials()
RESTORE_TRIALS = _upsert(schema.trials, ("trial_id",), {"trial_id": Integer(), **_TRIAL})
"""Trials under their former ids."""
TRIAL_ATTRS = {
    "user": _upsert(schema.trial_user_attrs, ("trial_id", "key"), {"trial_id": Integer(), **_ATTR}),
    "system": _upsert(schema.trial_system_attrs, ("trial_id", "key"), {"trial_id": Integer(), **_ATTR}),
}
PARAMS = _upsert(
    schema.trial_params,
    ("trial_id", "param_name"),
    {
        "trial_id": Integer(),
        "param_name": String(),
        "param_value": Double(),
        "distribution_json": String(),
    },
)
INTERMEDIATES = _upsert(
    schema.trial_intermediate_values,
    ("trial_id", "step"),
    {
        "trial_id": Integer(),
        "step": Integer(),
        "intermediate_value": Double(),
        "intermediate_value_type": String(),
    },
)
VALUES = _upsert(
    schema.trial_values,
    ("trial_id", "objective"),
    {"trial_id": Integer(), "objective": Integer(), "value": Double(), "value_type": String()},
)
DROP_VALUES = delete(schema.trial_values).where(schema.trial_values.c.trial_id == any_(_IDS))
CLAIM = _set_state(schema.trials.c.state == "WAITING")
SET_STATE = _set_state(schema.trials.c.state.in_(["WAITING", "RUNNING"]))


def _begin() -> Executable:
    writers, trials = schema.writers, schema.trials
    fence = (
        update(writers)
        .where(writers.c.shard == bindparam("of_shard"), writers.c.holder == bindparam("me"))
        .values(batch=bindparam("number"))
        .returning(writers.c.shard)
        .cte("fence")
    )
    return select(trials.c.trial_id, trials.c.state).select_from(
        fence.outerjoin(trials, trials.c.trial_id == any_(_IDS))
    )


BEGIN = _begin()
"""A transaction's first statement: keeps its number if the shard is still ours; otherwise returns no row.

Returns the states of the trials `ids`, or one row of NULLs.
"""
