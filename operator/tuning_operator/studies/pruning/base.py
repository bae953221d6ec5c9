"""What all pruning has in common."""

import bisect
import copy
from collections.abc import Sequence
from typing import Any, Protocol

import optuna
from optuna.pruners import BasePruner, PatientPruner, ThresholdPruner, WilcoxonPruner
from optuna.trial import FrozenTrial

from tuning_operator.resource.text import count


class Pruning(Protocol):
    """Decides for one study. Not for several threads at once."""

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial of the record: one that has ended, or that others wrote. It may be there already."""

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether a running trial should stop, as it is after its last report.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: it has ended, and something was to be written.
        """

    def reason(self, trial: FrozenTrial) -> str:
        """Return why `should_prune` was just true for the trial, which has been read again since."""


class OptunaPruning:
    """Optuna's own pruner, for pruners that need nothing kept."""

    def __init__(self, pruner: BasePruner, study: optuna.Study) -> None:
        self._pruner = pruner
        self._study = study

    def note(self, trial: FrozenTrial) -> None:
        """Nothing is kept."""

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return the decision of Optuna's pruner."""
        return bool(self._pruner.prune(self._study, trial))

    def reason(self, trial: FrozenTrial) -> str:
        """Return which pruner decided, on what report, and by which threshold."""
        return f"{type(self._pruner).__name__} pruned it at {last_report(trial)}{self._threshold(trial)}."

    def _threshold(self, trial: FrozenTrial) -> str:
        if isinstance(self._pruner, ThresholdPruner):
            lower, upper = setting(self._pruner, "lower"), setting(self._pruner, "upper")
            value = trial.intermediate_values[trial.last_step or 0]
            if value < lower:
                return f", which is below lower, {lower:.6g}"
            return f", which is above upper, {upper:.6g}" if value > upper else ", which is not a number"
        if isinstance(self._pruner, WilcoxonPruner):
            p = setting(self._pruner, "p_threshold")
            worse = "the trial's values are worse than those of the best trial"
            return f": {worse}, with p below {p:.6g} (p_threshold)"
        return ""


class PatientPruning:
    """Optuna's PatientPruner, which looks at the trial alone, around another pruning."""

    def __init__(self, patient: PatientPruner, wrapped: Pruning, study: optuna.Study) -> None:
        self._wrapped = wrapped
        self._patient = copy.copy(patient)
        self._patient._wrapped_pruner = _AsPruner(wrapped)  # noqa: SLF001
        self._study = study

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial of the record."""
        self._wrapped.note(trial)

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether there is no improvement, and the wrapped pruning decides to stop."""
        return bool(self._patient.prune(self._study, trial))

    def reason(self, trial: FrozenTrial) -> str:
        """Return why the wrapped pruning decided to stop, and after how many steps."""
        patience = setting(self._patient, "patience")
        return f"Its value has not improved for {count(patience, 'step')}. {self._wrapped.reason(trial)}"


class _AsPruner(BasePruner):
    """A pruning as Optuna calls it."""

    def __init__(self, pruning: Pruning) -> None:
        self._pruning = pruning

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        return self._pruning.should_prune(trial)


def last_report(trial: FrozenTrial) -> str:
    """Return a trial's last report in words."""
    step = trial.last_step
    return (
        "its start" if step is None else f"step {step} with the value {trial.intermediate_values[step]:.6g}"
    )


def setting(pruner: BasePruner, argument: str) -> Any:
    """Return an argument that a pruner was made with; Optuna's pruners have no public way to it."""
    return getattr(pruner, f"_{argument}")


class Ordered:
    """Numbers that are kept in order from the first read on; a study is loaded before, without sorting."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._in_order = False

    def add(self, number: float) -> None:
        """Add a number, which must not be NaN."""
        if self._in_order:
            bisect.insort(self._numbers, number)
        else:
            self._numbers.append(number)

    def numbers(self) -> Sequence[float]:
        """Return all, the smallest first."""
        if not self._in_order:
            self._numbers.sort()
            self._in_order = True
        return self._numbers
