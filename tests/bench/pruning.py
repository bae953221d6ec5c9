"""What a decision of each pruner costs as a study grows: ours, Optuna's own, and the ratio.

    uv run python -m tests.bench.pruning

In memory, without storage or network: CPU time of this process, the median of many decisions. Each is taken
at a step where the pruner decides (a rung for SuccessiveHalving and Hyperband). Our first decision, with the
work that was deferred until then, counts as loading.
"""

from __future__ import annotations

import random
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import optuna
import typer
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from tuning_operator.studies.pruning import make_pruning

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STEPS = 10
RUNNING = 50
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "Median": optuna.pruners.MedianPruner,
    "Percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_warmup_steps=1, interval_steps=2),
    "SuccessiveHalving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "Hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=STEPS),
    "Patient(Median)": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(), patience=1),
    "Threshold": lambda: optuna.pruners.ThresholdPruner(upper=100.0),
    "Wilcoxon": optuna.pruners.WilcoxonPruner,
}


def main(
    trials: Annotated[list[int] | None, typer.Option(help="Finished trials of the studies.")] = None,
) -> None:
    """Measure, and print a table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print("| pruner | finished trials | Optuna | ours | ratio | loading |\n|---|---|---|---|---|---|")
    for name, make in PRUNERS.items():
        for count in trials or [100, 1_000, 20_000]:
            theirs, ours, loading = measure(count, make)
            print(
                f"| {name} | {count:,} | {theirs * 1e6:,.1f} us | {ours * 1e6:,.1f} us"
                f" | {theirs / ours:,.1f} | {loading * 1e3:.1f} ms |",
                flush=True,
            )


def measure(count: int, make: Callable[[], BasePruner]) -> tuple[float, float, float]:
    """Return seconds for a decision of Optuna's and of ours, and for taking in the study."""
    study, running = study_of(count)
    theirs = make()
    optunas = timed(lambda trial: theirs.prune(study, trial), running)
    study, running = study_of(count)
    study.pruner = make()
    begun = time.process_time()
    pruning = make_pruning(study.pruner, study)
    pruning.should_prune(running.pop())
    loading = time.process_time() - begun
    return optunas, timed(pruning.should_prune, running), loading


def study_of(count: int) -> tuple[Study, list[FrozenTrial]]:
    """Return a study of finished trials, and running ones that have reported as many steps."""
    rng = random.Random(1)
    study = optuna.create_study(study_name="ml/bench", storage=InMemoryStorage())
    study.add_trials([finished(rng) for _ in range(count)])
    ids = [study.ask()._trial_id for _ in range(RUNNING)]
    for trial_id in ids:
        level = rng.random()
        for step in range(STEPS):
            study._storage.set_trial_intermediate_value(trial_id, step, level + rng.random() / 10)
    return study, [study._storage.get_trial(trial_id) for trial_id in ids]


def finished(rng: random.Random) -> FrozenTrial:
    """Make up a complete trial, at all rungs."""
    level = rng.random()
    reported = {step: level + rng.random() / 10 for step in range(STEPS)}
    rungs: dict[str, Any] = {f"completed_rung_{rung}": level for rung in range(3)}
    return create_trial(
        state=TrialState.COMPLETE, value=level, intermediate_values=reported, system_attrs=rungs
    )


def timed(decide: Callable[[FrozenTrial], object], trials: list[FrozenTrial]) -> float:
    """Return the median of the decisions' times; the first one, which loads modules, is left out."""
    took = []
    for trial in trials:
        begun = time.process_time()
        decide(trial)
        took.append(time.process_time() - begun)
    return statistics.median(took[1:])


if __name__ == "__main__":
    typer.run(main)
