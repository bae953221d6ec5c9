"""Typical studies, and what the manifests of their examples must contain."""

from typing import Any

ROWS: dict[str, dict[str, Any]] = {
    "mnist": {
        "objectives": [{"metric": "accuracy", "direction": "maximize"}],
        "searchSpace": [
            {"name": "learning_rate", "type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            {"name": "hidden_size", "type": "int", "low": 64, "high": 256, "step": 32},
        ],
        "maxTrials": 10,
    },
    "dynamic-ann": {
        "objectives": [{"metric": "accuracy", "direction": "maximize"}],
        "searchSpace": [
            {"name": "n_layers", "type": "int", "low": 1, "high": 3},
            {"name": "hidden_size", "type": "int", "low": 64, "high": 256, "step": 64},
            {"name": "dropout", "type": "float", "low": 0.1, "high": 0.5},
            {"name": "lr", "type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            {"name": "optimizer", "type": "categorical", "choices": ["Adam", "RMSprop", "SGD"]},
            {"name": "batch_size", "type": "categorical", "choices": [32, 64, 128]},
        ],
        "maxTrials": 50,
    },
    "cnn-cats-dogs": {
        "objectives": [{"metric": "loss", "direction": "minimize"}],
        "searchSpace": [
            {"name": "learning_rate", "type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            {"name": "weight_decay", "type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        ],
        "maxTrials": 10,
    },
    "transformer-lightning": {
        "objectives": [{"metric": "val_acc", "direction": "maximize"}],
        "searchSpace": [
            {"name": "learning_rate", "type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            {"name": "batch_size", "type": "categorical", "choices": [16, 32, 64, 128]},
            {"name": "num_layers", "type": "int", "low": 2, "high": 8},
            {"name": "hidden_dim", "type": "categorical", "choices": [128, 256, 512]},
            {"name": "dropout", "type": "float", "low": 0.1, "high": 0.5},
            {"name": "weight_decay", "type": "float", "low": 1e-6, "high": 1e-3, "log": True},
        ],
        "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 5, "n_warmup_steps": 10}},
        "maxTrials": 100,
        "timeout": "1h",
    },
    "bert-imdb": {
        "objectives": [{"metric": "eval_accuracy", "direction": "maximize"}],
        "searchSpace": [
            {"name": "learning_rate", "type": "float", "low": 1e-5, "high": 5e-5, "log": True},
            {"name": "batch_size", "type": "categorical", "choices": [16, 32]},
            {"name": "num_train_epochs", "type": "int", "low": 1, "high": 5},
        ],
        "maxTrials": 20,
    },
}
