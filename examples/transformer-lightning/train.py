"""A transformer that classifies sequences, trained with Lightning: a whole Optuna script.

`python train.py` runs the search for an hour, stores the study in a database and saves plots. Run it again
to continue the study. The environment variable PLOTS_DIR is the folder for the plots, STORAGE the
database's URL.

Each image of a handwritten digit is a sequence of rows. If MNIST_DIR is set, that folder must contain MNIST
in torchvision's layout (MNIST/raw/train-images-idx3-ubyte, ...). Otherwise, scikit-learn's 1,797 digits are
used.
"""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import lightning
import optuna
import torch
from optuna.visualization import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_slice,
)
from optuna_integration import PyTorchLightningPruningCallback
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

EPOCHS = int(os.environ.get("EPOCHS", "30"))
SEED = 42
CLASSES = 10


class Data(NamedTuple):
    """Training and validation data: sequences (count x rows x width, between 0 and 1) and their classes."""

    train: TensorDataset
    valid: TensorDataset

    @property
    def shape(self) -> torch.Size:
        """The shape of one sequence: rows and width."""
        return self.train.tensors[0].shape[1:]


class Classifier(lightning.LightningModule):
    """A transformer encoder with mean pooling over the rows."""

    def __init__(
        self,
        shape: torch.Size,
        *,
        num_layers: int,
        hidden_dim: int,
        dropout: float,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        rows, width = shape
        self.embedding = nn.Linear(width, hidden_dim)
        self.position = nn.Parameter(torch.randn(rows, hidden_dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            hidden_dim,
            nhead=hidden_dim // 32,
            dim_feedforward=2 * hidden_dim,
            dropout=dropout,
            batch_first=True,
            norm_first=True,  # stabilizes deep encoders at high learning rates
        )
        norm = nn.LayerNorm(hidden_dim)
        self.encoder = nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(hidden_dim, CLASSES)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the scores of the classes."""
        return self.head(self.encoder(self.embedding(sequences) + self.position).mean(dim=1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        sequences, classes = batch
        return nn.functional.cross_entropy(self(sequences), classes)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        sequences, classes = batch
        accuracy = (self(sequences).argmax(dim=1) == classes).float().mean()
        self.log("val_acc", accuracy, batch_size=len(classes))  # the mean over the epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


def objective(trial: optuna.Trial) -> float:
    """Train with the trial's parameters; return the accuracy on the validation data."""
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    batch_size = trial.suggest_categorical("batch_size", [16, 32, 64, 128])
    num_layers = trial.suggest_int("num_layers", 2, 8)
    hidden_dim = trial.suggest_categorical("hidden_dim", [128, 256, 512])
    dropout = trial.suggest_float("dropout", 0.1, 0.5)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True)

    lightning.seed_everything(SEED, verbose=False)
    data = load_data()
    model = Classifier(
        data.shape,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        dropout=dropout,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        gradient_clip_val=1.0,
        callbacks=[PyTorchLightningPruningCallback(trial, monitor="val_acc")],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        model,
        DataLoader(data.train, batch_size=batch_size, shuffle=True),
        DataLoader(data.valid, batch_size=512),
    )
    return trainer.callback_metrics["val_acc"].item()


def load_data() -> Data:
    """Return the data, the same for every trial."""
    folder = os.environ.get("MNIST_DIR")
    if folder:
        training = MNIST(folder, train=True)
        sequences, classes = training.data / 255, training.targets
    else:
        digits = load_digits()
        sequences, classes = (
            torch.tensor(digits.images / 16, dtype=torch.float32),
            torch.tensor(digits.target),
        )
    source = f"MNIST from {folder}" if folder else "scikit-learn's handwritten digits (MNIST_DIR is not set)"
    print(f"data: {len(classes)} sequences, {source}; threads: {torch.get_num_threads()}", flush=True)
    train, valid = train_test_split(range(len(classes)), test_size=0.2, stratify=classes, random_state=SEED)
    return Data(*(TensorDataset(sequences[part], classes[part]) for part in (train, valid)))


warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory

study = optuna.create_study(
    storage=os.environ.get("STORAGE", "sqlite:///transformer.db"),
    study_name="transformer-lightning",
    load_if_exists=True,
    direction="maximize",
    pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=10),
)
study.optimize(objective, n_trials=100, timeout=3600)

pruned = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.PRUNED])
print(f"{len(study.trials)} trials, {len(pruned)} of them pruned")
print(f"best: trial {study.best_trial.number}, val_acc {study.best_value:.4f}")
for name, value in study.best_params.items():
    print(f"  {name}: {value}")

plots = Path(os.environ.get("PLOTS_DIR", "."))
for plot in (plot_optimization_history, plot_param_importances, plot_parallel_coordinate, plot_slice):
    file = plots / f"{plot.__name__.removeprefix('plot_')}.html"
    plot(study).write_html(file)
    print(f"wrote {file}")
study.set_user_attr("plots", str(plots))
