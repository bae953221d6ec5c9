"""Which TrialPruned ends a trial here."""

from __future__ import annotations

import sys

import tuning_trainer


def trial_pruned(message: str) -> Exception:
    """Return Optuna's TrialPruned where Optuna is loaded, so that plain Optuna knows it too; else ours."""
    optuna = sys.modules.get("optuna.exceptions")
    kind: type[Exception] = getattr(optuna, "TrialPruned", tuning_trainer.TrialPruned)
    return kind(message)
