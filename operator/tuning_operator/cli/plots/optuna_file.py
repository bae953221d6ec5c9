"""A study's record as a file of Optuna's."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Table, create_engine, insert
from tuning_trainer.wire.codec import from_wire, parameters_from_wire

from tuning_operator.protocol import FinishedStudy, FinishedTrial
from tuning_operator.studies.storage import schema


def save_study(
    record: FinishedStudy, name: str, metrics: Sequence[str], file: Path, *, journal: bool
) -> None:
    """Save the record in a new file that `optuna.load_study` opens.

    Args:
        record: the record; its trials are numbered from 0.
        name: the name of the study in the file.
        metrics: the names of the objectives.
        file: an SQLite database.
        journal: write a journal instead.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: BaseStorage = (
        JournalStorage(JournalFileBackend(str(file))) if journal else RDBStorage(_url(file))
    )
    study = optuna.create_study(study_name=name, storage=storage, directions=[*record.directions])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a choice may be a list, and metric names are experimental
        study.set_metric_names([*metrics])
        for key, value in from_wire(record.user_attrs).items():
            study.set_user_attr(key, value)
        trials = [_faithful(trial) for trial in sorted(record.trials, key=lambda trial: trial.number)]
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
        _insert(file, trials)
    else:
        study.add_trials(trials)


def _url(file: Path) -> str:
    return f"sqlite:///{file}"


def _insert(file: Path, trials: Sequence[FrozenTrial]) -> None:
    """Insert the trials of the only study of a file. Not by Optuna, which takes up to 20 ms for each."""
    rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for number, trial in enumerate(trials):
        trial_id = {"trial_id": number + 1}
        moments = {
            "datetime_start": schema.stored_time(trial.datetime_start),
            "datetime_complete": schema.stored_time(trial.datetime_complete),
        }
        rows[schema.trials].append(
            {**trial_id, "number": number, "study_id": 1, "state": trial.state, **moments}
        )
        for name, distribution in trial.distributions.items():
            internal = distribution.to_internal_repr(trial.params[name])
            form = distribution_to_json(distribution)
            rows[schema.trial_params].append(
                {**trial_id, "param_name": name, "param_value": internal, "distribution_json": form}
            )
        for objective, value in enumerate(trial.values or ()):
            stored, kind = schema.stored_value(value)
            rows[schema.trial_values].append(
                {**trial_id, "objective": objective, "value": stored, "value_type": kind}
            )
        for step, value in trial.intermediate_values.items():
            stored, kind = schema.stored_intermediate(value)
            report = {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}
            rows[schema.trial_intermediate_values].append({**trial_id, **report})
        for table, attributes in (
            (schema.trial_user_attrs, trial.user_attrs),
            (schema.trial_system_attrs, trial.system_attrs),
        ):
            rows[table] += [
                {**trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
            ]
    engine = create_engine(_url(file))
    with engine.begin() as connection:
        for table, found in rows.items():
            if found:
                connection.execute(insert(table), found)
    engine.dispose()


TABLES = (
    schema.trials,
    schema.trial_params,
    schema.trial_values,
    schema.trial_intermediate_values,
    schema.trial_user_attrs,
    schema.trial_system_attrs,
)
"""The tables with a study's trials; the others refer to the first."""


def _faithful(trial: FinishedTrial) -> FrozenTrial:
    """Return a trial with its times, and its choices as they are."""
    kept = create_trial(
        state=TrialState[trial.state],
        values=trial.values,
        params=parameters_from_wire(trial.parameters, trial.distributions),
        distributions={
            name: json_to_distribution(json.dumps(form)) for name, form in trial.distributions.items()
        },
        user_attrs=from_wire(trial.user_attrs),
        intermediate_values=trial.reported,
        constraints=trial.constraints,
    )
    # Optuna's times are naive and local
    kept.datetime_start = trial.started and trial.started.astimezone().replace(tzinfo=None)
    kept.datetime_complete = trial.finished and trial.finished.astimezone().replace(tzinfo=None)
    return kept
