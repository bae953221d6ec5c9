"""TPESampler proposes exactly what Optuna's does, whatever has happened to the trials before."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState
from tuning_operator.studies.definition.tpe import TPESampler
from tuning_operator.studies.definition.tpe_density import log_pdf

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "independent": {"multivariate": False},
    "grouped": {"multivariate": True, "group": True},
    "no constant liar": {"constant_liar": False},
    "no prior": {"prior_weight": 0.1, "consider_endpoints": True, "n_ei_candidates": 5},
}


def _suggest(trial: Trial) -> dict[str, Any]:
    """Ask for parameters of all kinds, some of which not every trial has."""
    trial.suggest_float("x", -1, 1)
    trial.suggest_float("lr", 1e-5, 1, log=True)
    trial.suggest_float("momentum", 0, 1, step=0.25)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    layers = trial.suggest_int("layers", 1, 3)
    for layer in range(layers):
        trial.suggest_int(f"units_{layer}", 4, 64, log=kind == "a" and layer == 3)
    return trial.params


def _history(
    sampler: optuna.samplers.BaseSampler, direction: str, constrained: bool = False
) -> list[dict[str, Any]]:
    """Return the parameters of trials of which several run at once and end in any order, in any way."""
    study, moves = optuna.create_study(sampler=sampler, direction=direction), random.Random(3)
    running: list[Trial] = []
    seen = []
    for number in range(60):
        trial = study.ask()
        seen.append(_suggest(trial))
        running.append(trial)
        while running and moves.random() < 0.6:
            _end(study, running.pop(moves.randrange(len(running))), moves, constrained and number > 40)
    return seen


def _end(study: optuna.Study, trial: Trial, moves: random.Random, constrained: bool) -> None:
    for step in range(moves.randrange(4)):
        trial.report(moves.choice([math.nan, math.inf, moves.gauss(0, 1)]), step)
    if constrained:
        trial.set_constraint("memory", moves.gauss(0, 1))
    state = moves.choice([TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    value = round(moves.gauss(0, 1), 1)  # some are equal
    study.tell(trial, value if state == TrialState.COMPLETE else None, state)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_proposes_what_optuna_proposes(variant: str, direction: str) -> None:
    arguments = {"seed": 5, **VARIANTS[variant]}
    ours = _history(TPESampler(**arguments), direction)
    assert ours == _history(optuna.samplers.TPESampler(**arguments), direction)


def test_hyperband_shows_all_trials() -> None:
    """Optuna 5 lets samplers see the trials of all brackets."""

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 3)
        trial.report(x, 1)
        trial.should_prune()  # makes the brackets
        return x

    def walk(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
        study = optuna.create_study(study_name="brackets", sampler=sampler, pruner=pruner)
        study.optimize(objective, n_trials=90)
        return [trial.params for trial in study.trials]

    ours = walk(TPESampler(seed=5, n_startup_trials=3))
    assert ours == walk(optuna.samplers.TPESampler(seed=5, n_startup_trials=3))


MANY: dict[str, Any] = {
    **{f"x{i}": optuna.distributions.FloatDistribution(-1, 1 + i) for i in range(9)},
    "lr": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
    "momentum": optuna.distributions.FloatDistribution(0, 1, step=0.25),
    "layers": optuna.distributions.IntDistribution(1, 8),
    "units": optuna.distributions.IntDistribution(4, 512, log=True),
    "kind": optuna.distributions.CategoricalDistribution(["a", "b", None]),
}


@pytest.mark.parametrize("numbers", [1, 3, 9])
@pytest.mark.parametrize("count", [30, 3000])
def test_densities_are_the_same_to_the_last_bit(count: int, numbers: int) -> None:
    """Many kernels are computed in several parts, and numpy adds many numbers in another order."""
    space = {name: kind for name, kind in MANY.items() if name[0] != "x" or int(name[1]) < numbers}
    rng = random.Random(3)
    trials = [
        optuna.create_trial(
            value=0, distributions=space, params={name: _drawn(kind, rng) for name, kind in space.items()}
        )
        for _ in range(count)
    ]
    sampler = optuna.samplers.TPESampler(seed=5)
    study = optuna.create_study(sampler=sampler)
    estimator = sampler._build_parzen_estimator(study, space, trials, handle_below=False)
    samples = estimator.sample(sampler._rng.rng, 24)
    assert log_pdf(estimator, samples).tobytes() == estimator.log_pdf(samples).tobytes()
    samples["lr"][3] = 2.0  # out of its bounds, as a rounded candidate may be
    assert log_pdf(estimator, samples).tobytes() == estimator.log_pdf(samples).tobytes()
    assert log_pdf(estimator, samples)[3] == -math.inf


def _drawn(kind: Any, rng: random.Random) -> Any:
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return rng.choice(kind.choices)
    if kind.step:
        return kind.low + rng.randint(0, int((kind.high - kind.low) / kind.step)) * kind.step
    return (
        math.exp(rng.uniform(math.log(kind.low), math.log(kind.high)))
        if kind.log
        else rng.uniform(kind.low, kind.high)
    )


@pytest.mark.filterwarnings("ignore")
def test_constraints_are_left_to_optuna() -> None:
    ours = _history(TPESampler(seed=5), "minimize", constrained=True)
    assert ours == _history(optuna.samplers.TPESampler(seed=5), "minimize", constrained=True)


@pytest.mark.filterwarnings("ignore")
def test_several_objectives_are_left_to_optuna() -> None:
    def front(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler, directions=["minimize", "maximize"])
        study.optimize(lambda trial: (_suggest(trial)["x"], trial.params["lr"]), n_trials=30)
        return [trial.params for trial in study.trials]

    assert front(TPESampler(seed=5)) == front(optuna.samplers.TPESampler(seed=5))


@pytest.mark.filterwarnings("ignore")
def test_a_distribution_that_changes() -> None:
    """The choices of a parameter may not change, but the bounds of a number may."""

    def walk(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            lambda trial: trial.suggest_float("x", 0, 1 if trial.number < 20 else 2, log=False), n_trials=40
        )
        return [trial.params for trial in study.trials]

    assert walk(TPESampler(seed=5)) == walk(optuna.samplers.TPESampler(seed=5))


def test_a_record_that_is_corrected() -> None:
    """As when writes to the database are refused: fewer trials have finished than before."""

    def walk(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: _suggest(trial)["x"], n_trials=20)
        trials = study._storage._studies[study._study_id].trials  # type: ignore[attr-defined]
        for number, state in {3: TrialState.PRUNED, 18: TrialState.FAIL, 19: TrialState.FAIL}.items():
            trials[number] = copy.copy(trials[number])
            trials[number].state = state
        study.optimize(lambda trial: _suggest(trial)["x"], n_trials=5)
        return [trial.params for trial in study.trials]

    assert walk(TPESampler(seed=5)) == walk(optuna.samplers.TPESampler(seed=5))


def test_finished_trials_are_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna converts all trials again for each proposal."""
    converted = 0
    distribution = optuna.distributions.FloatDistribution
    original = distribution.to_internal_repr

    def counted(self: Any, value: Any) -> float:
        nonlocal converted
        converted += 1
        return original(self, value)

    study = optuna.create_study(sampler=TPESampler(seed=5))
    monkeypatch.setattr(distribution, "to_internal_repr", counted)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=100)
    assert converted < 1000
