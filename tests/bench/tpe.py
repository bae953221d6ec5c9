"""The CPU time that TPE takes for a trial with five parameters: Optuna's TPESampler and the study server's.

    uv run python -m tests.bench.tpe

Both make the same proposals (tests/unit/studies/test_tpe.py). They take turns, on the same finished trials.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Annotated

import optuna
import typer
from optuna.trial import FrozenTrial, create_trial
from tuning_operator.studies.definition.tpe import TPESampler

from tests.bench.server import DISTRIBUTIONS

ROUNDS = 7


def main(trials: Annotated[list[int] | None, typer.Option(help="finished trials")] = None) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| finished trials | Optuna | ours | ratio |\n|---|---|---|---|")
    for count in trials or [100, 1_000, 20_000]:
        finished = [_finished(random.Random(number)) for number in range(count)]
        studies = []
        for sampler in (optuna.samplers.TPESampler(seed=1), TPESampler(seed=1)):
            study = optuna.create_study(sampler=sampler)
            study.add_trials(finished)
            _milliseconds(study)
            studies.append(study)
        times = [[_milliseconds(study) for study in studies] for _ in range(ROUNDS)]
        optunas, ours = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {count:,} | {optunas:.1f} ms | {ours:.1f} ms | {ours / optunas:.2f} |")


def _finished(values: random.Random) -> FrozenTrial:
    params = {
        "lr": 10 ** values.uniform(-5, -1),
        "momentum": values.random(),
        "dropout": values.random() / 2,
        "layers": values.randint(1, 8),
        "optimizer": values.choice(DISTRIBUTIONS["optimizer"].choices),
    }
    return create_trial(params=params, distributions=DISTRIBUTIONS, value=values.random())


def _milliseconds(study: optuna.Study) -> float:
    """Ask for a trial and its parameters, and complete it; return the CPU time until it had all of them."""
    start = time.process_time()
    trial = study.ask(DISTRIBUTIONS)
    taken = (time.process_time() - start) * 1000
    study.tell(trial, trial.params["momentum"])
    return taken


if __name__ == "__main__":
    typer.run(main)
