"""How long a slot is idle between two trials: from the end of the user's code to its next start.

`python -m tests.bench.turnaround` runs small studies on this machine, one trial at a time: in a process for
each trial, and in workers (trial.reusePods). It prints JSON. The machine should have nothing else to do.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

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
        times = sorted(tuple(map(float, line.split())) for line in lines)
        return [begun - ended for (_, ended), (begun, _) in itertools.pairwise(times)]


def main() -> None:
    """Measure and print."""
    command = ["sh", "-c", COMMAND]
    kinds: dict[str, dict[str, Any]] = {
        "objective": {},
        "objective, reusePods": {"reusePods": True},
        "command": {"command": command},
        "command, reusePods": {"command": command, "reusePods": True},
    }
    result: dict[str, Any] = {"cpus": os.cpu_count(), "load before": os.getloadavg()[0], "milliseconds": {}}
    for name, trial in kinds.items():
        found = sorted(1000 * gap for gap in gaps(trial))
        result["milliseconds"][name] = {
            "p50": round(statistics.median(found), 1),
            "p90": round(found[int(len(found) * 0.9)], 1),
            "least": round(found[0], 1),
        }
    json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
