"""A study's definition becomes Optuna's objects."""

import json

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter


def build_sampler(definition: StudyDefinition) -> BaseSampler:
    """Return the definition's sampler."""
    args = dict(definition.sampler.args)
    if definition.sampler.name == "GridSampler":
        args.setdefault("search_space", {p.name: space.values(p) for p in definition.search_space or []})
    sampler: BaseSampler = getattr(optuna.samplers, definition.sampler.name)(**args)
    return sampler


def build_pruner(definition: StudyDefinition) -> BasePruner:
    """Return the definition's pruner; Optuna's default where it names none."""
    if definition.pruner is None:
        one = len(definition.objectives) == 1
        return optuna.pruners.MedianPruner() if one else optuna.pruners.NopPruner()
    pruner: BasePruner = getattr(optuna.pruners, definition.pruner.name)(**definition.pruner.args)
    return pruner


def problems_of(definition: StudyDefinition) -> list[Problem]:
    """Return what keeps a definition from being run."""
    flaws = space.problems(definition.search_space, definition.initial_trials)
    found = [Problem(field=flaw.field, message=flaw.message) for flaw in flaws]
    for field, build in (("sampler", build_sampler), ("pruner", build_pruner)):
        try:
            build(definition)
        except (TypeError, ValueError, AttributeError, ImportError) as error:
            found.append(Problem(field=field, message=str(error)))
    return found


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return what a declared parameter is sampled from."""
    return json_to_distribution(json.dumps(space.distribution(parameter)))
