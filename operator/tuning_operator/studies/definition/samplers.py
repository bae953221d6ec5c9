"""A study's definition as Optuna's sampler and pruner; mistakes are reported before any trial starts."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter
from tuning_operator.studies.definition.components import (
    Component,
    InvalidArguments,
    build,
    component_problems,
    missing_packages,
)
from tuning_operator.studies.definition.sampler_space import completed, sampler_problems

KEEP_THEIR_SEED = ("BruteForceSampler", "GridSampler", "QMCSampler")
"""Samplers that read from the record what was tried: their seed is the order, or the sequence."""


def problems_of(definition: StudyDefinition) -> list[Problem]:
    """Return all that is wrong with a definition, and what this study server lacks for it."""
    return [*manifest_problems(definition), *_missing_packages(definition)]


def manifest_problems(definition: StudyDefinition) -> list[Problem]:
    """Return what any study server would refuse in search space, initial trials, sampler and pruner.

    What only Optuna knows of a sampler or pruner is not checked if a package that it needs is missing here.
    """
    flaws = space.problems(definition.search_space, definition.initial_trials)
    found = [Problem(field=flaw.field, message=flaw.message) for flaw in flaws]
    sampler, pruner = _sampler_of(definition), _pruner_of(definition)
    by_name = component_problems(sampler)
    found += by_name or [*sampler_problems(sampler, definition, space_is_good=not found)]
    if pruner:
        found += component_problems(pruner) or [*_pruner_problems(pruner, definition)]
    if not found and not _missing_packages(definition):
        found += _rejected_by_optuna(definition)
    return found


def build_sampler(definition: StudyDefinition, proposed: int = 0) -> BaseSampler:
    """Return the sampler of a good definition (`problems_of` finds nothing).

    Args:
        definition: the study's.
        proposed: how much has been proposed to the study's trials so far. If anything has, a seed is replaced
            by one derived from it and from this number: the sampler of a restarted server would otherwise
            repeat its suggestions. The same trials lead to the same sampler.
    """
    sampler = completed(_sampler_of(definition), definition)
    built: BaseSampler = build(_reseeded(sampler, proposed) if proposed else sampler)
    return built


def uses(sampler: str, definition: StudyDefinition) -> bool:
    """Return whether the sampler of a good definition is of this class, or is based on one that is."""
    found = [_sampler_of(definition)]
    for component in found:
        found += component.inner()
    return sampler in (component.name for component in found)


def same_sampler(one: StudyDefinition, other: StudyDefinition) -> bool:
    """Return whether the sampler of one good definition can go on with the other."""
    return completed(_sampler_of(one), one) == completed(_sampler_of(other), other)


def build_pruner(definition: StudyDefinition) -> BasePruner:
    """Return the pruner of a good definition; without one, Optuna's default."""
    pruner = _pruner_of(definition)
    if pruner is None:
        return (
            optuna.pruners.MedianPruner() if len(definition.objectives) == 1 else optuna.pruners.NopPruner()
        )
    built: BasePruner = build(pruner)
    return built


def to_optuna(parameter: Parameter) -> BaseDistribution:
    """Return a good parameter's distribution."""
    return json_to_distribution(json.dumps(space.distribution(parameter)))


def _sampler_of(definition: StudyDefinition) -> Component:
    return Component("BaseSampler", definition.sampler.name, definition.sampler.args, "sampler")


def _pruner_of(definition: StudyDefinition) -> Component | None:
    pruner = definition.pruner
    return Component("BasePruner", pruner.name, pruner.args, "pruner") if pruner else None


def _missing_packages(definition: StudyDefinition) -> list[Problem]:
    components = [_sampler_of(definition), _pruner_of(definition)]
    return [problem for component in components if component for problem in missing_packages(component)]


def _rejected_by_optuna(definition: StudyDefinition) -> Iterator[Problem]:
    """Yield the arguments that Optuna itself rejects."""
    for build_one in (build_sampler, build_pruner):
        try:
            build_one(definition)
        except InvalidArguments as error:
            yield error.problem


def _pruner_problems(pruner: Component, definition: StudyDefinition) -> Iterator[Problem]:
    if len(definition.objectives) > 1 and pruner.name != "NopPruner":
        message = (
            f"{pruner.name} can't be used with several objectives (Optuna prunes with one objective only): "
            "remove pruner, or keep one objective"
        )
        yield Problem(field=pruner.field, message=message)
    if pruner.name == "HyperbandPruner":
        yield from _hyperband_problems(pruner)
    for inner in pruner.inner():
        yield from _pruner_problems(inner, definition)


def _hyperband_problems(pruner: Component) -> Iterator[Problem]:
    """Yield mistakes that HyperbandPruner would only notice in the middle of a study."""
    least, most = pruner.args.get("min_resource", 1), pruner.args.get("max_resource", "auto")
    if least < 1:
        yield Problem(field=f"{pruner.field}.args.min_resource", message=f"must be >= 1, not {least}")
    elif not isinstance(most, str) and most < least:
        message = f"must be at least min_resource, which is {least}, not {most}"
        yield Problem(field=f"{pruner.field}.args.max_resource", message=message)
    for name, smallest in {"reduction_factor": 2, "bootstrap_count": 0}.items():
        if (value := pruner.args.get(name, smallest)) < smallest:
            yield Problem(field=f"{pruner.field}.args.{name}", message=f"must be >= {smallest}, not {value}")


def _reseeded(sampler: Component, proposed: int) -> Component:
    args: dict[str, Any] = dict(sampler.args)
    seed = args.get("seed")
    if seed is not None and sampler.name not in KEEP_THEIR_SEED:
        args["seed"] = _derived(seed, proposed)
    if sampler.name == "QMCSampler" and seed is not None and args.get("independent_sampler") is None:
        args["independent_sampler"] = {"name": "RandomSampler", "args": {"seed": _derived(seed, proposed)}}
        return sampler._replace(args=args)
    for inner in sampler.inner():
        if inner.family == "BaseSampler":
            again = _reseeded(inner, proposed)
            args[inner.field.rsplit(".", 1)[-1]] = {"name": again.name, "args": dict(again.args)}
    return sampler._replace(args=args)


def _derived(seed: float, proposed: int) -> int:
    return int(np.random.SeedSequence([int(seed), proposed]).generate_state(1)[0])
