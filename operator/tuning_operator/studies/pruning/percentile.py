"""MedianPruner and PercentilePruner by sorted values for each step (`optuna/pruners/_percentile.py`)."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import optuna
from optuna.pruners import PercentilePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.resource.text import count
from tuning_operator.studies.pruning.base import Ordered, setting


class StepValues:
    """The values that complete trials reported at one step."""

    def __init__(self) -> None:
        self.count = 0
        """How many reported, NaN included."""
        self.ordered = Ordered()
        """The values that are numbers."""

    def add(self, value: float) -> None:
        """Add a value."""
        self.count += 1
        if not math.isnan(value):
            self.ordered.add(value)


class PercentilePruning:
    """Stops a trial whose best value so far is worse than a percentile of the others' at its step."""

    def __init__(self, pruner: PercentilePruner, study: optuna.Study) -> None:
        self._maximize = study.direction == StudyDirection.MAXIMIZE
        percentile = self._percentile = setting(pruner, "percentile")
        self._quantile = (100 - percentile if self._maximize else percentile) / 100
        self._n_startup_trials = setting(pruner, "n_startup_trials")
        self._n_warmup_steps = setting(pruner, "n_warmup_steps")
        self._interval_steps = setting(pruner, "interval_steps")
        self._n_min_trials = setting(pruner, "n_min_trials")
        self._complete: set[int] = set()
        self._steps: defaultdict[int, StepValues] = defaultdict(StepValues)

    def note(self, trial: FrozenTrial) -> None:
        """Add a complete trial; others do not count."""
        if trial.state == TrialState.COMPLETE and trial.number not in self._complete:
            self._complete.add(trial.number)
            for step, value in trial.intermediate_values.items():
                self._steps[step].add(value)

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether the trial is worse than the percentile."""
        step = trial.last_step
        if step is None or not self._is_due(step, trial.intermediate_values):
            return False
        best = self._best(trial.intermediate_values.values())
        if math.isnan(best):
            return True
        limit = self._limit(step)
        return best < limit if self._maximize else best > limit  # nothing is worse than NaN

    def reason(self, trial: FrozenTrial) -> str:
        """Return the trial's best value, and what it should not have been worse than."""
        step, best = trial.last_step or 0, self._best(trial.intermediate_values.values())
        if math.isnan(best):
            return f"At step {step}, all its values are NaN."
        name = "median" if self._percentile == 50 else f"percentile {self._percentile:g}"
        others = count(len(self._steps[step].ordered.numbers()), "completed trial")
        limit = f"{self._limit(step):.6g}, the {name} of {others} at this step"
        return f"At step {step}, its best value so far ({best:.6g}) is worse than {limit}."

    def _is_due(self, step: int, steps: Iterable[int]) -> bool:
        if not self._complete or len(self._complete) < self._n_startup_trials:
            return False
        warmup, interval = self._n_warmup_steps, self._interval_steps
        if step < warmup:
            return False
        interval_begins = (step - warmup) // interval * interval + warmup
        return interval == 1 or not any(interval_begins <= earlier < step for earlier in steps)

    def _best(self, values: Iterable[float]) -> float:
        numbers = (value for value in values if not math.isnan(value))
        return (max if self._maximize else min)(numbers, default=math.nan)

    def _limit(self, step: int) -> float:
        if (values := self._steps.get(step)) is None or values.count < self._n_min_trials:
            return math.nan
        return quantile(values.ordered.numbers(), self._quantile)


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Return what `numpy.nanpercentile(ordered, 100 * fraction)` returns, to the last bit; NaN of nothing.

    Args:
        ordered: the values in ascending order, without NaN.
        fraction: from 0 to 1.
    """
    if not ordered:
        return math.nan
    last = len(ordered) - 1
    place = last * fraction
    index = (
        math.floor(place) if place < last else -1
    )  # as numpy has it: the last value, and after it the last
    below, above = ordered[index], ordered[index + 1 if place < last else -1]
    weight, gap = place - index, above - below
    return above - gap * (1 - weight) if weight >= 0.5 else below + gap * weight
