"""A manifest with one of everything, and how tests change it."""

import copy
from typing import Any

from tuning_operator.resource import names

REMOVED = object()

GOOD: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "mnist"},
    "spec": {
        "objectives": [{"metric": "accuracy", "direction": "maximize", "target": 0.995}],
        "searchSpace": [
            {"name": "lr", "type": "float", "low": 1e-5, "high": 0.1, "log": True},
            {"name": "dropout", "type": "float", "low": 0, "high": 0.5, "step": 0.1},
            {"name": "n_layers", "type": "int", "low": 1, "high": 3},
            {
                "name": "units",
                "type": "int",
                "low": 64,
                "high": 256,
                "step": 64,
                "when": {"parameter": "n_layers", "atLeast": 2},
            },
            {"name": "optimizer", "type": "categorical", "choices": ["Adam", "RMSprop", "SGD"]},
        ],
        "sampler": {"name": "TPESampler", "args": {"seed": 42}},
        "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 5}},
        "maxTrials": 100,
        "parallelism": 8,
        "maxFailedTrials": 10,
        "maxTrialsWithoutImprovement": 50,
        "timeout": "1h",
        "initialTrials": [{"lr": 0.001, "n_layers": 2, "optimizer": "Adam"}],
        "warmStart": {"study": "earlier"},
        "suspend": False,
        "deletionPolicy": "Retain",
        "trial": {
            "objective": "train:objective",
            "source": {"configMap": "mnist-code"},
            "timeout": "20m",
            "template": {
                "metadata": {"labels": {"team": "vision"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {"name": "trainer", "image": "torch", "resources": {"limits": {"nvidia.com/gpu": 1}}}
                    ],
                },
            },
        },
    },
}

MINIMAL: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "minimal"},
    "spec": {
        "objectives": [{"metric": "loss", "direction": "minimize"}],
        "maxTrials": 1,
        "trial": {
            "objective": "train:objective",
            "template": {"spec": {"containers": [{"name": "trainer", "image": "python"}]}},
        },
    },
}


def changed(changes: dict[str, Any], manifest: dict[str, Any] = GOOD) -> dict[str, Any]:
    """Return the manifest with other values at some paths, for example `{"spec.searchSpace.0.low": 5}`.

    An item of a list is named by its place; the place after the last one adds an item. REMOVED removes.
    """
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        target: Any = result
        for part in parents:
            target = target[part]
        if value is REMOVED:
            del target[last]
        elif isinstance(target, list) and last == len(target):
            target.append(value)
        else:
            target[last] = value
    return result
