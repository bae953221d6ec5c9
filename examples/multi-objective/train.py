"""A random forest for digits, optimized for accuracy and latency.

`python train.py` runs the search on your machine with Optuna and prints the Pareto front.
"""

import os
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import joblib
import numpy as np
import optuna
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

WARM_UP, MEASURED = 10, 100  # predictions


class Split(NamedTuple):
    """Images as rows of pixels, and their digits."""

    pictures: NDArray[np.float64]
    digits: NDArray[np.int64]


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Return the accuracy on the validation data and the latency in milliseconds."""
    train, valid, _ = data()
    return judged(forest(trial).fit(*train), valid)


def final(trial: optuna.Trial) -> tuple[float, float]:
    """Train the chosen forest on all data, save it, and evaluate it on the test data."""
    train, valid, test = data()
    everything = Split(*map(np.concatenate, zip(train, valid, strict=True)))
    model = forest(trial).fit(*everything)
    path = Path(os.environ.get("MODEL_DIR", ".")) / "forest.joblib"
    joblib.dump(model, path)
    trial.set_user_attr("model", str(path))
    return judged(model, test)


def forest(trial: optuna.Trial) -> RandomForestClassifier:
    return RandomForestClassifier(
        n_estimators=trial.suggest_int("n_estimators", 5, 200, log=True),
        max_depth=trial.suggest_int("max_depth", 2, 16),
        max_features=trial.suggest_float("max_features", 0.05, 1.0),
        random_state=0,
    )


def judged(model: RandomForestClassifier, unseen: Split) -> tuple[float, float]:
    accuracy, latency = float(model.score(*unseen)), latency_ms(model, unseen.pictures)
    print(f"accuracy {accuracy:.4f}, latency {latency:.3f} ms", flush=True)
    return accuracy, latency


def latency_ms(model: RandomForestClassifier, pictures: NDArray[np.float64]) -> float:
    """Return the median time of one prediction in milliseconds, after a warm-up."""
    times = []
    for number in range(WARM_UP + MEASURED):
        picture = pictures[number : number + 1]
        start = time.perf_counter()
        model.predict(picture)
        times.append(time.perf_counter() - start)
    return 1000 * median(times[WARM_UP:])


@cache
def data() -> tuple[Split, Split, Split]:
    """Return training, validation and test data. Only the final model uses the test data."""
    known, test = divided(Split(*load_digits(return_X_y=True)))
    train, valid = divided(known)
    return train, valid, test


def divided(split: Split) -> tuple[Split, Split]:
    """Split in two, stratified by digit; the second part gets a quarter."""
    parts = train_test_split(*split, test_size=0.25, stratify=split.digits, random_state=0)
    return Split(parts[0], parts[2]), Split(parts[1], parts[3])


if __name__ == "__main__":
    sampler = optuna.samplers.TPESampler(seed=42)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=40)
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        print(f"{trial.values[0]:.4f} in {trial.values[1]:.2f} ms: {trial.params}")
    final(max(study.best_trials, key=lambda trial: trial.values[0]))
