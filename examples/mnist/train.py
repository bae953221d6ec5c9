"""A two-layer network for handwritten digits: an ordinary Optuna objective.

`python train.py` runs the same search on your machine with Optuna. If the environment variable MNIST_DIR is
set, that folder must contain MNIST in torchvision's layout (MNIST/raw/train-images-idx3-ubyte, ...).
Otherwise, scikit-learn's 1,797 digits are used.
"""

import os
from functools import cache
from typing import NamedTuple

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS = 20
BATCH = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Split(NamedTuple):
    """Images as rows of pixels between 0 and 1, and their digits."""

    pictures: Tensor
    digits: Tensor


@cache
def data() -> tuple[Split, Split]:
    """Return training and validation data, the same for every trial."""
    try:
        pictures, digits = mnist(os.environ["MNIST_DIR"])
        source = f"MNIST from {os.environ['MNIST_DIR']}"
    except (KeyError, RuntimeError) as missing:  # torchvision: RuntimeError where the files are not found
        pictures, digits = scikit_learn_digits()
        reason = (
            "MNIST_DIR is not set"
            if isinstance(missing, KeyError)
            else f"no MNIST in {os.environ['MNIST_DIR']}"
        )
        source = f"scikit-learn's handwritten digits ({reason})"
    print(
        f"data: {len(pictures)} pictures, {source}; on {DEVICE}, threads: {torch.get_num_threads()}",
        flush=True,
    )
    train, valid = train_test_split(range(len(digits)), test_size=0.25, stratify=digits.cpu(), random_state=0)
    return Split(pictures[train], digits[train]), Split(pictures[valid], digits[valid])


def mnist(folder: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import MNIST  # imported here because it takes a second

    training = MNIST(folder, train=True, download=False)
    return training.data.flatten(1).to(DEVICE, torch.float32) / 255, training.targets.to(DEVICE)


def scikit_learn_digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32, device=DEVICE)
    return pixels / 16, torch.tensor(digits.target, device=DEVICE)


def objective(trial: optuna.Trial) -> float:
    """Train with the trial's parameters; return the accuracy on the validation data."""
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    hidden_size = trial.suggest_int("hidden_size", 64, 256, step=32)
    train, valid = data()
    torch.manual_seed(trial.number)
    network = nn.Sequential(
        nn.Linear(train.pictures.shape[1], hidden_size), nn.ReLU(), nn.Linear(hidden_size, 10)
    )
    network.to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    accuracy = 0.0
    for epoch in range(EPOCHS):
        fit(network, optimizer, train)
        accuracy = rate(network, valid)
        print(f"epoch {epoch}: accuracy {accuracy:.4f}", flush=True)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def fit(network: nn.Module, optimizer: torch.optim.Optimizer, train: Split) -> None:
    """Train for one epoch."""
    for batch in torch.randperm(len(train.digits)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(train.pictures[batch]), train.digits[batch]).backward()
        optimizer.step()


@torch.no_grad()
def rate(network: nn.Module, valid: Split) -> float:
    """Return the accuracy."""
    return (network(valid.pictures).argmax(dim=1) == valid.digits).float().mean().item()


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_warmup_steps=2))
    study.optimize(objective, n_trials=10)
    print(f"best accuracy {study.best_value:.4f} with {study.best_params}")
