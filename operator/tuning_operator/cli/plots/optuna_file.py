"""A study's record as a file of Optuna's."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event

from tuning_operator.protocol import FinishedStudy, FinishedTrial


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
    storage: BaseStorage
    if journal:
        storage = JournalStorage(JournalFileBackend(str(file)))
    else:
        storage = RDBStorage(f"sqlite:///{file}")
        # Much faster, and if this process is interrupted, the file is not used
        event.listen(storage.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
    study = optuna.create_study(study_name=name, storage=storage, directions=[*record.directions])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a choice may be a list, and metric names are experimental
        study.set_metric_names([*metrics])
        for key, value in record.user_attrs.items():
            study.set_user_attr(key, value)
        for trial in sorted(record.trials, key=lambda trial: trial.number):
            study.add_trial(_faithful(trial))
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _faithful(trial: FinishedTrial) -> FrozenTrial:
    """Return a trial with its times, and its choices as they are."""
    kept = create_trial(
        state=TrialState[trial.state],
        values=trial.values,
        params=trial.parameters,
        distributions={
            name: json_to_distribution(json.dumps(form)) for name, form in trial.distributions.items()
        },
        user_attrs=trial.user_attrs,
        intermediate_values=trial.reported,
        constraints=trial.constraints,
    )
    # Optuna's times are naive and local
    kept.datetime_start = trial.started and trial.started.astimezone().replace(tzinfo=None)
    kept.datetime_complete = trial.finished and trial.finished.astimezone().replace(tzinfo=None)
    return kept
