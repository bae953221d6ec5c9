"""One transaction's statements: many changes, one statement for each kind of row.

Rows travel as arrays (`unnest`), so that a statement is the same text however many rows it takes. Every
statement may be repeated: rows are inserted or overwritten, states change only where they still can.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optuna.distributions import distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from tuning_operator.studies.storage import loader, schema, statements
from tuning_operator.studies.storage.base import SHARD
from tuning_operator.studies.storage.changes import (
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
)

C = TypeVar("C", bound=Change)


@dataclass(frozen=True)
class Known:
    """How much of a study's trials is in memory: their number, and the highest id."""

    count: int
    last_id: int


@dataclass
class Done:
    """The outcome of a transaction; it is valid from the commit on."""

    results: dict[Change, Any] = field(default_factory=dict)
    refused: dict[Change, Exception] = field(default_factory=dict)
    found: dict[int, list[FrozenTrial]] = field(default_factory=lambda: defaultdict(list))
    """New trials by study, in the order of their ids: others' and ours."""
    changed_by_others: dict[int, FrozenTrial | None] = field(default_factory=dict)
    """Trials that other processes changed first, as they left them, by id; None: one was deleted."""


class Batch:
    """The rows of a transaction, gathered from its changes."""

    def __init__(self, known_trials: Callable[[int], Known]) -> None:
        self._known_trials = known_trials
        self._params: dict[tuple[int, str], tuple[float, str]] = {}
        self._intermediates: dict[tuple[int, int], tuple[float | None, str]] = {}
        self._values: dict[tuple[int, int], tuple[float | None, str]] = {}
        self._attrs: dict[str, dict[tuple[int, str], str]] = {"user": {}, "system": {}}
        self._done = Done()

    def write(self, connection: Connection, states: dict[int, TrialState], changes: Sequence[Change]) -> Done:
        """Execute the changes' statements. `states`: the changed trials' in the database."""
        done = self._done
        done.results = dict.fromkeys(changes)
        self._create_studies(connection, _only(CreateStudy, changes))
        self._set_study_attrs(connection, _only(SetStudyAttr, changes))
        self._create_trials(connection, _only(CreateTrial, changes))
        self._set_states(connection, self._still_open(_only(TrialChange, changes), states))
        self._write_rows(connection)
        self._rename_studies(connection, _only(RenameStudy, changes))
        self._delete_studies(connection, _only(DeleteStudy, changes))
        for trial in loader.trials(connection, sorted(done.changed_by_others)):
            done.changed_by_others[trial._trial_id] = trial  # noqa: SLF001
        return done

    def restore(self, connection: Connection, header: loader.Header, trials: Sequence[FrozenTrial]) -> None:
        """Execute the statements that bring back a study under its former ids, where rows are missing.

        Trials that have ended in the database are complete there: their end is the last that is written.
        """
        connection.execute(
            insert(schema.studies)
            .values(study_id=header.study_id, study_name=header.name)
            .on_conflict_do_nothing(index_elements=["study_id"])
        )
        there = select(schema.study_directions.c.objective).where(
            schema.study_directions.c.study_id == header.study_id
        )
        if not connection.execute(there).all():
            connection.execute(
                schema.study_directions.insert(), _direction_rows(header.study_id, header.directions)
            )
        for kind, attrs in header.attrs.items():
            texts = ((header.study_id, key, json.dumps(value)) for key, value in attrs.items())
            _execute(connection, statements.STUDY_ATTRS[kind], texts)
        known = loader.states(connection, [trial._trial_id for trial in trials])  # noqa: SLF001
        missing = [t for t in trials if (state := known.get(t._trial_id)) is None or not state.is_finished()]  # noqa: SLF001
        rows = [
            (
                trial._trial_id,  # noqa: SLF001
                header.study_id,
                trial.number,
                trial.state.name,
                schema.stored_time(trial.datetime_start),
                schema.stored_time(trial.datetime_complete),
            )
            for trial in missing
        ]
        _execute(connection, statements.RESTORE_TRIALS, rows)
        for trial in missing:
            self._take(trial)
        self._write_rows(connection)

    def _refuse(self, change: Change, error: Exception) -> None:
        self._done.refused[change] = error
        self._done.results.pop(change)
        if isinstance(change, TrialChange):
            self._done.changed_by_others[change.trial_id] = None

    def _create_studies(self, connection: Connection, changes: Sequence[CreateStudy]) -> None:
        for change in changes:
            study_id = connection.execute(statements.CREATE_STUDY, {"name": change.name}).scalar()
            if study_id is None:
                self._refuse(change, DuplicatedStudyError(f"There is a study {change.name!r} already."))
                continue
            connection.execute(schema.study_directions.insert(), _direction_rows(study_id, change.directions))
            if change.shard:
                row = (study_id, SHARD, json.dumps(change.shard))
                _execute(connection, statements.STUDY_ATTRS["system"], [row])
            self._done.results[change] = study_id

    def _set_study_attrs(self, connection: Connection, changes: Sequence[SetStudyAttr]) -> None:
        if not changes:
            return
        wanted = sorted({change.study_id for change in changes})
        there = set(connection.execute(statements.STUDIES, {"ids": wanted}).scalars())
        texts: dict[str, dict[tuple[int, str], str]] = {"user": {}, "system": {}}
        for change in changes:
            if change.study_id in there:
                texts[change.kind][change.study_id, change.key] = change.text
            else:
                self._refuse(change, _no_study(change.study_id))
        for kind, rows in texts.items():
            _execute(connection, statements.STUDY_ATTRS[kind], ((*key, text) for key, text in rows.items()))

    def _create_trials(self, connection: Connection, changes: Sequence[CreateTrial]) -> None:
        if not changes:
            return
        wanted = sorted({change.study_id for change in changes})
        # Optuna's own rule: the study's row is locked while a trial gets its number.
        there = set(connection.execute(statements.LOCK_STUDIES, {"ids": wanted}).scalars())
        for study_id in wanted:
            mine = [change for change in changes if change.study_id == study_id]
            if study_id in there:
                self._create_in_study(connection, study_id, mine)
            else:
                for change in mine:
                    self._refuse(change, _no_study(study_id))

    def _create_in_study(self, connection: Connection, study_id: int, changes: Sequence[CreateTrial]) -> None:
        known = self._known_trials(study_id)
        theirs = loader.new_trials(connection, study_id, known.last_id)
        self._done.found[study_id] += loader.trials(connection, theirs)
        first = known.count + len(theirs)
        rows = [
            (
                study_id,
                number,
                change.template.state.name,
                schema.stored_time(change.template.datetime_start),
                schema.stored_time(change.template.datetime_complete),
            )
            for number, change in enumerate(changes, first)
        ]
        ids = {number: trial_id for trial_id, number in _execute(connection, statements.CREATE_TRIALS, rows)}
        for number, change in enumerate(changes, first):
            trial = copy.copy(change.template)
            trial.number, trial._trial_id = number, ids[number]  # noqa: SLF001  Optuna has no other way to it
            self._take(trial)
            self._done.found[study_id].append(trial)
            self._done.results[change] = ids[number]

    def _take(self, trial: FrozenTrial) -> None:
        trial_id = trial._trial_id  # noqa: SLF001
        for name, distribution in trial.distributions.items():
            value = distribution.to_internal_repr(trial.params[name])
            self._params[trial_id, name] = value, distribution_to_json(distribution)
        for step, value in trial.intermediate_values.items():
            self._intermediates[trial_id, step] = schema.stored_intermediate(value)
        for objective, value in enumerate(trial.values or ()):
            self._values[trial_id, objective] = schema.stored_value(value)
        for kind, attrs in (("user", trial.user_attrs), ("system", trial.system_attrs)):
            for key, value in attrs.items():
                self._attrs[kind][trial_id, key] = json.dumps(value)

    def _still_open(self, changes: Sequence[TrialChange], states: dict[int, TrialState]) -> list[SetState]:
        """Gather the rows of changes to unfinished trials, refuse the others; return the changes of state."""
        to_set = []
        for change in changes:
            state = states.get(change.trial_id)
            if state is None:
                self._refuse(change, KeyError(f"No trial with trial_id {change.trial_id} exists."))
            elif state.is_finished():
                self._refuse(change, _finished(change))
            elif isinstance(change, SetState):
                to_set.append(change)
            else:
                self._gather(change)
        return to_set

    def _gather(self, change: TrialChange) -> None:
        match change:
            case SetParam():
                self._params[change.trial_id, change.name] = change.value, change.distribution
            case SetIntermediates():
                for step, value in change.values.items():
                    self._intermediates[change.trial_id, step] = schema.stored_intermediate(value)
            case SetTrialAttr():
                self._attrs[change.kind][change.trial_id, change.key] = change.text

    def _set_states(self, connection: Connection, changes: Sequence[SetState]) -> None:
        for claims, statement in ((True, statements.CLAIM), (False, statements.SET_STATE)):
            mine = [change for change in changes if change.claims is claims]
            rows = [
                (
                    change.trial_id,
                    change.state.name,
                    schema.stored_time(change.started),
                    schema.stored_time(change.completed),
                )
                for change in mine
            ]
            set_now = {trial_id for (trial_id,) in _execute(connection, statement, rows)}
            for change in mine:
                self._note_state(change, was_set=change.trial_id in set_now)
        if ids := sorted({trial_id for trial_id, _ in self._values}):
            connection.execute(statements.DROP_VALUES, {"ids": ids})

    def _note_state(self, change: SetState, *, was_set: bool) -> None:
        if was_set:
            self._done.results[change] = True
            for objective, value in enumerate(change.values or ()):
                self._values[change.trial_id, objective] = schema.stored_value(value)
        elif change.claims:
            self._done.results[change] = False
            self._done.changed_by_others[change.trial_id] = None
        else:
            self._refuse(change, _finished(change))

    def _write_rows(self, connection: Connection) -> None:
        for statement, rows in (
            (statements.PARAMS, self._params),
            (statements.INTERMEDIATES, self._intermediates),
            (statements.VALUES, self._values),
        ):
            _execute(connection, statement, ((*key, *value) for key, value in rows.items()))
        for kind, attrs in self._attrs.items():
            _execute(connection, statements.TRIAL_ATTRS[kind], ((*key, text) for key, text in attrs.items()))

    def _rename_studies(self, connection: Connection, changes: Sequence[RenameStudy]) -> None:
        for change in changes:
            renamed = {"of_study": change.study_id, "name": change.name}
            if connection.execute(statements.RENAME_STUDY, renamed).scalar() is None:
                self._refuse(change, _no_study(change.study_id))

    def _delete_studies(self, connection: Connection, changes: Sequence[DeleteStudy]) -> None:
        for change in changes:
            if not connection.execute(statements.LOCK_STUDIES, {"ids": [change.study_id]}).all():
                self._refuse(change, _no_study(change.study_id))
                continue
            for statement in statements.DELETE_STUDY:
                connection.execute(statement, {"study_id": change.study_id})


def _direction_rows(study_id: int, directions: Sequence[StudyDirection]) -> list[dict[str, Any]]:
    return [
        {"study_id": study_id, "objective": objective, "direction": direction}
        for objective, direction in enumerate(directions)
    ]


def _only(kind: type[C], changes: Iterable[Change]) -> list[C]:
    return [change for change in changes if isinstance(change, kind)]


def _no_study(study_id: int) -> KeyError:
    return KeyError(f"No study with study_id {study_id} exists.")


def _finished(change: TrialChange) -> UpdateFinishedTrialError:
    return UpdateFinishedTrialError(f"The trial of id {change.trial_id} was ended by another process.")


def _execute(
    connection: Connection, statement: statements.RowsStatement, rows: Iterable[Sequence[Any]]
) -> list[Any]:
    """Execute a statement that takes any number of rows, unless there is none; return what it returns."""
    columns = list(zip(*rows, strict=True))
    if not columns:
        return []
    values = {name: list(column) for name, column in zip(statement.parameters, columns, strict=True)}
    result = connection.execute(statement.sql, values)
    return list(result.all()) if result.returns_rows else []
