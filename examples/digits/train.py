"""Classify scikit-learn's handwritten digits: a study that needs no GPU, no download and a few seconds."""

import pickle
from pathlib import Path

import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

EPOCHS = 15
CLASSES = range(10)


def network(params):
    """Return an untrained network."""
    return MLPClassifier(
        hidden_layer_sizes=(params["hidden"],),
        activation=params["activation"],
        learning_rate_init=params["lr"],
        alpha=params["alpha"],
        batch_size=64,
        random_state=0,
    )


def suggest(trial):
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "hidden": trial.suggest_int("hidden", 8, 128, step=8),
        "alpha": trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
        "activation": trial.suggest_categorical("activation", ["relu", "tanh"]),
    }


def objective(trial):
    """Train on three quarters of the images, and return the accuracy on the others."""
    images, labels = load_digits(return_X_y=True)
    data = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    images, test_images, labels, test_labels = data
    model = network(suggest(trial))
    accuracy = 0.0
    for epoch in range(EPOCHS):
        model.partial_fit(images, labels, classes=CLASSES)
        accuracy = model.score(test_images, test_labels)
        print(f"epoch {epoch}: accuracy {accuracy:.4f}")
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def final(trial):
    """Train on all images with the best parameters, and save the model."""
    images, labels = load_digits(return_X_y=True)
    model = network(suggest(trial))
    for _ in range(EPOCHS):
        model.partial_fit(images / 16, labels, classes=CLASSES)
    file = Path("model.pkl")
    file.write_bytes(pickle.dumps(model))
    trial.set_user_attr("model", str(file.resolve()))


if __name__ == "__main__":  # the same search without TuningStudy: python train.py
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
    study.optimize(objective, n_trials=20)
    print(study.best_params)
