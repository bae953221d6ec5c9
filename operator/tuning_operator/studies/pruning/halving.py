"""SuccessiveHalvingPruner and HyperbandPruner by sorted values for each rung.

A rung is a step at which trials compete; the value with which a trial reached rung i is its system attribute
`completed_rung_i` (`optuna/pruners/_successive_halving.py`, `_hyperband.py`).
"""

import copy
import math
from collections import defaultdict

import optuna
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.resource.text import count
from tuning_operator.studies.pruning.base import Ordered, last_report, setting

_RUNG = "completed_rung_"


class Rungs:
    """The values with which trials reached each rung."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._maximize = study.direction == StudyDirection.MAXIMIZE
        self._seen: set[tuple[int, int]] = set()
        self._values: defaultdict[int, Ordered] = defaultdict(Ordered)

    def note(self, number: int, rung: int, value: float) -> None:
        """Add the value of a trial at a rung, once."""
        if (number, rung) not in self._seen:
            self._seen.add((number, rung))
            self._values[rung].add(value)

    def enter(self, trial: FrozenTrial, rung: int, value: float) -> None:
        """Write to the record that a trial reached a rung, and take it in."""
        storage, trial_id = self._study._storage, trial._trial_id  # noqa: SLF001
        storage.set_trial_system_attr(trial_id, f"{_RUNG}{rung}", value)
        self.note(trial.number, rung, value)

    def competing(self, rung: int) -> int:
        """Return how many trials reached a rung."""
        return len(self._values[rung].numbers())

    def among_best(self, rung: int, value: float, reduction_factor: int) -> bool:
        """Return whether the value is among the best 1/reduction_factor of a rung; of fewer: the best."""
        threshold = self._threshold(rung, reduction_factor)
        return value >= threshold if self._maximize else value <= threshold

    def best(self, rung: int, reduction_factor: int) -> str:
        """Return in words which values are among the best 1/reduction_factor of a rung."""
        return f"{self._threshold(rung, reduction_factor):.6g} or {'more' if self._maximize else 'less'}"

    def _threshold(self, rung: int, reduction_factor: int) -> float:
        values = self._values[rung].numbers()
        index = max(len(values) // reduction_factor - 1, 0)
        return values[-(index + 1)] if self._maximize else values[index]


class Halving:
    """The decision of one SuccessiveHalvingPruner; Hyperband has one for each bracket."""

    def __init__(self, pruner: SuccessiveHalvingPruner, study: optuna.Study) -> None:
        self.rungs = Rungs(study)
        self.min_resource: int | None = setting(pruner, "min_resource")
        """The step of the first rung; None: to be estimated."""
        self._reduction_factor = setting(pruner, "reduction_factor")
        self._min_early_stopping_rate = setting(pruner, "min_early_stopping_rate")
        self._bootstrap_count = setting(pruner, "bootstrap_count")

    def note(self, trial: FrozenTrial) -> None:
        """Add the rungs that a trial of the record has reached."""
        for key, value in trial.system_attrs.items():
            rung = key.removeprefix(_RUNG)
            if rung != key and rung.isdecimal():
                self.rungs.note(trial.number, int(rung), value)

    def should_prune(self, trial: FrozenTrial, step: int) -> bool:
        """Let the trial climb the rungs up to its step; return whether it lost at one."""
        rung, value = _next_rung(trial), trial.intermediate_values[step]
        while self._is_reached(rung, step):
            if math.isnan(value):
                return True
            self.rungs.enter(trial, rung, value)
            if self.rungs.competing(rung) <= self._bootstrap_count:
                return True
            if not self.rungs.among_best(rung, value, self._reduction_factor):
                return True
            rung += 1
        return False

    def reason(self, trial: FrozenTrial) -> str:
        """Return the rung at which the trial lost, against how many and which value."""
        rung = _next_rung(trial) - 1
        if math.isnan(trial.intermediate_values[trial.last_step or 0]):
            return f"At {last_report(trial)}, it has no number to compare."
        competing, factor = self.rungs.competing(rung), self._reduction_factor
        if competing <= self._bootstrap_count:
            few = f"the first {count(self._bootstrap_count, 'trial')} that reach rung {rung}"
            return f"At {last_report(trial)}, it is one of {few}, which are pruned (bootstrap_count)."
        best = f"among the best 1/{factor} of the {count(competing, 'trial')} that reached rung {rung}"
        return f"At {last_report(trial)}, it is not {best} ({self.rungs.best(rung, factor)})."

    def _is_reached(self, rung: int, step: int) -> bool:
        if self.min_resource is None:
            return False
        climbed = self._reduction_factor ** (self._min_early_stopping_rate + rung)
        return bool(step >= self.min_resource * climbed)


class SuccessiveHalvingPruning:
    """SuccessiveHalvingPruner; `min_resource: auto` is a hundredth of the longest complete trial's steps."""

    def __init__(self, pruner: SuccessiveHalvingPruner, study: optuna.Study) -> None:
        self._pruner = pruner
        self._halving = Halving(pruner, study)
        self._longest: int | None = None

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial of the record."""
        self._longest = _longer(self._longest, trial)
        self._halving.note(trial)

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether the trial lost at a rung."""
        step = trial.last_step
        if step is None:
            return False
        if self._halving.min_resource is None and self._longest is not None:
            # Estimated once for a pruner, as in Optuna: other prunings of the same pruner use the estimate.
            self._halving.min_resource = max(self._longest // 100, 1)
            self._pruner._min_resource = self._halving.min_resource  # noqa: SLF001
        return self._halving.should_prune(trial, step)

    def reason(self, trial: FrozenTrial) -> str:
        """Return the rung at which the trial lost, and against how many."""
        return self._halving.reason(trial)


class HyperbandPruning:
    """HyperbandPruner: several SuccessiveHalvingPruners, each for its share of the trials.

    The pruner itself stays in use: the sampler needs its brackets too, since Optuna shows a sampler only the
    trials of one bracket.
    """

    def __init__(self, pruner: HyperbandPruner, study: optuna.Study) -> None:
        self._pruner = pruner
        self._study = study
        self._longest: int | None = None
        self._halvings: list[Halving] = []
        self._early: list[FrozenTrial] = []
        """Trials from before the brackets were known."""

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial of the record."""
        self._longest = _longer(self._longest, trial)
        if self._halvings:
            self._halving_of(trial).note(trial)
        else:
            self._early.append(trial)

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether the trial lost at a rung of its bracket."""
        if not self._halvings and not self._begin():
            return False
        step = trial.last_step
        return step is not None and self._halving_of(trial).should_prune(trial, step)

    def reason(self, trial: FrozenTrial) -> str:
        """Return the rung of its bracket at which the trial lost, and against how many."""
        return self._halving_of(trial).reason(trial)

    def _begin(self) -> bool:
        if setting(self._pruner, "n_brackets") is None:
            if setting(self._pruner, "max_resource") == "auto" and self._longest is None:
                return False
            _initialize(self._pruner, self._study)
        self._halvings = [Halving(pruner, self._study) for pruner in setting(self._pruner, "pruners")]
        if not self._halvings:  # max_resource turned out to be below min_resource
            return False
        for trial in self._early:
            self._halving_of(trial).note(trial)
        self._early.clear()
        return True

    def _halving_of(self, trial: FrozenTrial) -> Halving:
        return self._halvings[self._pruner._get_bracket_id(self._study, trial)]  # noqa: SLF001


def _initialize(pruner: HyperbandPruner, study: optuna.Study) -> None:
    """Let the pruner make its brackets, on a copy: a thread that samples must not see half of them."""
    made = copy.deepcopy(pruner)
    made._try_initialization(study)  # noqa: SLF001
    brackets = made.__dict__.pop("_pruners")
    pruner.__dict__.update(made.__dict__)
    pruner._pruners = brackets  # noqa: SLF001  last: these mark it as initialized


def _next_rung(trial: FrozenTrial) -> int:
    rung = 0
    while f"{_RUNG}{rung}" in trial.system_attrs:
        rung += 1
    return rung


def _longer(longest: int | None, trial: FrozenTrial) -> int | None:
    """Return the last step of the longest complete trial, this one included; None: none reported."""
    if trial.state != TrialState.COMPLETE or (step := trial.last_step) is None:
        return longest
    return step if longest is None else max(longest, step)
