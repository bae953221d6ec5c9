"""A small network for digits, tuned on a part of the data first and then, from those trials, on all data.

`python train.py` runs both studies on your machine with Optuna. The environment variable DATA_SHARE is the
share of the training data to use, from 0 to 1.
"""

import os
from functools import cache
from typing import NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

EPOCHS = 20


class Split(NamedTuple):
    """Images as rows of pixels between 0 and 1, and their digits."""

    pictures: NDArray[np.float64]
    digits: NDArray[np.int64]


def objective(trial: optuna.Trial) -> float:
    """Return the accuracy on validation data that does not depend on the share of training data."""
    network = MLPClassifier(
        hidden_layer_sizes=trial.suggest_int("hidden_size", 16, 128, step=16),
        learning_rate_init=trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
        alpha=trial.suggest_float("l2", 1e-6, 1.0, log=True),
        batch_size=32,
        random_state=0,
    )
    train, valid = data(float(os.environ.get("DATA_SHARE", "1")))
    accuracy = 0.0
    for epoch in range(EPOCHS):
        network.partial_fit(*train, classes=range(10))
        accuracy = float(network.score(*valid))
        print(f"epoch {epoch}: accuracy {accuracy:.4f}", flush=True)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


@cache
def data(share: float) -> tuple[Split, Split]:
    """Return a share of the training data, and the validation data."""
    pictures, digits = load_digits(return_X_y=True)
    known, valid = divided(Split(pictures / 16, digits), 0.25)
    train = known if share >= 1 else divided(known, 1 - share)[0]
    print(f"data: {len(train.digits)} pictures to train on, {len(valid.digits)} to validate with", flush=True)
    return train, valid


def divided(split: Split, share: float) -> tuple[Split, Split]:
    """Split in two, stratified by digit; the second part gets the given share."""
    parts = train_test_split(*split, test_size=share, stratify=split.digits, random_state=0)
    return Split(parts[0], parts[2]), Split(parts[1], parts[3])


if __name__ == "__main__":
    os.environ["DATA_SHARE"] = "0.25"
    quarter = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
    quarter.optimize(objective, n_trials=30)
    print(f"a quarter of the data: best accuracy {quarter.best_value:.4f} with {quarter.best_params}")

    os.environ["DATA_SHARE"] = "1"
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=43))
    study.add_trials(quarter.trials)
    study.optimize(objective, n_trials=10)
    print(f"all of it: best accuracy {study.best_value:.4f} with {study.best_params}")
