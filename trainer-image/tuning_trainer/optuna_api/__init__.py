"""Optuna's API as user code meets it in a trial."""
