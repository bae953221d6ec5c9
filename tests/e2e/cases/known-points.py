"""Points that are known to be good come first; YAML 1.1 reads y and n as booleans."""

import optuna


def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    y = trial.suggest_float("y", -10, 10)
    n = trial.suggest_int("n", 1, 9)
    return (x - 5) ** 2 + (y + 2) ** 2 + n


study = optuna.create_study(study_name="known-points", sampler=optuna.samplers.TPESampler(seed=3))
study.enqueue_trial({"x": 5, "y": -2, "n": 1})
study.enqueue_trial({"x": 4.5, "y": -2.5})
study.optimize(objective, n_trials=2)
