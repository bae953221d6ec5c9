"""What all pruning has in common."""

import copy
from typing import Any, Protocol

import optuna
from optuna.pruners import BasePruner, PatientPruner
from optuna.trial import FrozenTrial


class Pruning(Protocol):
    """Decides for one study. Not for several threads at once."""

    def note(self, trial: FrozenTrial) -> None:
        """Take in a trial of the record: one that has ended, or that others wrote. Twice is no error."""

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether a running trial should stop, as it is after its last report.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: it has ended, and something was to be written.
        """


class OptunaPruning:
    """Optuna's own pruner, where nothing is kept that would help it."""

    def __init__(self, pruner: BasePruner, study: optuna.Study) -> None:
        self._pruner = pruner
        self._study = study

    def note(self, trial: FrozenTrial) -> None:
        """Nothing is kept."""

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return what Optuna's pruner says."""
        return bool(self._pruner.prune(self._study, trial))


class PatientPruning:
    """Optuna's PatientPruner, which looks at the trial alone, around another pruning."""

    def __init__(self, patient: PatientPruner, wrapped: Pruning, study: optuna.Study) -> None:
        self._wrapped = wrapped
        self._patient = copy.copy(patient)
        self._patient._wrapped_pruner = _AsPruner(wrapped)  # noqa: SLF001
        self._study = study

    def note(self, trial: FrozenTrial) -> None:
        """Take in a trial of the record."""
        self._wrapped.note(trial)

    def should_prune(self, trial: FrozenTrial) -> bool:
        """Return whether there is no improvement, and the wrapped pruning says stop."""
        return bool(self._patient.prune(self._study, trial))


class _AsPruner(BasePruner):
    """A pruning as Optuna calls it."""

    def __init__(self, pruning: Pruning) -> None:
        self._pruning = pruning

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        return self._pruning.should_prune(trial)


def setting(pruner: BasePruner, argument: str) -> Any:
    """Return what a pruner was made with; Optuna's pruners have no other way to tell."""
    return getattr(pruner, f"_{argument}")
