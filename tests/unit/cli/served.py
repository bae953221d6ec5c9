"""A cluster whose studies are on a real study server, which runs in this process."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.studies.auth.tokens import mint_reader
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.http_trial import run_study
from tests.support.study_server import SECRET, RunningServer, running_server
from tests.unit.cli.cluster import HOST, Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFINITION: dict[str, Any] = {
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "searchSpace": [
        {"name": "lr", "type": "float", "low": 0.001, "high": 1, "log": True},
        {"name": "kind", "type": "categorical", "choices": ["a", None, 2]},
    ],
    "sampler": {"name": "RandomSampler", "args": {"seed": 1}},
    "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 1}},
    "initialTrials": [{"lr": 0.1, "kind": "a"}, {"lr": 0.9, "kind": None}],
}


def objective(trial: Any) -> float:
    """Six trials: 1 is pruned, 2 fails, 0, 3, 4 and 5 are complete."""
    lr = trial.suggest_float("lr", 0.001, 1, log=True)
    trial.suggest_categorical("kind", ["a", None, 2])
    if trial.number == 2:
        raise RuntimeError("CUDA out of memory")
    for step in range(12):
        loss = lr if trial.number == 1 else 1 / (trial.number * 3 + step + 2)
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("epochs", step + 1)
    return loss


@pytest.fixture(scope="session")
def mnist_record() -> MemoryStore:
    """The study ml/mnist, of which six trials have ended and one runs."""
    with running_server(store := MemoryStore()) as server:
        run_study(server, "ml/mnist", DEFINITION, objective, 6)
        server.operator().post("/v1/studies/ml/mnist/ask", json={"parallelism": 1, "maxTrials": 7})
    return store


@pytest.fixture
def mnist_server(mnist_record: MemoryStore) -> Iterator[RunningServer]:
    """Run a study server with this study."""
    with running_server(copy.deepcopy(mnist_record)) as server:
        yield server


@pytest.fixture
def mnist(cluster: Cluster, mnist_server: RunningServer) -> Cluster:
    """A cluster with this study and its server."""
    counts = {"total": 7, "running": 1, "complete": 4, "pruned": 1, "failed": 1}
    best = {"number": 5, "values": [1 / 28], "parameters": {"lr": 0.5, "kind": "a"}}
    cluster.study(phase="Running", progress="6/10", trials=counts, best=best, bestValue="0.0357143")
    connect(cluster, mnist_server)
    labels = {"tuning.dev/role": "trial", "tuning.dev/study": "mnist"}
    pods = [pod(f"mnist-{n}-{c}", {**labels, "tuning.dev/trial": f"{n}"}, c) for n in (5, 6) for c in "ab"]
    cluster.answer("get-pods", {"items": pods})
    return cluster


def pod(name: str, labels: dict[str, str], created: str) -> dict[str, Any]:
    """Return a pod; `created` orders pods of a run."""
    return {"metadata": {"name": name, "labels": labels, "creationTimestamp": created}}


def connect(cluster: Cluster, server: RunningServer) -> None:
    """Have kubectl lead to a server."""
    address = {"server-url": f"http://{HOST}:8443"}
    metadata = {"name": "mnist-trainer-0123456789", "creationTimestamp": "2026-01-02T00:00:00Z"}
    cluster.answer("get-configmaps", {"items": [{"metadata": metadata, "data": address}]})
    cluster.answer("create-token", mint_reader(SECRET, "ml"))
    port = server.url.rpartition(":")[2]
    cluster.answer("port-forward", f"Forwarding from 127.0.0.1:{port} -> 8443\n")
