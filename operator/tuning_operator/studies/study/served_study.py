"""Optuna's Study as the server uses it; all that relies on Optuna's insides is here."""

import logging
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import GridSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

EXHAUSTED = "tuning:exhausted"
"""A study's system attribute: the name of the sampler that has tried all there is."""
METRIC_NAMES = "study:metric_names"
"""The system attribute in which `study.set_metric_names` keeps them; the dashboard shows them."""
CONSTRAINT = "constraints:"
"""The system attributes in which Optuna 5.0's `trial.set_constraint` keeps its values."""


class ServedStudy(optuna.Study):
    """A study outside of `optimize`: asked and told from several threads, one at a time."""

    @property
    def storage(self) -> BaseStorage:
        """Where the study is kept."""
        return self._storage

    @property
    def study_id(self) -> int:
        """The study's number in its storage."""
        return self._study_id

    @property
    def exhausted(self) -> bool:
        """Whether the sampler said that there is nothing left to try."""
        return self._storage.get_study_system_attrs(self._study_id).get(EXHAUSTED) == self._sampler_name

    @property
    def all_begun(self) -> bool:
        """Whether each point of a grid runs or has ended.

        Optuna would run one again beside the trial that runs it, lest that one never ends; here, all do.
        """
        if not isinstance(self.sampler, GridSampler):
            return False
        begun = {trial.system_attrs.get("grid_id") for trial in self.get_trials(deepcopy=False)} - {None}
        return len(begun) >= self.sampler._n_min_trials  # noqa: SLF001

    def stop(self) -> None:
        """Note that the sampler has tried everything: called by it in place of `optimize`'s loop ending."""
        self._storage.set_study_system_attr(self._study_id, EXHAUSTED, self._sampler_name)

    def enter(self) -> None:
        """Begin a piece of work in this thread: what it cached of the trials may be from long ago."""
        self._thread_local.cached_all_trials = None

    def system_attr(self, key: str) -> Any:
        """Return a system attribute of the study; None if it has none of this name."""
        return self._storage.get_study_system_attrs(self._study_id).get(key)

    def set_system_attr(self, key: str, value: Any) -> None:
        """Set a system attribute of the study."""
        self._storage.set_study_system_attr(self._study_id, key, value)

    def trial_id(self, number: int) -> int:
        """Return the storage's id of a trial. Raises KeyError."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def frozen(self, number: int) -> FrozenTrial:
        """Return a trial as it is now. Raises KeyError."""
        return self._storage.get_trial(self.trial_id(number))

    @property
    def _sampler_name(self) -> str:
        return type(self.sampler).__name__


def id_of(trial: FrozenTrial) -> int:
    """Return the storage's id of a trial."""
    return trial._trial_id  # noqa: SLF001


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Return the trial's value of a parameter. Raises ValueError for what does not go with the name."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log_scale, step=step):
            return trial.suggest_float(name, low, high, log=log_scale, step=step)
        case IntDistribution(low=low, high=high, log=log_scale, step=step):
            return trial.suggest_int(name, low, high, log=log_scale, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise ValueError(f"{type(distribution).__name__} is not a distribution that a trial can suggest from")
