"""How long a slot is idle between two trials: from the end of the user's code to its next start.

    uv run python -m tests.bench.turnaround

Small studies on this machine (`tuning run`), one trial at a time: in a new process for each trial, and with
trial.reusePods; for comparison, Optuna's loop in one process. The machine should have nothing else to do.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from tuning_operator.studies.storage.schema import database_url

from tests.support.postgres import EmbeddedPostgres
from tests.unit.local.study import LocalStudy

TRIALS = 30
OBJECTIVE = """
import os, pathlib, time

def objective(trial):
    begun = time.time()
    time.sleep(0.2)
    with open(os.environ["SEEN"] + "/times", "a") as times:
        times.write(f"{begun} {time.time()}\\n")
    return trial.suggest_float("x", 0, 1)
"""
COMMAND = (
    'begun=$(date +%s.%N); sleep 0.2; echo "$begun $(date +%s.%N)" >> "$SEEN/times"; echo x=$TUNING_PARAM_X'
)


def gaps(trial: dict[str, Any]) -> list[float]:
    """Run a study; return the seconds between its trials."""
    with tempfile.TemporaryDirectory(prefix="tuning-bench-", ignore_cleanup_errors=True) as folder:
        small = LocalStudy(Path(folder))
        (small.source / "train.py").write_text(OBJECTIVE)
        base = small.body()["spec"]["trial"]
        if "command" in trial:
            base.pop("objective")
        small.write(trial={**base, **trial}, maxTrials=TRIALS, parallelism=1)
        code, output = small.run()
        assert code == 0, output
        lines = (small.seen / "times").read_text().splitlines()
        return between(sorted(tuple(map(float, line.split())) for line in lines))


def gaps_of_optuna() -> list[float]:
    """Run `study.optimize` with a record in Postgres; return the seconds between its trials."""
    times = []

    def objective(trial: optuna.Trial) -> float:
        begun = time.time()
        time.sleep(0.2)
        times.append((begun, time.time()))
        return trial.suggest_float("x", 0, 1)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with EmbeddedPostgres(fsync=True) as postgres:
        storage = optuna.storages.RDBStorage(database_url(postgres.url).render_as_string(hide_password=False))
        optuna.create_study(storage=storage).optimize(objective, n_trials=TRIALS)
        storage.engine.dispose()
    return between(times)


def between(times: list[tuple[float, ...]]) -> list[float]:
    """Return the seconds from the end of each trial to the beginning of the next."""
    return [begun - ended for (_, ended), (begun, _) in itertools.pairwise(times)]


def main() -> None:
    """Measure, and print a table as Markdown."""
    command = ["sh", "-c", COMMAND]
    kinds: dict[str, dict[str, Any]] = {
        "objective": {},
        "objective, reusePods": {"reusePods": True},
        "command": {"command": command},
        "command, reusePods": {"command": command, "reusePods": True},
    }
    print("| trials | p50 | p90 | shortest |\n|---|---|---|---|")
    ways = {name: partial(gaps, trial) for name, trial in kinds.items()}
    ways["study.optimize in one process, without pods"] = gaps_of_optuna
    for name, measure in ways.items():
        found = sorted(1000 * gap for gap in measure())
        p50, p90 = statistics.median(found), found[int(len(found) * 0.9)]
        print(f"| {name} | {p50:.0f} ms | {p90:.0f} ms | {found[0]:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
