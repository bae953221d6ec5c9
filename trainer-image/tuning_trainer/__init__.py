"""The trainer runtime: runs one trial inside the user's image. Standard library only, Python 3.9 or newer."""


class TrialPruned(Exception):  # noqa: N818  Optuna's name
    """Raise it in an objective to end the trial as PRUNED: optuna.TrialPruned for images without Optuna."""
