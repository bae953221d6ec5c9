"""Trials on an NVIDIA GPU, on this machine (`tuning run`), with a PyTorch objective.

    uv run --group gpu python -m tests.bench.gpu

How long the GPU is idle between two trials, with a new process for each and with trial.reusePods; and how
many trials a GPU finishes in a minute when several share it (trial.trialsPerPod). A trial trains a network
of 10 million parameters with small batches, so that most of a large GPU is idle.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.unit.local.study import LocalStudy

PACKED = (1, 2, 4, 8)
ONE_BY_ONE = 5  # trials
OBJECTIVE = """
import os, time
import torch
from torch import nn

def objective(trial):
    begun = time.time()
    width = trial.suggest_int("width", 2048, 2048)
    model = nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10),
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.suggest_float("x", 1e-4, 1e-3))
    pictures, digits = torch.randn(64, 784, device="cuda"), torch.randint(10, (64,), device="cuda")
    torch.cuda.synchronize()
    ready = time.time()
    for step in range(STEPS):
        loss = nn.functional.cross_entropy(model(pictures), digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 499:
            trial.report(-loss.item(), step)
    torch.cuda.synchronize()
    with open(os.environ["SEEN"] + "/times", "a") as times:
        times.write(f"{begun} {ready} {time.time()}\\n")
    return -loss.item()
"""


def times(steps: int, trials: int, parallelism: int, **trial: Any) -> list[tuple[float, ...]]:
    """Run a study; return when each trial began, had its model on the GPU, and ended."""
    with tempfile.TemporaryDirectory(prefix="tuning-bench-", ignore_cleanup_errors=True) as folder:
        small = LocalStudy(Path(folder))
        (small.source / "train.py").write_text(OBJECTIVE.replace("STEPS", str(steps)))
        base = small.body()["spec"]["trial"]
        base["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        width = {"name": "width", "type": "int", "low": 2048, "high": 2048}
        x = {"name": "x", "type": "float", "low": 1e-4, "high": 1e-3}
        small.write(
            trial={**base, **trial},
            searchSpace=[width, x],
            maxTrials=trials,
            parallelism=parallelism,
            pruner={"name": "NopPruner"},
        )
        code, output = small.run()
        assert code == 0, output
        lines = (small.seen / "times").read_text().splitlines()
        return sorted(tuple(map(float, line.split())) for line in lines)


def main() -> None:
    """Measure, and print tables as Markdown."""
    gpu = torch.cuda.get_device_name(0)
    print(f"| trials on one {gpu} | until the next trial's code | until its model is on the GPU |")
    print("|---|---|---|")
    for name, trial in (("objective", {}), ("objective, reusePods", {"reusePods": True})):
        found = list(itertools.pairwise(times(1000, ONE_BY_ONE, 1, **trial)))
        gaps = statistics.median(after[0] - before[2] for before, after in found)
        ready = statistics.median(after[1] - before[2] for before, after in found)
        print(f"| {name} | {gaps:.2f} s | {ready:.2f} s |", flush=True)
    print(f"\n| trialsPerPod on one {gpu} | trials per minute |\n|---|---|", flush=True)
    alone = 0.0
    for packed in PACKED:
        found = times(4000, 2 * packed, packed, reusePods=True, trialsPerPod=packed)
        rate = 60 * len(found) / (max(ended for _, _, ended in found) - found[0][0])
        alone = alone or rate
        print(f"| {packed} | {rate:.1f} ({rate / alone:.2f}x) |", flush=True)


if __name__ == "__main__":
    main()
