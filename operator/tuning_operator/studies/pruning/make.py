"""The pruning for each of Optuna's pruners."""

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from tuning_operator.studies.pruning.base import OptunaPruning, PatientPruning, Pruning, setting
from tuning_operator.studies.pruning.halving import HyperbandPruning, SuccessiveHalvingPruning
from tuning_operator.studies.pruning.percentile import PercentilePruning


def make_pruning(pruner: BasePruner, study: optuna.Study) -> Pruning:
    """Return the pruning that decides as the pruner does, with all trials of the study taken in.

    Of the pruners for which nothing is kept, NopPruner and ThresholdPruner look at the trial alone, and
    WilcoxonPruner at the best trial: they cost the same at any size where the storage knows its best trial.

    Args:
        pruner: the study's own; Hyperband's is completed as trials are reported.
        study: of one objective, unless the pruner is a NopPruner.
    """
    pruning = _pruning(pruner, study)
    for trial in study.get_trials(deepcopy=False):
        pruning.note(trial)
    return pruning


def _pruning(pruner: BasePruner, study: optuna.Study) -> Pruning:
    match pruner:
        case PercentilePruner():  # MedianPruner is one
            return PercentilePruning(pruner, study)
        case SuccessiveHalvingPruner():
            return SuccessiveHalvingPruning(pruner, study)
        case HyperbandPruner():
            return HyperbandPruning(pruner, study)
        case PatientPruner() if (wrapped := setting(pruner, "wrapped_pruner")) is not None:
            return PatientPruning(pruner, _pruning(wrapped, study), study)
    return OptunaPruning(pruner, study)
