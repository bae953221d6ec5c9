"""A study's definition as Optuna's objects."""
