"""Optuna's TPESampler, with the same proposals at a fraction of the cost when a study has many trials.

For each proposal, Optuna converts and sorts all finished trials. Finished trials don't change, unless the
record is corrected, so this class keeps what it needs of them in arrays. Several objectives and constraints
are left to Optuna.
"""

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import _get_pruned_trial_score, default_gamma
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.studies.definition.tpe_density import log_pdf

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TPESampler(optuna.samplers.TPESampler):
    """Proposes what Optuna's class of this name proposes."""

    @functools.cached_property
    def _history(self) -> "History":
        return History()

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if len(study.directions) > 1:
            return self._as_optuna_does(study, trial, search_space)
        self._take_in(study)
        history = self._history
        if history.has_constraints:
            return self._as_optuna_does(study, trial, search_space)
        below = history.best((self._gamma or default_gamma)(len(history.numbers)))
        known, columns = history.columns(search_space)
        good = {name: column[known & below] for name, column in columns.items()}
        others = {name: column[known & ~below] for name, column in columns.items()}
        if running := list(self._running(study, trial, search_space)):
            order = np.argsort([*history.numbers[known & ~below], *(number for number, _ in running)])
            for name, distribution in search_space.items():
                added = [distribution.to_internal_repr(params[name]) for _, params in running]
                others[name] = np.append(others[name], added)[order]
        estimators = [
            self._parzen_estimator_cls(observed, search_space, self._parzen_estimator_parameters)
            for observed in (good, others)
        ]
        samples = estimators[0].sample(self._rng.rng, self._n_ei_candidates)
        proposed = self._compare(samples, self._compute_acquisition_func(samples, *estimators))
        return {name: search_space[name].to_external_repr(value) for name, value in proposed.items()}

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Optuna reads all trials to see whether enough have finished.
        if search_space and len(self._history.numbers) >= self._n_startup_trials:
            return self._sample(study, trial, search_space)
        proposed: dict[str, Any] = super()._sample_relative(study, trial, search_space)
        return proposed

    def _take_in(self, study: Study) -> None:
        """Add the trials that have finished since the last proposal."""
        count = study._storage.get_n_trials(study._study_id, FINISHED)  # noqa: SLF001
        if count == len(self._history.numbers):
            return
        trials = study._get_trials(deepcopy=False, states=FINISHED, use_cache=not self._constant_liar)  # noqa: SLF001
        self._history.extend(trials, study)

    def _running(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the numbers and parameters of the other running trials that count as if they had finished.

        They have all the parameters. Those that are only proposed, and not yet suggested, are in JSON, which
        takes long to read.
        """
        if not self._constant_liar:
            return
        for other in study._get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # noqa: SLF001
            params = other.params
            if not search_space.keys() <= params.keys():
                params = self._get_params(other, study)
            if search_space.keys() <= params.keys() and other.number != trial.number:
                yield other.number, params

    def _compute_acquisition_func(
        self, samples: dict[str, Floats], mpe_below: _ParzenEstimator, mpe_above: _ParzenEstimator
    ) -> Floats:
        return log_pdf(mpe_below, samples) - log_pdf(mpe_above, samples)

    def _as_optuna_does(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        proposed: dict[str, Any] = super()._sample(study, trial, search_space)
        return proposed


@dataclass
class Column:
    """The values of a parameter, in Optuna's internal representation."""

    distribution: BaseDistribution
    known: Mask = field(default_factory=lambda: np.zeros(0, bool))
    """Which trials have the parameter."""
    values: Floats = field(default_factory=lambda: np.zeros(0))

    def cut(self, length: int) -> None:
        """Forget all but the first trials."""
        self.known, self.values = self.known[:length], self.values[:length]

    def extend(self, name: str, trials: Sequence[FrozenTrial]) -> None:
        """Add the trials after those that are known."""
        new = trials[len(self.known) :]
        known = [name in trial.params for trial in new]
        values = [
            self.distribution.to_internal_repr(trial.params[name]) if has else 0.0
            for trial, has in zip(new, known, strict=True)
        ]
        self.known = np.concatenate([self.known, np.array(known, bool)])
        self.values = np.concatenate([self.values, np.array(values, float)])


class History:
    """The finished trials of a study with one objective, by their numbers."""

    def __init__(self) -> None:
        self.has_constraints = False
        self.numbers: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._ranks: npt.NDArray[np.float64] = np.zeros((3, 0))
        """For each trial, what Optuna sorts by: 0 if it is complete, then two scores."""
        self._columns: dict[str, Column] = {}
        self._trials: Sequence[FrozenTrial] = ()
        self._best: tuple[int, Mask] | None = None

    def extend(self, trials: Sequence[FrozenTrial], study: Study) -> None:
        """Add the trials that have finished since: `trials` are all of them, by their numbers.

        A trial that takes longer than later ones is inserted before them, and one that was corrected is
        another object.
        """
        differ = [*map(operator.is_not, self._trials, trials), True]
        same = differ.index(True)
        new = trials[same:]
        self._trials, self._best = trials, None
        self.has_constraints |= any(trial.constraints for trial in new)
        self.numbers = np.append(self.numbers[:same], [trial.number for trial in new])
        ranks = np.array([_rank(trial, study) for trial in new], float).reshape(-1, 3)
        self._ranks = np.concatenate([self._ranks[:, :same], ranks.T], axis=1)
        for column in self._columns.values():
            column.cut(same)

    def best(self, count: int) -> Mask:
        """Return which trials are the best: complete ones first, then those that were pruned last."""
        if self._best is None or self._best[0] != count:
            state, first, second = self._ranks
            chosen = np.zeros(len(self.numbers), bool)
            chosen[np.lexsort((second, first, state))[:count]] = True
            self._best = count, chosen
        return self._best[1]

    def columns(self, search_space: dict[str, BaseDistribution]) -> tuple[Mask, dict[str, Floats]]:
        """Return which trials have all the parameters, and the values of each."""
        known = np.ones(len(self._trials), bool)
        columns = {}
        for name, distribution in search_space.items():
            column = self._columns.get(name)
            if column is None or column.distribution != distribution:
                column = self._columns[name] = Column(distribution)
            column.extend(name, self._trials)
            known &= column.known
            columns[name] = column.values
        return known, columns


def forget_finished(sampler: BaseSampler) -> None:
    """Have a sampler, and those in it, take in all finished trials again, since the record was corrected."""
    if isinstance(sampler, TPESampler):
        sampler._history = History()  # noqa: SLF001
    for part in vars(sampler).values():
        if isinstance(part, BaseSampler):
            forget_finished(part)


def _rank(trial: FrozenTrial, study: Study) -> tuple[float, float, float]:
    if trial.state == TrialState.COMPLETE:
        value = trial.values[0]
        return 0, value if study.direction == StudyDirection.MINIMIZE else -value, 0
    return 1, *_get_pruned_trial_score(trial, study)
