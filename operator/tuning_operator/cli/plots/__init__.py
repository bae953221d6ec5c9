"""A study as an Optuna study, and Optuna's plots of it as files."""
