"""A support vector machine for digits, evaluated by cross-validation; unpromising parameters are pruned.

`python train.py` runs the search on your machine with Optuna, starting with the known points.
"""

import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

KNOWN = [{"C": 1.0, "gamma": 0.001}, {"C": 10.0}]  # scikit-learn's example; an educated guess


def objective(trial: optuna.Trial) -> float:
    """Return the mean accuracy of five folds; report the mean so far after each fold."""
    model = SVC(
        C=trial.suggest_float("C", 1e-2, 1e3, log=True),
        gamma=trial.suggest_float("gamma", 1e-6, 1e-1, log=True),
    )
    pictures, digits = load_digits(return_X_y=True)
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=0).split(pictures, digits)
    total = mean = 0.0
    for fold, (train, valid) in enumerate(folds):
        total += model.fit(pictures[train], digits[train]).score(pictures[valid], digits[valid])
        mean = total / (fold + 1)
        print(f"fold {fold}: mean accuracy so far {mean:.4f}", flush=True)
        trial.report(mean, fold)
        if trial.should_prune():
            raise optuna.TrialPruned
    return mean


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
    for point in KNOWN:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=30)
    print(f"best accuracy {study.best_value:.4f} with {study.best_params}, trial {study.best_trial.number}")
