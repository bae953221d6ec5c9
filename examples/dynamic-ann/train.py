"""A network whose architecture is part of the search: 1 to 3 hidden layers, dropout, and the optimizer.

`python train.py` runs the search on your machine with Optuna, then trains the best network on all data. If
the environment variable MNIST_DIR is set, that folder must contain MNIST in torchvision's layout
(MNIST/raw/train-images-idx3-ubyte, ...). Otherwise, scikit-learn's 1,797 digits are used.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS = 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Split(NamedTuple):
    """Images as rows of pixels between 0 and 1, and their digits."""

    pictures: Tensor
    digits: Tensor


class Data(NamedTuple):
    """Training and validation data for the trials, and test data for the final network."""

    train: Split
    valid: Split
    test: Split


def objective(trial: optuna.Trial) -> float:
    """Return the accuracy of a network whose hidden layers all have the same size."""
    return search(trial, one_size(trial))


def objective_per_layer(trial: optuna.Trial) -> float:
    """Return the accuracy of a network whose hidden layers can have different sizes."""
    return search(trial, size_per_layer(trial))


def one_size(trial: optuna.Trial) -> list[int]:
    n_layers = trial.suggest_int("n_layers", 1, 3)
    return n_layers * [trial.suggest_int("hidden_size", 64, 256, step=64)]


def size_per_layer(trial: optuna.Trial) -> list[int]:
    """Suggest one size per layer: the third layer's size exists only if there is a third layer."""
    n_layers = trial.suggest_int("n_layers", 1, 3)
    return [trial.suggest_int(f"hidden_size_{layer}", 64, 256, step=64) for layer in range(1, n_layers + 1)]


def search(trial: optuna.Trial, hidden_sizes: list[int]) -> float:
    """Train with the trial's parameters; return the accuracy on the validation data."""
    parts = data()
    training = Training(trial, hidden_sizes, pixels=parts.train.pictures.shape[1])
    accuracy = 0.0
    for epoch in range(EPOCHS):
        training.fit(parts.train)
        accuracy = training.rate(parts.valid)
        print(f"epoch {epoch}: accuracy {accuracy:.4f}", flush=True)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def final(trial: optuna.Trial) -> float:
    """Train the best trial's network on all data, save it, and return its accuracy on the test data."""
    parts = data()
    everything = Split(*map(torch.cat, zip(parts.train, parts.valid, strict=True)))
    hidden_sizes = one_size(trial) if "hidden_size" in trial.params else size_per_layer(trial)
    training = Training(trial, hidden_sizes, pixels=everything.pictures.shape[1])
    for _ in range(EPOCHS):
        training.fit(everything)
    accuracy = training.rate(parts.test)
    model = Path(os.environ.get("MODEL_DIR", ".")) / "dynamic-ann.pt"
    torch.save({"parameters": trial.params, "weights": training.network.state_dict()}, model)
    trial.set_user_attr("model", str(model))
    print(f"test accuracy {accuracy:.4f}; the network is in {model}", flush=True)
    return accuracy


class Training:
    """A network and its optimizer, configured by a trial's parameters."""

    def __init__(self, trial: optuna.Trial, hidden_sizes: list[int], pixels: int) -> None:
        dropout = trial.suggest_float("dropout", 0.1, 0.5)
        learning_rate = trial.suggest_float("lr", 1e-5, 1e-2, log=True)
        optimizer = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
        self.batch_size = trial.suggest_categorical("batch_size", [32, 64, 128])
        torch.manual_seed(trial.number)
        self.network = network(pixels, hidden_sizes, dropout).to(DEVICE)
        self.optimizer = getattr(torch.optim, optimizer)(self.network.parameters(), lr=learning_rate)

    def fit(self, split: Split) -> None:
        """Train for one epoch."""
        self.network.train()
        for batch in torch.randperm(len(split.digits), device=DEVICE).split(self.batch_size):
            self.optimizer.zero_grad()
            scores = self.network(split.pictures[batch])
            nn.functional.cross_entropy(scores, split.digits[batch]).backward()
            self.optimizer.step()

    @torch.no_grad()
    def rate(self, split: Split) -> float:
        """Return the accuracy."""
        self.network.eval()
        return (self.network(split.pictures).argmax(dim=1) == split.digits).float().mean().item()


def network(pixels: int, hidden_sizes: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, size in zip([pixels, *hidden_sizes], hidden_sizes, strict=False):
        layers += [nn.Linear(before, size), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_sizes[-1], 10))


@cache
def data() -> Data:
    """Return the three parts of the data, the same for every trial."""
    folder = os.environ.get("MNIST_DIR")
    known, test = mnist(folder) if folder else scikit_learn_digits()
    train, valid = divided(known, 0.2)
    source = f"MNIST from {folder}" if folder else "scikit-learn's handwritten digits (MNIST_DIR is not set)"
    sizes = " + ".join(str(len(part.digits)) for part in (train, valid, test))
    print(f"data: {sizes} pictures (train, valid, test), {source}; on {DEVICE}", flush=True)
    return Data(train, valid, test)


def mnist(folder: str) -> tuple[Split, Split]:
    """Return the 60,000 training and the 10,000 test images. Raises RuntimeError if the folder has none."""
    from torchvision.datasets import MNIST  # imported here because it takes a second

    parts = [MNIST(folder, train=train, download=False) for train in (True, False)]
    known, test = (
        Split(part.data.flatten(1).to(DEVICE, torch.float32) / 255, part.targets.to(DEVICE)) for part in parts
    )
    return known, test


def scikit_learn_digits() -> tuple[Split, Split]:
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32, device=DEVICE)
    return divided(Split(pixels / 16, torch.tensor(digits.target, device=DEVICE)), 0.2)


def divided(split: Split, share: float) -> tuple[Split, Split]:
    """Split in two, stratified by digit; the second part gets the given share."""
    indices = train_test_split(
        range(len(split.digits)), test_size=share, stratify=split.digits.cpu(), random_state=0
    )
    first, second = (Split(split.pictures[index], split.digits[index]) for index in indices)
    return first, second


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
    study.optimize(objective, n_trials=50)
    print(f"best accuracy {study.best_value:.4f} with {study.best_params}")
    final(study.best_trial)
