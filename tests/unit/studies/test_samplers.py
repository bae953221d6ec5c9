"""Samplers and pruners by class name and arguments: good ones are built, bad ones are explained."""

import importlib.util
import math
import time
from contextlib import suppress
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tuning_operator.protocol import StudyDefinition
from tuning_operator.resource.study import PRUNERS, SAMPLERS
from tuning_operator.studies.definition.samplers import build_pruner, build_sampler, problems_of, to_optuna
from tuning_operator.studies.study.records import proposed

X = {"name": "x", "type": "float", "low": 0, "high": 1, "step": 0.25}
Y = {"name": "y", "type": "int", "low": 1, "high": 4}
Z = {"name": "z", "type": "categorical", "choices": ["a", "b"]}
FREE = {"name": "free", "type": "float", "low": 0, "high": 1}
DEEP = Y | {"name": "deep", "when": {"parameter": "y", "atLeast": 2}}
LOSS = {"metric": "loss", "direction": "minimize"}
COST = {"metric": "cost", "direction": "minimize"}


def definition(**parts: Any) -> StudyDefinition:
    return StudyDefinition.model_validate({"objectives": [LOSS], "searchSpace": [X, Y, Z]} | parts)


def sampler(name: str, **args: Any) -> dict[str, Any]:
    return {"sampler": {"name": name, "args": args}}


def pruner(name: str, **args: Any) -> dict[str, Any]:
    return {"pruner": {"name": name, "args": args}}


def problems(**parts: Any) -> list[tuple[str, str]]:
    return [(problem.field, problem.message) for problem in problems_of(definition(**parts))]


def run(study: optuna.Study, parts: StudyDefinition, trials: int) -> None:
    """Ask for trials one at a time and complete them, with the declared parameters."""
    for _ in range(trials):
        trial = study.ask()
        found = {
            parameter.name: trial._suggest(parameter.name, to_optuna(parameter))
            for parameter in parts.search_space or []
        }
        study.tell(trial, [float(hash_of(found))] * len(parts.objectives))


def hash_of(found: dict[str, Any]) -> float:
    return sum(len(str(value)) if isinstance(value, str) else float(value) for value in found.values())


def new_study(parts: StudyDefinition) -> optuna.Study:
    directions = [objective.direction for objective in parts.objectives]
    return optuna.create_study(directions=directions, sampler=build_sampler(parts))


GOOD_SAMPLERS = [
    sampler("TPESampler"),
    sampler("TPESampler", seed=1, n_startup_trials=2, multivariate=True, group=True, constant_liar=False),
    sampler("TPESampler", seed=1.0, prior_weight=1),
    sampler("RandomSampler", seed=1),
    sampler("GridSampler"),
    sampler("GridSampler", seed=3),
    sampler("GridSampler", search_space={"x": [0, 0.5], "y": [1, 2, 3], "z": ["a"]}),
    sampler("QMCSampler", qmc_type="halton", scramble=True, seed=2),
    sampler("QMCSampler", independent_sampler={"name": "TPESampler", "args": {"seed": 1}}),
    sampler("CmaEsSampler", seed=1, x0={"x": 0.5, "y": 2}, sigma0=0.2, n_startup_trials=2),
    sampler("CmaEsSampler", independent_sampler={"name": "RandomSampler"}),
    sampler("NSGAIISampler", population_size=4, seed=1),
    sampler("NSGAIISampler", crossover={"name": "SBXCrossover", "args": {"eta": 2}}, population_size=4),
    sampler("NSGAIISampler", mutation={"name": "PolynomialMutation"}, mutation_prob=0.5),
    sampler("NSGAIIISampler", population_size=4, seed=1, reference_points=[[1.0]]),
    sampler("BruteForceSampler", seed=1, avoid_premature_stop=True),
    sampler("PartialFixedSampler", fixed_params={"y": 3}, base_sampler={"name": "TPESampler"}),
]

BAD_SAMPLERS = [
    (
        sampler("TPESampler", sede=1),
        "sampler.args.sede",
        "TPESampler has no argument 'sede'; did you mean 'seed'?",
    ),
    (sampler("RandomSampler", zzz=1), "sampler.args.zzz", "It takes: seed"),
    (sampler("TPESample"), "sampler.name", "did you mean 'TPESampler'?"),
    (sampler("BaseSampler"), "sampler.name", "It is one of: BruteForceSampler"),
    (sampler("TPESampler", seed="1"), "sampler.args.seed", "whole number"),
    (sampler("TPESampler", seed=True), "sampler.args.seed", "whole number"),
    (sampler("TPESampler", seed=1.5), "sampler.args.seed", "whole number"),
    (sampler("TPESampler", seed=-1), "sampler.args.seed", "2**32"),
    (sampler("TPESampler", n_startup_trials=None), "sampler.args.n_startup_trials", "whole number"),
    (sampler("TPESampler", multivariate="yes"), "sampler.args.multivariate", "true or false"),
    (sampler("TPESampler", gamma="lambda n: n"), "sampler.args.gamma", "function"),
    (sampler("TPESampler", group=True, multivariate=False), "sampler.args.group", "multivariate"),
    (sampler("TPESampler", constraints_func="f"), "sampler.args.constraints_func", "set_constraint"),
    (sampler("QMCSampler", qmc_type="x"), "sampler.args.qmc_type", "`halton` or `sobol`"),
    (
        sampler("NSGAIISampler", population_size=1),
        "sampler.args.population_size",
        "greater than or equal to 2",
    ),
    (sampler("NSGAIISampler", crossover="SBX"), "sampler.args.crossover", "name"),
    (
        sampler("NSGAIISampler", crossover={"name": "SBX"}),
        "sampler.args.crossover.name",
        "did you mean 'SBXCrossover'?",
    ),
    (
        sampler("NSGAIISampler", crossover={"name": "SBXCrossover", "args": {"etta": 1}}),
        "sampler.args.crossover.args.etta",
        "did you mean 'eta'?",
    ),
    (
        sampler("QMCSampler", independent_sampler={"name": "TPESampler", "args": {"sede": 1}}),
        "sampler.args.independent_sampler.args.sede",
        "did you mean 'seed'?",
    ),
    (sampler("CmaEsSampler", source_trials=[]), "sampler.args.source_trials", "manifest"),
    (sampler("CmaEsSampler", x0={"xx": 1}), "sampler.args.x0.xx", "did you mean x?"),
    (sampler("CmaEsSampler", lr_adapt=True, with_margin=True), "sampler.args.with_margin", "prohibited"),
    (
        sampler("GridSampler", search_space={"x": [0], "y": [9], "z": ["a"]}),
        "sampler.args.search_space.y",
        "range",
    ),
    (sampler("GridSampler", search_space={"x": [0], "y": [1]}), "sampler.args.search_space", "z"),
    (sampler("GridSampler", search_space=[1]), "sampler.args.search_space", "parameter"),
    (sampler("PartialFixedSampler", fixed_params={"y": 3}), "sampler.args.base_sampler", "requires this"),
    (
        sampler("PartialFixedSampler", fixed_params={"y": 9}, base_sampler={"name": "TPESampler"}),
        "sampler.args.fixed_params.y",
        "outside the range",
    ),
    (
        sampler("PartialFixedSampler", fixed_params={"yy": 3}, base_sampler={"name": "TPESampler"}),
        "sampler.args.fixed_params.yy",
        "did you mean y?",
    ),
    (
        sampler("PartialFixedSampler", fixed_params={}, base_sampler="TPE"),
        "sampler.args.base_sampler",
        "{name:",
    ),
    (
        sampler("PartialFixedSampler", fixed_params={}, base_sampler=None),
        "sampler.args.base_sampler",
        "{name:",
    ),
    (
        sampler("NSGAIIISampler", reference_points=[[1, 2], [3]]),
        "sampler.args.reference_points",
        "one length",
    ),
    (
        sampler("BruteForceSampler") | {"searchSpace": [Y | {"high": 1e9}]},
        "searchSpace[0].step",
        "1,000,000,000",
    ),
    (sampler("GridSampler") | {"searchSpace": [X, FREE]}, "searchSpace[1].step", "give it a step"),
    (sampler("BruteForceSampler") | {"searchSpace": [X, FREE]}, "searchSpace[1].step", "give it a step"),
    (sampler("GridSampler") | {"searchSpace": [Y, DEEP]}, "searchSpace[1].when", "BruteForceSampler"),
    (sampler("GridSampler") | {"searchSpace": None}, "searchSpace", "declare it"),
    (
        sampler("GridSampler") | {"searchSpace": [X | {"name": f"x{i}"} for i in range(20)]},
        "sampler",
        "combinations",
    ),
    (sampler("GridSampler") | {"initialTrials": [{"x": 0.5}]}, "initialTrials[0]", "y, z"),
    (sampler("CmaEsSampler") | {"objectives": [LOSS, COST]}, "sampler.name", "one objective"),
    ({"initialTrials": [{"x": 0.3}]}, "initialTrials[0].x", "use 0.25 or 0.5"),
    ({"searchSpace": [X | {"high": -1}]}, "searchSpace[0].low", "swap them"),
]

GOOD_PRUNERS = [
    {},
    pruner("MedianPruner", n_startup_trials=3, n_warmup_steps=2, interval_steps=2, n_min_trials=2),
    pruner("PercentilePruner", percentile=25),
    pruner("SuccessiveHalvingPruner", min_resource=2, reduction_factor=3, bootstrap_count=1),
    pruner("SuccessiveHalvingPruner", min_resource="auto"),
    pruner("HyperbandPruner", min_resource=1, max_resource=9, reduction_factor=3),
    pruner("HyperbandPruner", max_resource="auto"),
    pruner("PatientPruner", patience=2, wrapped_pruner=None),
    pruner("PatientPruner", patience=2, wrapped_pruner={"name": "MedianPruner", "args": {"n_min_trials": 2}}),
    pruner("ThresholdPruner", upper=3),
    pruner("WilcoxonPruner", p_threshold=0.2),
    pruner("NopPruner"),
]

BAD_PRUNERS = [
    (pruner("MedianPruner", warmup=1), "pruner.args.warmup", "did you mean 'n_warmup_steps'?"),
    (pruner("MedianPrune"), "pruner.name", "did you mean 'MedianPruner'?"),
    (pruner("PercentilePruner"), "pruner.args.percentile", "PercentilePruner requires this"),
    (pruner("PercentilePruner", percentile=101), "pruner.args.percentile", "between 0 and 100"),
    (pruner("PercentilePruner", percentile="25"), "pruner.args.percentile", "number"),
    (pruner("MedianPruner", interval_steps=0), "pruner.args.interval_steps", "at least 1"),
    (pruner("SuccessiveHalvingPruner", min_resource="x"), "pruner.args.min_resource", "auto"),
    (pruner("SuccessiveHalvingPruner", min_resource=0), "pruner.args.min_resource", ">= 1"),
    (pruner("HyperbandPruner", reduction_factor=1), "pruner.args.reduction_factor", ">= 2"),
    (pruner("HyperbandPruner", min_resource=0), "pruner.args.min_resource", ">= 1"),
    (pruner("HyperbandPruner", min_resource=10, max_resource=5), "pruner.args.max_resource", "min_resource"),
    (pruner("HyperbandPruner", max_resource="x"), "pruner.args.max_resource", "auto"),
    (pruner("PatientPruner", wrapped_pruner=None), "pruner.args.patience", "PatientPruner requires this"),
    (pruner("PatientPruner", wrapped_pruner=None, patience=-1), "pruner.args.patience", "negative"),
    (
        pruner("PatientPruner", patience=1, wrapped_pruner={"name": "PercentilePruner"}),
        "pruner.args.wrapped_pruner.args.percentile",
        "PercentilePruner requires this",
    ),
    (pruner("ThresholdPruner"), "pruner.args", "lower or upper"),
    (pruner("ThresholdPruner", lower=2, upper=1), "pruner.args.lower", "smaller than upper"),
    (
        pruner(
            "PatientPruner",
            patience=1,
            wrapped_pruner={"name": "HyperbandPruner", "args": {"max_resource": 0}},
        ),
        "pruner.args.wrapped_pruner.args.max_resource",
        "at least min_resource",
    ),
    (pruner("WilcoxonPruner", p_threshold=2), "pruner.args.p_threshold", "between 0 and 1"),
    (pruner("NopPruner", patience=2), "pruner.args.patience", "NopPruner takes no arguments"),
    (pruner("MedianPruner") | {"objectives": [LOSS, COST]}, "pruner", "several objectives"),
]


def test_every_sampler_and_pruner_is_tried() -> None:
    assert {case["sampler"]["name"] for case in GOOD_SAMPLERS} == set(SAMPLERS) - {"GPSampler"}  # tests/gp
    assert {case["pruner"]["name"] for case in GOOD_PRUNERS if case} == set(PRUNERS)


@pytest.mark.parametrize("parts", GOOD_SAMPLERS)
def test_a_good_sampler_proposes(parts: dict[str, Any]) -> None:
    good = definition(**parts)
    assert problems_of(good) == []
    study = new_study(good)
    assert type(study.sampler).__name__ == good.sampler.name
    run(study, good, 5)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 5
    fixed = good.sampler.args.get("fixed_params", {})
    assert all(trial.params.items() >= fixed.items() for trial in study.trials)


@pytest.mark.parametrize(("parts", "field", "message"), BAD_SAMPLERS)
def test_a_bad_sampler_is_reported_with_a_fix(parts: dict[str, Any], field: str, message: str) -> None:
    [(where, words)] = problems(**parts)
    assert where == field
    assert message in words


@pytest.mark.parametrize("parts", GOOD_PRUNERS)
def test_a_good_pruner_is_built_and_asked(parts: dict[str, Any]) -> None:
    good = definition(**parts)
    assert problems_of(good) == []
    built = build_pruner(good)
    assert type(built).__name__ == (good.pruner.name if good.pruner else "MedianPruner")
    study = optuna.create_study(pruner=built)
    trial = study.ask()
    trial.report(1.0, 0)
    assert trial.should_prune() is False


@pytest.mark.parametrize(("parts", "field", "message"), BAD_PRUNERS)
def test_a_bad_pruner_is_reported_with_a_fix(parts: dict[str, Any], field: str, message: str) -> None:
    [(where, words)] = problems(**parts)
    assert where == field
    assert message in words


def test_all_problems_are_reported_at_once() -> None:
    fields = [field for field, _ in problems(**sampler("TPESampler", sede=1), **pruner("PercentilePruner"))]
    assert fields == ["sampler.args.sede", "pruner.args.percentile"]


@pytest.mark.parametrize(
    "parts",
    [
        sampler("GPSampler", seed=1),
        sampler("PartialFixedSampler", fixed_params={"x": 1}, base_sampler={"name": "GPSampler"}),
    ],
)
def test_a_missing_package_is_named_before_any_trial(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    [(field, message)] = problems(**parts)
    assert field in {"sampler.name", "sampler.args.base_sampler.name"}
    assert message == (
        "GPSampler needs the package torch, which the study server does not have: use another sampler, or "
        "install the operator with the study server's image for GPSampler (the chart's studyServer.image); "
        "for `tuning run`, install torch"
    )


def test_several_objectives_are_not_pruned() -> None:
    several = definition(objectives=[LOSS, COST])
    assert problems_of(several) == []
    assert isinstance(build_pruner(several), optuna.pruners.NopPruner)
    assert problems_of(definition(objectives=[LOSS, COST], **pruner("NopPruner"))) == []


@pytest.mark.parametrize(
    "name", ["TPESampler", "RandomSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler"]
)
def test_a_fresh_study_is_that_of_the_same_sampler(name: str) -> None:
    parts = definition(searchSpace=[X, FREE, Y, Z], **sampler(name, seed=7))
    ours = new_study(parts)
    plain = optuna.create_study(sampler=getattr(optuna.samplers, name)(seed=7))
    for study in (ours, plain):
        run(study, parts, 15)
    assert [trial.params for trial in ours.trials] == [trial.params for trial in plain.trials]


RESUMED = [
    sampler("TPESampler", seed=7),
    sampler("RandomSampler", seed=7),
    sampler("CmaEsSampler", seed=7),
    sampler("NSGAIISampler", seed=7),
    sampler("NSGAIIISampler", seed=7),
    sampler("QMCSampler", seed=7, scramble=True),
    sampler("QMCSampler", independent_sampler={"name": "RandomSampler", "args": {"seed": 7}}),
    sampler(
        "PartialFixedSampler",
        fixed_params={"y": 2},
        base_sampler={"name": "RandomSampler", "args": {"seed": 7}},
    ),
]


@pytest.mark.parametrize("parts", RESUMED)
def test_a_restarted_server_goes_on_and_repeats_nothing(parts: dict[str, Any]) -> None:
    parts = definition(searchSpace=[FREE, Y], **parts)

    def restarted() -> list[float]:
        study = new_study(parts)
        for _ in range(3):
            run(study, parts, 2)
            study.sampler = build_sampler(parts, proposed(study.trials))
        run(study, parts, 2)
        return [trial.params["free"] for trial in study.trials]

    found = restarted()
    assert len(set(found)) == len(found) == 8
    assert found == restarted()  # reproducible all the same


def test_enqueued_trials_leave_a_study_fresh() -> None:
    parts = definition(searchSpace=[FREE], **sampler("RandomSampler", seed=7))
    study = new_study(parts)
    study.enqueue_trial({"free": 0.5})
    study.sampler = build_sampler(parts, proposed(study.trials))
    run(study, parts, 3)
    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    plain.enqueue_trial({"free": 0.5})
    run(plain, parts, 3)
    assert [trial.params for trial in study.trials] == [trial.params for trial in plain.trials]


@pytest.mark.parametrize("name", ["GridSampler", "BruteForceSampler"])
def test_each_combination_is_tried_once_across_restarts(name: str) -> None:
    parts = definition(searchSpace=[Y, Z], **sampler(name, seed=7))
    study = new_study(parts)
    for _ in range(8):
        with suppress(RuntimeError):  # after the last one: `stop` outside of `optimize`
            run(study, parts, 1)
        study.sampler = build_sampler(parts, proposed(study.trials))
    tried = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(tried)) == len(tried) == 8


def test_a_grid_without_its_own_values_has_the_search_space() -> None:
    built = build_sampler(definition(**sampler("GridSampler")))
    assert built._search_space == {"x": [0.0, 0.25, 0.5, 0.75, 1.0], "y": [1, 2, 3, 4], "z": ["a", "b"]}


def test_optunas_defaults_are_kept() -> None:
    assert isinstance(build_sampler(definition()), optuna.samplers.TPESampler)
    assert math.isclose(build_pruner(definition())._percentile, 50.0)


def test_arguments_that_need_a_function_are_not_offered() -> None:
    [(_, message)] = problems(**sampler("TPESampler", sede=1))
    assert "gamma" not in message
    assert message.endswith("multivariate, group, warn_independent_sampling, constant_liar")


def test_fixed_parameters_are_no_part_of_a_grid() -> None:
    grid = {"name": "GridSampler"}
    parts = definition(**sampler("PartialFixedSampler", fixed_params={"x": 0.5}, base_sampler=grid))
    study = new_study(parts)
    with suppress(RuntimeError):  # after the last one: `stop` outside of `optimize`
        run(study, parts, 9)
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == len(study.trials) == 8
    assert {trial.params["x"] for trial in study.trials} == {0.5}


def test_the_largest_definition_is_judged_at_once() -> None:
    many = [Y | {"name": f"p{index}", "high": 10_000} for index in range(100)]
    initial = [{f"p{index}": number + 1 for index in range(100)} for number in range(1000)]
    started = time.process_time()
    assert problems(searchSpace=many, initialTrials=initial) == []
    assert time.process_time() - started < 2
