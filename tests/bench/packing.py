"""How many trials a pod finishes in a minute when several share it (`trial.trialsPerPod`).

    uv run python -m tests.bench.packing

Small studies on this machine (`tuning run`) with trial.reusePods. A trial computes on one thread, or computes
for half of the time and waits for the rest, as one that loads data or does not fill a GPU does. The machine
should have nothing else to do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.unit.local.study import LocalStudy

PACKED = (1, 2, 4)
TRIALS = 12
STEPS = 10
SECONDS = 0.05
OBJECTIVE = f"""
import os, pathlib, time

def objective(trial):
    begun = time.time()
    for step in range({STEPS}):
        computed = time.thread_time() + {SECONDS}
        while time.thread_time() < computed:
            sum(range(1000))
        time.sleep(WAIT)
        trial.report(step, step)
    with open(os.environ["SEEN"] + "/times", "a") as times:
        times.write(f"{{begun}} {{time.time()}}\\n")
    return trial.suggest_float("x", 0, 1)
"""


def rate(packed: int, wait: float) -> float:
    """Run a study; return the trials per minute from the first trial's start to the last one's end."""
    with tempfile.TemporaryDirectory(prefix="tuning-bench-", ignore_cleanup_errors=True) as folder:
        small = LocalStudy(Path(folder))
        (small.source / "train.py").write_text(OBJECTIVE.replace("WAIT", str(wait)))
        trial = {**small.body()["spec"]["trial"], "reusePods": True, "trialsPerPod": packed}
        small.write(trial=trial, maxTrials=TRIALS, parallelism=packed, pruner={"name": "NopPruner"})
        code, output = small.run()
        assert code == 0, output
        lines = (small.seen / "times").read_text().splitlines()
        begun, ended = zip(*(map(float, line.split()) for line in lines), strict=True)
        return 60 * len(lines) / (max(ended) - min(begun))


def main() -> None:
    """Measure, and print a table as Markdown."""
    print("| trials that | " + " | ".join(f"trialsPerPod: {packed}" for packed in PACKED) + " |")
    print("|---" * (len(PACKED) + 1) + "|")
    for name, wait in (("compute", 0.0), ("compute half of the time", SECONDS)):
        rates = [rate(packed, wait) for packed in PACKED]
        cells = " | ".join(f"{found:.0f} per minute ({found / rates[0]:.2f}x)" for found in rates)
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
