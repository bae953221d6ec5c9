"""With a seed, a study through the server is the study of `study.optimize`, or of `ask` and `tell`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.space import next_parameter
from tuning_operator.resource.study import Parameter
from tuning_operator.studies.definition.samplers import to_optuna
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.http_trial import run_study
from tests.support.studies import Servers, ask, complete, declared, definition
from tests.support.studies import servers as servers
from tests.support.studies import threads as threads
from tests.support.study_server import running_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

STUDY = "ml/parity"
"""Hyperband's brackets follow from the study's name, so both studies have it."""
STEPS = 8

CONTINUOUS = [
    {"name": "x", "type": "float", "low": -3, "high": 3},
    {"name": "lr", "type": "float", "low": 1e-4, "high": 1, "log": True},
    {"name": "n", "type": "int", "low": 1, "high": 20},
]
MIXED = [
    *CONTINUOUS[:2],
    {"name": "layers", "type": "int", "low": 1, "high": 3},
    {
        "name": "units",
        "type": "int",
        "low": 16,
        "high": 128,
        "step": 16,
        "when": {"parameter": "layers", "atLeast": 2},
    },
    {"name": "kind", "type": "categorical", "choices": ["a", "b", True]},
]
DISCRETE = [
    {"name": "x", "type": "float", "low": -1, "high": 1, "step": 0.5},
    {"name": "kind", "type": "categorical", "choices": ["a", "b", True]},
]


def continuous(trial: Any) -> float:
    x, lr, n = (
        trial.suggest_float("x", -3, 3),
        trial.suggest_float("lr", 1e-4, 1, log=True),
        trial.suggest_int("n", 1, 20),
    )
    return train(trial, x * x + abs(math.log10(lr) + 2) + abs(n - 7) / 5)


def mixed(trial: Any) -> float:
    x, lr = trial.suggest_float("x", -3, 3), trial.suggest_float("lr", 1e-4, 1, log=True)
    layers = trial.suggest_int("layers", 1, 3)
    units = trial.suggest_int("units", 16, 128, step=16) if layers >= 2 else 8
    kind = trial.suggest_categorical("kind", ["a", "b", True])
    return train(trial, x * x + abs(math.log10(lr) + 2) + units / 100 + {"a": 0, "b": 1}.get(kind, 0.5))


def discrete(trial: Any) -> float:
    x, kind = trial.suggest_float("x", -1, 1, step=0.5), trial.suggest_categorical("kind", ["a", "b", True])
    return train(trial, x * x + {"a": 0, "b": 1}.get(kind, 0.5))


def train(trial: Any, loss: float) -> float:
    """A curve that falls towards the loss; now and then the training breaks, or has no value."""
    if trial.number == 6:
        raise RuntimeError("the data is gone")
    for step in range(STEPS):
        trial.report(math.nan if trial.number == 9 and step > 3 else loss + 3 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return math.nan if trial.number == 8 else loss


SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "TPE": ("TPESampler", {"seed": 1}),
    "multivariate": ("TPESampler", {"seed": 1, "n_startup_trials": 8, "multivariate": True, "group": True}),
    "Random": ("RandomSampler", {"seed": 1}),
    "CmaEs": ("CmaEsSampler", {"seed": 1, "n_startup_trials": 3}),
    "QMC": ("QMCSampler", {"seed": 1}),
    "NSGAII": ("NSGAIISampler", {"seed": 1, "population_size": 6}),
    "NSGAIII": ("NSGAIIISampler", {"seed": 1, "population_size": 6}),
    "BruteForce": ("BruteForceSampler", {"seed": 1}),
    "Grid": ("GridSampler", {"seed": 1}),
    "PartialFixed": (
        "PartialFixedSampler",
        {"fixed_params": {"x": 0.5}, "base_sampler": {"name": "TPESampler", "args": {"seed": 1}}},
    ),
}
"""Each by its class and arguments; tests/gp has GPSampler."""
PRUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Median": ("MedianPruner", {"n_startup_trials": 3, "n_warmup_steps": 2}),
    "Hyperband": ("HyperbandPruner", {"min_resource": 1, "max_resource": STEPS, "reduction_factor": 3}),
    "Hyperband auto": ("HyperbandPruner", {"reduction_factor": 3}),
    "SuccessiveHalving auto": ("SuccessiveHalvingPruner", {"reduction_factor": 3}),
    "SuccessiveHalving": ("SuccessiveHalvingPruner", {"min_resource": 1, "reduction_factor": 2}),
    "Percentile": ("PercentilePruner", {"percentile": 60.0, "n_startup_trials": 2, "interval_steps": 3}),
}


def served(
    sampler: str, pruner: str, objective: Callable[[Any], float], space: Any, direction: str, trials: int
) -> list[optuna.trial.FrozenTrial]:
    (sampler_name, sampler_args), (pruner_name, pruner_args) = SAMPLERS[sampler], PRUNERS[pruner]
    definition = {
        "objectives": [{"metric": "loss", "direction": direction}],
        "sampler": {"name": sampler_name, "args": sampler_args},
        "pruner": {"name": pruner_name, "args": pruner_args},
        **({"searchSpace": space} if space else {}),
    }
    store = MemoryStore()
    with running_server(store) as server:
        run_study(server, STUDY, definition, objective, trials)
    return optuna.load_study(study_name=STUDY, storage=store.storage).trials


def optimized(
    sampler: BaseSampler, pruner: BasePruner, objective: Callable[[Any], float], direction: str, trials: int
) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(study_name=STUDY, direction=direction, sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=trials, catch=RuntimeError)
    return study.trials


def made(module: Any, chosen: tuple[str, dict[str, Any]]) -> Any:
    args = {
        name: made(module, (value["name"], value["args"])) if name == "base_sampler" else value
        for name, value in chosen[1].items()
    }
    return getattr(module, chosen[0])(**args)


def essence(trial: optuna.trial.FrozenTrial) -> Any:
    """Return what must be the same; as text, in which NaN equals NaN."""
    return repr(
        (
            trial.number,
            trial.state.name,
            trial.params,
            trial.distributions,
            trial.values,
            trial.intermediate_values,
        )
    )


def check_same(ours: list[optuna.trial.FrozenTrial], theirs: list[optuna.trial.FrozenTrial]) -> None:
    assert [essence(trial) for trial in ours] == [essence(trial) for trial in theirs]
    states = {trial.state.name for trial in theirs}
    assert {"COMPLETE", "PRUNED", "FAIL"} <= states, "the comparison needs trials of all kinds"


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "define-by-run"])
@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "Grid"])
def test_trials_are_those_of_optimize(sampler: str, declared: bool) -> None:
    check_parity(sampler, declared)


def check_parity(sampler: str, declared: bool) -> None:
    objective, space = {
        "CmaEs": (continuous, CONTINUOUS),
        "BruteForce": (discrete, DISCRETE),
    }.get(sampler, (mixed, MIXED))
    ours = served(sampler, "Median", objective, space if declared else None, "minimize", 30)
    theirs = optimized(
        made(optuna.samplers, SAMPLERS[sampler]),
        made(optuna.pruners, PRUNERS["Median"]),
        objective,
        "minimize",
        30,
    )
    check_same(ours, theirs)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruning_is_that_of_optimize(pruner: str, direction: str) -> None:
    ours = served("TPE", pruner, mixed, MIXED, direction, 40)
    theirs = optimized(
        made(optuna.samplers, SAMPLERS["TPE"]), made(optuna.pruners, PRUNERS[pruner]), mixed, direction, 40
    )
    check_same(ours, theirs)


def test_grid_ends_when_all_is_tried() -> None:
    ours = served("Grid", "Median", discrete, DISCRETE, "minimize", 100)
    grid = {"x": [-1.0, -0.5, 0.0, 0.5, 1.0], "kind": ["a", "b", True]}
    theirs = optimized(
        optuna.samplers.GridSampler(grid, seed=1),
        made(optuna.pruners, PRUNERS["Median"]),
        discrete,
        "minimize",
        100,
    )
    assert len(theirs) == 15
    check_same(ours, theirs)


def loss(params: dict[str, Any]) -> float:
    """Return a value that depends on all parameters."""
    numbers = [value for value in params.values() if isinstance(value, float | int)]
    return sum(abs(math.log(abs(number) + 1e-3) + 2) for number in numbers) + len(params)


def asked_one_by_one(sampler: str, space: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parameters of all trials of a study in which up to 12 run at the same time."""
    study = optuna.create_study(
        study_name=STUDY,
        sampler=made(optuna.samplers, SAMPLERS[sampler]),
        pruner=made(optuna.pruners, PRUNERS["Hyperband"]),
    )
    parameters = [Parameter.model_validate(parameter) for parameter in space]
    running: list[optuna.Trial] = []
    for _ in range(4):
        while len(running) < 12:
            trial = study.ask()
            while parameter := next_parameter(parameters, trial.params):
                trial._suggest(parameter.name, to_optuna(parameter))
            running.append(trial)
        for trial in running[::2]:
            study.tell(trial, loss(trial.params))
        running = running[1::2]
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "Grid"])
async def test_trials_asked_for_at_once_are_those_of_ask(servers: Servers, sampler: str) -> None:
    """They are created together, and each of them gets its parameters as if the later ones did not exist."""
    finer = [DISCRETE[0] | {"step": 0.05}, *DISCRETE[1:]]
    space = {"CmaEs": CONTINUOUS, "BruteForce": finer}.get(sampler, MIXED)
    (name, args), (pruner, pruner_args) = SAMPLERS[sampler], PRUNERS["Hyperband"]
    wanted = definition(
        objectives=[{"metric": "loss", "direction": "minimize"}],
        searchSpace=space,
        sampler={"name": name, "args": args},
        pruner={"name": pruner, "args": pruner_args},
    )
    engine = await declared(servers.start(), wanted, StudyKey.parse(STUDY))
    for _ in range(4):
        for number in (await ask(engine, 12))[::2]:
            await engine.tell(number, complete(loss((await engine.record(number)).parameters)))
    ours = [trial.params for trial in engine.study.trials]
    assert ours == asked_one_by_one(sampler, space)


def tradeoff(trial: Any) -> tuple[float, float]:
    x, n = trial.suggest_float("x", 0, 2), trial.suggest_int("n", 1, 5)
    trial.set_constraint("c", x - 1.5)
    return x * x + n, (x - 2) ** 2


@pytest.mark.parametrize("sampler", ["TPE", "NSGAII", "NSGAIII", "Random"])
def test_several_objectives_and_constraints(sampler: str) -> None:
    name, args = SAMPLERS[sampler]
    definition = {
        "objectives": [
            {"metric": "cost", "direction": "minimize"},
            {"metric": "error", "direction": "maximize"},
        ],
        "sampler": {"name": name, "args": args},
    }
    theirs = optuna.create_study(
        directions=["minimize", "maximize"], sampler=made(optuna.samplers, SAMPLERS[sampler])
    )
    theirs.optimize(tradeoff, n_trials=20)
    store = MemoryStore()
    with running_server(store) as server:
        summary = run_study(server, STUDY, definition, tradeoff, 20)
    ours = optuna.load_study(study_name=STUDY, storage=store.storage)
    assert [essence(trial) for trial in ours.trials] == [essence(trial) for trial in theirs.trials]
    assert [t.constraints for t in ours.trials] == [t.constraints for t in theirs.trials]
    assert [t["number"] for t in summary["paretoFront"]] == [t.number for t in theirs.best_trials]
