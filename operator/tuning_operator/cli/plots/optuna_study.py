"""A study's record as an in-memory Optuna study, for Optuna's own plots and functions."""

import json
import math
import warnings
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial
from tuning_trainer.wire.codec import from_wire, parameters_from_wire

from tuning_operator.protocol import FinishedStudy, FinishedTrial


def study_of(
    record: FinishedStudy,
    metrics: Sequence[str],
    objective: int | None = None,
    only: Collection[int] | None = None,
) -> optuna.Study:
    """Return the record as an Optuna study.

    Args:
        record: the record; its trials are numbered from 0.
        metrics: the names of the objectives.
        objective: if given, return a study of this objective only, which has a best value and a direction.
        only: if given, the numbers of the trials to include. The others are replaced by empty trials, so that
            trial numbers do not change.
    """
    chosen = range(len(metrics)) if objective is None else [objective]
    study = optuna.create_study(directions=[record.directions[i] for i in chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([metrics[i] for i in chosen])
    for name, value in from_wire(record.user_attrs).items():
        study.set_user_attr(name, value)
    study.add_trials(
        [
            _trial(trial, chosen)
            if only is None or trial.number in only
            else create_trial(state=TrialState.WAITING)
            for trial in sorted(record.trials, key=lambda trial: trial.number)
        ]
    )
    return study


def with_pruned(study: optuna.Study) -> optuna.Study:
    """Return a study with one objective whose pruned trials are complete, with the last values they reported.

    Another parameter, `state`, distinguishes them. It exists only if there are such trials. A report of NaN
    is no value.
    """
    last = {
        trial.number: value
        for trial in study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
        if (value := _last_value(trial)) is not None
    }
    if not last or len(study.directions) > 1:
        return study
    changed = optuna.create_study(direction=study.direction)
    for trial in study.get_trials(deepcopy=False):
        if trial.number in last or trial.state == TrialState.COMPLETE:
            state = "pruned" if trial.number in last else "complete"
            changed.add_trial(
                create_trial(
                    value=last.get(trial.number, trial.value),
                    params={**trial.params, "state": state},
                    distributions={**trial.distributions, "state": _STATE},
                    constraints=trial.constraints,
                )
            )
        else:
            changed.add_trial(create_trial(state=TrialState.WAITING))
    return changed


def _last_value(trial: FrozenTrial) -> float | None:
    reported = {step: value for step, value in trial.intermediate_values.items() if not math.isnan(value)}
    return reported[max(reported)] if reported else None


_STATE = CategoricalDistribution(["complete", "pruned"])


def _trial(trial: FinishedTrial, objectives: Collection[int]) -> FrozenTrial:
    distributions = {name: _distribution(json.dumps(form)) for name, form in trial.distributions.items()}
    params = {
        name: _comparable(value) if isinstance(distributions[name], CategoricalDistribution) else value
        for name, value in parameters_from_wire(trial.parameters, trial.distributions).items()
    }
    found = create_trial(
        state=TrialState[trial.state],
        values=None if trial.values is None else [trial.values[i] for i in objectives],
        params=params,
        distributions=distributions,
        user_attrs=from_wire(trial.user_attrs),
        intermediate_values=trial.reported,
        constraints=trial.constraints,
    )
    if trial.started:
        found.datetime_start = _local(trial.started)
    if trial.finished:
        found.datetime_complete = _local(trial.finished)
    return found


def _local(time: datetime) -> datetime:
    """Return a time as Optuna keeps it: local, without a zone."""
    return time.astimezone().replace(tzinfo=None)


@lru_cache(maxsize=1000)
def _distribution(form: str) -> BaseDistribution:
    """Return a distribution from Optuna's JSON form. Cached, since the trials of a study share a few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a choice may be a list
        distribution = json_to_distribution(form)
        if isinstance(distribution, CategoricalDistribution):
            return CategoricalDistribution([_comparable(choice) for choice in distribution.choices])
    return distribution


def _comparable(choice: Any) -> Any:
    """Return a hashable form of a choice, which Optuna's plots require."""
    if isinstance(choice, list):
        return tuple(map(_comparable, choice))
    return json.dumps(choice) if isinstance(choice, dict) else choice
