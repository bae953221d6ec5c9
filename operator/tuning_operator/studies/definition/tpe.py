"""Optuna's TPESampler, with the same proposals at a fraction of the cost when a study has many trials.

For each proposal, Optuna converts and sorts all finished trials. Finished trials don't change, so this class
keeps what it needs of them in arrays. Several objectives and constraints are left to Optuna.
"""

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.sampler import _get_pruned_trial_score, default_gamma
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

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
        finished, running = self._trials(study, trial)
        self._history.extend(finished, study)
        if self._history.has_constraints:
            return self._as_optuna_does(study, trial, search_space)
        below = self._history.best((self._gamma or default_gamma)(len(finished)))
        known, columns = self._history.columns(finished, search_space)
        good = {name: column[known & below] for name, column in columns.items()}
        others = {name: column[known & ~below] for name, column in columns.items()}
        if running := [t for t in running if search_space.keys() <= self._get_params(t, study).keys()]:
            order = np.argsort([*self._history.numbers[known & ~below], *(t.number for t in running)])
            added = self._get_internal_repr(running, search_space, study)
            others = {name: np.append(column, added[name])[order] for name, column in others.items()}
        estimators = [
            self._parzen_estimator_cls(observed, search_space, self._parzen_estimator_parameters)
            for observed in (good, others)
        ]
        samples = estimators[0].sample(self._rng.rng, self._n_ei_candidates)
        proposed = self._compare(samples, self._compute_acquisition_func(samples, *estimators))
        return {name: search_space[name].to_external_repr(value) for name, value in proposed.items()}

    def _trials(self, study: Study, trial: FrozenTrial) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return the trials that have finished, and the other running ones that count as if they had."""
        liar = self._constant_liar
        states = (*FINISHED, TrialState.RUNNING) if liar else FINISHED
        trials = study._get_trials(deepcopy=False, states=states, use_cache=not liar)  # noqa: SLF001
        if not liar:
            return trials, []
        finished = [t for t in trials if t.state != TrialState.RUNNING]
        running = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
        return finished, running

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
        """Take in the trials after those that are known."""
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

    def extend(self, trials: Sequence[FrozenTrial], study: Study) -> None:
        """Take in the trials that have finished since: `trials` are all of them, by their numbers.

        A trial that takes longer than later ones is inserted before them.
        """
        if len(trials) == len(self.numbers):
            return
        same = bisect.bisect_left(
            range(len(self.numbers)), x=True, key=lambda i: trials[i].number != self.numbers[i]
        )
        new = trials[same:]
        self.has_constraints |= any(trial.constraints for trial in new)
        self.numbers = np.append(self.numbers[:same], [trial.number for trial in new])
        ranks = np.array([_rank(trial, study) for trial in new], float).reshape(-1, 3)
        self._ranks = np.concatenate([self._ranks[:, :same], ranks.T], axis=1)
        for column in self._columns.values():
            column.cut(same)

    def best(self, count: int) -> Mask:
        """Return which trials are the best: complete ones first, then those that were pruned last."""
        state, first, second = self._ranks
        chosen = np.zeros(len(self.numbers), bool)
        chosen[np.lexsort((second, first, state))[:count]] = True
        return chosen

    def columns(
        self, trials: Sequence[FrozenTrial], search_space: dict[str, BaseDistribution]
    ) -> tuple[Mask, dict[str, Floats]]:
        """Return which trials have all the parameters, and the values of each."""
        known = np.ones(len(trials), bool)
        columns = {}
        for name, distribution in search_space.items():
            column = self._columns.get(name)
            if column is None or column.distribution != distribution:
                column = self._columns[name] = Column(distribution)
            column.extend(name, trials)
            known &= column.known
            columns[name] = column.values
        return known, columns


def _rank(trial: FrozenTrial, study: Study) -> tuple[float, float, float]:
    if trial.state == TrialState.COMPLETE:
        value = trial.values[0]
        return 0, value if study.direction == StudyDirection.MINIMIZE else -value, 0
    return 1, *_get_pruned_trial_score(trial, study)
