"""Records of studies that Optuna itself ran, as the study server would hand them out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import distribution_to_json
from tuning_operator.protocol import FinishedStudy

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial


def study(objective: Callable[[optuna.Trial], Any], trials: int, **options: Any) -> optuna.Study:
    """Return a study that Optuna ran here."""
    options.setdefault("sampler", optuna.samplers.RandomSampler(seed=1))
    ran = optuna.create_study(**options)
    ran.optimize(objective, n_trials=trials, catch=(ValueError,))
    return ran


def record(ran: optuna.Study) -> FinishedStudy:
    """Return the study as it comes over the wire."""
    directions = [direction.name.lower() for direction in ran.directions]
    data = {"directions": directions, "trials": [_trial(trial) for trial in ran.trials]}
    wire = FinishedStudy.model_validate(data | {"userAttrs": ran.user_attrs}).model_dump_json(by_alias=True)
    return FinishedStudy.model_validate_json(wire)


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "parameters": trial.params,
        "distributions": {
            name: json.loads(distribution_to_json(kind)) for name, kind in trial.distributions.items()
        },
        "reported": trial.intermediate_values,
        "userAttrs": trial.user_attrs,
        "constraints": trial.constraints,
        "started": trial.datetime_start and trial.datetime_start.astimezone(),
        "finished": trial.datetime_complete and trial.datetime_complete.astimezone(),
    }


def pruning(trial: optuna.Trial) -> float:
    """An objective with all that one objective can have: reports, a pruned, a failed, an infinite trial."""
    x = trial.suggest_float("x", 1e-3, 10, log=True)
    layers = trial.suggest_int("layers", 1, 3)
    kind = trial.suggest_categorical("kind", ["a", None, 3])
    if layers > 1:
        x += trial.suggest_float("late", 0, 1)
    for step in range(4):
        trial.report(x + step, step)
    trial.set_user_attr("kind", str(kind))
    if trial.number % 5 == 1:
        raise optuna.TrialPruned
    if trial.number % 5 == 2:
        raise ValueError
    trial.set_constraint("small", x - 5)
    return float("inf") if trial.number == 3 else x * layers


def two(trial: optuna.Trial) -> tuple[float, float]:
    """Accuracy against latency."""
    x, width = trial.suggest_float("x", 0, 1), trial.suggest_int("width", 1, 8)
    return 1 - (x - 0.3) ** 2 + width / 20, width * (1 + x)


def one(trial: optuna.Trial) -> float:
    """Something small."""
    return trial.suggest_float("x", 0, 1)
