"""A small convolutional network that classifies images of cats and dogs, or of any other classes.

`python train.py` runs the search on your machine with Optuna. The environment variable IMAGE_DIR is a
folder with images in the layout of torchvision's ImageFolder: train/cat/*.jpg, train/dog/*.jpg,
val/cat/*.jpg, val/dog/*.jpg.
"""

import os
from itertools import pairwise
from pathlib import Path

import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

IMAGES = Path(os.environ.get("IMAGE_DIR", "images"))
EPOCHS = int(os.environ.get("EPOCHS", "10"))
BATCH_SIZE = 32
SIDE = 224  # pixels
SEED = 0

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIXED = DEVICE.type == "cuda" and torch.cuda.is_bf16_supported()
"""bfloat16 if the GPU supports it. It has the range of float32, so gradients need no scaling."""

NORMALIZED = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
AUGMENTED = v2.Compose([v2.RandomResizedCrop(SIDE, scale=(0.5, 1)), v2.RandomHorizontalFlip(), *NORMALIZED])
CENTRED = v2.Compose([v2.Resize(SIDE + 32), v2.CenterCrop(SIDE), *NORMALIZED])


def objective(trial: optuna.Trial) -> float:
    """Train with the trial's parameters; return the loss on the images in val."""
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    torch.manual_seed(SEED)  # every trial starts from the same weights
    train, val = ImageFolder(IMAGES / "train", AUGMENTED), ImageFolder(IMAGES / "val", CENTRED)
    if train.classes != val.classes:
        raise ValueError(f"{IMAGES}/train has the classes {train.classes}, but {IMAGES}/val {val.classes}")
    print(
        f"data: {len(train)} + {len(val)} pictures of {' and '.join(train.classes)}; on {DEVICE}", flush=True
    )

    network = cnn(len(train.classes)).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    training, validation = batches(train, shuffle=True), batches(val, shuffle=False)
    loss = float("nan")
    for epoch in range(EPOCHS):
        fit(network, optimizer, training)
        loss, accuracy = judge(network, validation)
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)
        trial.set_user_attr("accuracy", accuracy)
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def cnn(classes: int) -> nn.Sequential:
    """Return the network: each block halves the size of the image, and the result is averaged."""
    channels = [3, 32, 64, 128, 256]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def batches(pictures: ImageFolder, *, shuffle: bool) -> DataLoader:
    """Return a data loader that decodes images in one process per core."""
    cores = torch.get_num_threads()  # OMP_NUM_THREADS, which study.yaml sets to the container's CPUs
    workers = cores if cores > 1 else 0
    return DataLoader(
        pictures,
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )


def fit(network: nn.Module, optimizer: torch.optim.Optimizer, training: DataLoader) -> None:
    """Train for one epoch."""
    network.train()
    for pictures, classes in training:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(scores(network, pictures), classes.to(DEVICE, non_blocking=True))
        loss.backward()
        optimizer.step()


@torch.no_grad()
def judge(network: nn.Module, validation: DataLoader) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    network.eval()
    loss = right = torch.zeros((), device=DEVICE)
    for pictures, classes in validation:
        seen, actual = scores(network, pictures), classes.to(DEVICE, non_blocking=True)
        loss = loss + nn.functional.cross_entropy(seen, actual, reduction="sum")
        right = right + (seen.argmax(dim=1) == actual).sum()
    count = len(validation.dataset)
    return loss.item() / count, right.item() / count


def scores(network: nn.Module, pictures: Tensor) -> Tensor:
    """Return the scores of the classes, in float32."""
    pictures = pictures.to(DEVICE, memory_format=torch.channels_last, non_blocking=True)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=MIXED):
        return network(pictures).float()


if __name__ == "__main__":
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=42))
    study.optimize(objective, n_trials=10)
    print(f"best loss {study.best_value:.4f} with {study.best_params}")
