"""Reading Optuna's tables with plain SQL: a whole study takes a second, where the ORM takes ten."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any, TypeAlias, TypeVar

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    CompoundSelect,
    Connection,
    Enum,
    Integer,
    Select,
    String,
    Table,
    any_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    null,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.sql.elements import CollectionAggregate, ColumnElement

from tuning_operator.studies.storage import schema
from tuning_operator.studies.storage.base import Extent, shard_in
from tuning_operator.studies.storage.changes import AttrKind, distribution_of

_Ids: TypeAlias = CollectionAggregate[Any]  # ANY of an array or of a subquery
StudyAttrs: TypeAlias = dict[AttrKind, dict[str, Any]]
_K = TypeVar("_K")
_V = TypeVar("_V")
_ByTrial: TypeAlias = dict[int, dict[_K, _V]]

_STATES = {state.name: state for state in TrialState}


@dataclass(frozen=True)
class Header:
    """A study without its trials."""

    study_id: int
    name: str
    directions: list[StudyDirection]
    attrs: StudyAttrs

    @property
    def shard(self) -> int:
        """The shard in which the study was created."""
        return shard_in(self.attrs["system"])


def _study_rows() -> list[Select[Any]]:
    """Return the queries of a study's name and attributes, as (kind, key, text)."""
    user, system, studies = schema.study_user_attrs, schema.study_system_attrs, schema.studies
    study_id: BindParameter[int] = bindparam("study")
    return [
        select(literal("study"), studies.c.study_name, null()).where(studies.c.study_id == study_id),
        select(literal("user"), user.c.key, user.c.value_json).where(user.c.study_id == study_id),
        select(literal("system"), system.c.key, system.c.value_json).where(system.c.study_id == study_id),
    ]


def _news() -> CompoundSelect[Any]:
    table = schema.trials
    ids = select(literal("trial"), cast(table.c.trial_id, String), null())
    new = ids.where(table.c.study_id == bindparam("study"), table.c.trial_id > bindparam("beyond"))
    changed = [
        ids.where(
            table.c.trial_id == any_(bindparam(f"{state.name}_ids", type_=ARRAY(Integer))),
            table.c.state != state,
        )
        for state in _UNFINISHED
    ]
    return union_all(*_study_rows(), new, *changed)


_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
_STUDY_ATTRS = union_all(*_study_rows())
_NEWS = _news()


def headers(connection: Connection, *only: ColumnElement[bool]) -> list[Header]:
    """Return the studies for which the conditions hold (on the table `studies`), by id."""
    found = connection.execute(
        select(schema.studies.c.study_id, schema.studies.c.study_name).where(*only).order_by("study_id")
    ).all()
    ids = [study_id for study_id, _ in found]
    directions = _directions(connection, ids)
    user = _study_attrs(connection, schema.study_user_attrs, ids)
    system = _study_attrs(connection, schema.study_system_attrs, ids)
    return [
        Header(study_id, name, directions[study_id], {"user": user[study_id], "system": system[study_id]})
        for study_id, name in found
    ]


def _directions(connection: Connection, ids: Sequence[int]) -> dict[int, list[StudyDirection]]:
    table = schema.study_directions
    rows = connection.execute(
        select(table.c.study_id, table.c.direction)
        .where(table.c.study_id.in_(ids))
        .order_by(table.c.study_id, table.c.objective)
    )
    found: dict[int, list[StudyDirection]] = defaultdict(list)
    for study_id, direction in rows:
        found[study_id].append(direction)
    return found


def _study_attrs(connection: Connection, table: Table, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    rows = connection.execute(
        select(table.c.study_id, table.c.key, table.c.value_json).where(table.c.study_id.in_(ids))
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for study_id, key, text in rows:
        found[study_id][key] = json.loads(text)
    return found


def study_attrs(connection: Connection, study_id: int) -> StudyAttrs | None:
    """Return a study's attributes, None when there is no such study; one statement."""
    return _attrs_in(connection.execute(_STUDY_ATTRS, {"study": study_id}).all())


def news(
    connection: Connection, study_id: int, beyond: int, unfinished: Mapping[int, TrialState]
) -> tuple[StudyAttrs | None, list[int]]:
    """Return a study's attributes, None when there is no such study, and the trials to read; one statement.

    Those are the trials with a higher id than `beyond`, and the unfinished ones that have another state now.
    """
    of_state = {state: [i for i, known in unfinished.items() if known == state] for state in _UNFINISHED}
    ids = {f"{state.name}_ids": ids for state, ids in of_state.items()}
    rows = connection.execute(_NEWS, {"study": study_id, "beyond": beyond, **ids}).all()
    return _attrs_in(rows), [int(key) for kind, key, _ in rows if kind == "trial"]


def _attrs_in(rows: Sequence[Any]) -> StudyAttrs | None:
    if not any(kind == "study" for kind, _, _ in rows):
        return None
    return {
        "user": {key: json.loads(text) for kind, key, text in rows if kind == "user"},
        "system": {key: json.loads(text) for kind, key, text in rows if kind == "system"},
    }


def new_trials(connection: Connection, study_id: int, beyond: int) -> list[int]:
    """Return the ids of a study's trials with a higher id than `beyond`, in order."""
    table = schema.trials
    query = select(table.c.trial_id).where(table.c.study_id == study_id, table.c.trial_id > beyond)
    return list(connection.execute(query.order_by(table.c.trial_id)).scalars())


def states(connection: Connection, ids: Iterable[int]) -> dict[int, TrialState]:
    """Return the states of the trials of these ids that there are."""
    table = schema.trials
    rows = connection.execute(select(table.c.trial_id, table.c.state).where(table.c.trial_id == _any_of(ids)))
    return {row.trial_id: row.state for row in rows}


def running(connection: Connection) -> list[str]:
    """Return the names of the studies with a running trial."""
    studies, table = schema.studies, schema.trials
    has_running = exists().where(table.c.study_id == studies.c.study_id, table.c.state == TrialState.RUNNING)
    return list(connection.execute(select(studies.c.study_name).where(has_running)).scalars())


def extents(connection: Connection, prefix: str) -> dict[str, Extent]:
    """Return the studies whose names start with a prefix, by name."""
    studies, table = schema.studies, schema.trials
    rows = connection.execute(
        select(studies.c.study_name, func.count(table.c.trial_id), func.max(table.c.datetime_complete))
        .outerjoin(table, table.c.study_id == studies.c.study_id)
        .where(studies.c.study_name.startswith(prefix, autoescape=True))
        .group_by(studies.c.study_name)
    )
    return {name: Extent(trials, schema.local_time(finished)) for name, trials, finished in rows}


def batch(connection: Connection, guard: Mapping[str, Any], otherwise: int) -> int:
    """Return the number of a writer's last transaction; `otherwise`: another one has become the writer."""
    table = schema.writers
    mine = (table.c.shard == guard["of_shard"]) & (table.c.holder == guard["me"])
    found = connection.execute(select(table.c.batch).where(mine)).scalar()
    return otherwise if found is None else found


def study_of(connection: Connection, trial_id: int) -> int | None:
    """Return the id of a trial's study, None where there is no such trial."""
    table = schema.trials
    return connection.execute(select(table.c.study_id).where(table.c.trial_id == trial_id)).scalar()


def study_trials(connection: Connection, study_id: int) -> list[FrozenTrial]:
    """Return all trials of a study, by id. The connection must have a snapshot."""
    table = schema.trials
    mine = select(table.c.trial_id).where(table.c.study_id == study_id)
    return _trials(connection, any_(mine.scalar_subquery()))


def trials(connection: Connection, ids: Sequence[int]) -> list[FrozenTrial]:
    """Return the trials of these ids that there are, by id."""
    return _trials(connection, _any_of(ids)) if ids else []


def _trials(connection: Connection, ids: _Ids) -> list[FrozenTrial]:
    values = _values(connection, ids)
    intermediate_values = _intermediate_values(connection, ids)
    params, distributions = _params(connection, ids)
    user_attrs = _attrs(connection, schema.trial_user_attrs, ids)
    system_attrs = _attrs(connection, schema.trial_system_attrs, ids)
    columns = ("number", "state", "datetime_start", "datetime_complete")
    return [
        FrozenTrial(
            trial_id=trial_id,
            number=number,
            state=_STATES[state],
            value=None,
            values=list(values[trial_id].values()) if trial_id in values else None,
            datetime_start=schema.local_time(start),
            datetime_complete=schema.local_time(complete),
            params=params.get(trial_id, {}),
            distributions=distributions.get(trial_id, {}),
            user_attrs=user_attrs.get(trial_id, {}),
            system_attrs=system_attrs.get(trial_id, {}),
            intermediate_values=intermediate_values.get(trial_id, {}),
        )
        for trial_id, number, state, start, complete in _rows(
            connection, schema.trials, ids, columns, "trial_id"
        )
    ]


def _values(connection: Connection, ids: _Ids) -> _ByTrial[int, float]:
    found: _ByTrial[int, float] = defaultdict(dict)
    columns = ("objective", "value", "value_type")
    for trial_id, objective, value, kind in _rows(connection, schema.trial_values, ids, columns, "objective"):
        found[trial_id][objective] = schema.loaded_value(value, kind)
    return found


def _intermediate_values(connection: Connection, ids: _Ids) -> _ByTrial[int, float]:
    found: _ByTrial[int, float] = defaultdict(dict)
    columns = ("step", "intermediate_value", "intermediate_value_type")
    order = "trial_intermediate_value_id"
    for trial_id, step, value, kind in _rows(
        connection, schema.trial_intermediate_values, ids, columns, order
    ):
        found[trial_id][step] = schema.loaded_value(value, kind)
    return found


def _params(connection: Connection, ids: _Ids) -> tuple[_ByTrial[str, Any], _ByTrial[str, BaseDistribution]]:
    params: _ByTrial[str, Any] = defaultdict(dict)
    distributions: _ByTrial[str, BaseDistribution] = defaultdict(dict)
    columns = ("param_name", "param_value", "distribution_json")
    for trial_id, name, value, text in _rows(connection, schema.trial_params, ids, columns, "param_id"):
        distribution = distribution_of(text)
        params[trial_id][intern(name)] = distribution.to_external_repr(value)
        distributions[trial_id][intern(name)] = distribution
    return params, distributions


def _attrs(connection: Connection, table: Table, ids: _Ids) -> _ByTrial[str, Any]:
    found: _ByTrial[str, Any] = defaultdict(dict)
    order = next(iter(table.primary_key.columns)).name
    for trial_id, key, text in _rows(connection, table, ids, ("key", "value_json"), order):
        found[trial_id][intern(key)] = json.loads(text)
    return found


def _rows(
    connection: Connection, table: Table, ids: _Ids, columns: Sequence[str], order: str
) -> Sequence[Any]:
    """Return (trial_id, *columns) of the trials' rows; enumerations as their names."""
    wanted = [_plain(table.c[name]) for name in columns]
    query = select(table.c.trial_id, *wanted).where(table.c.trial_id == ids).order_by(table.c[order])
    return connection.execute(query).all()


def _any_of(ids: Iterable[int]) -> _Ids:
    return any_(bindparam("ids", list(ids), type_=ARRAY(Integer)))  # one text for any number of ids


def _plain(column: Column[Any]) -> ColumnElement[Any]:
    return type_coerce(column, String) if isinstance(column.type, Enum) else column
