"""Optuna's API as user code sees it in a trial."""
