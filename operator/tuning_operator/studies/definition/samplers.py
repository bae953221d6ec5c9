"""A study's definition becomes Optuna's sampler and pruner; what cannot be is told before any trial."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.study import Parameter
from tuning_operator.studies.definition.named import Misfit, Named, build, named_problems
from tuning_operator.studies.definition.sampler_space import completed, sampler_problems
from tuning_operator.studies.study.records import is_copied

KEEP_THEIR_SEED = ("BruteForceSampler", "GridSampler", "QMCSampler")
"""Samplers that look into the record for what was tried: their seed is the order, or the sequence."""


def problems_of(definition: StudyDefinition) -> list[Problem]:
    """Return all that is wrong with search space, initial trials, sampler and pruner."""
    flaws = space.problems(definition.search_space, definition.initial_trials)
    found = [Problem(field=flaw.field, message=flaw.message) for flaw in flaws]
    sampler, pruner = _sampler_of(definition), _pruner_of(definition)
    by_name = named_problems(sampler)
    found += by_name or [*sampler_problems(sampler, definition, space_is_good=not found)]
    if pruner:
        found += named_problems(pruner) or [*_pruner_problems(pruner, definition)]
    return found or [*_refusals(definition)]


def build_sampler(definition: StudyDefinition, trials: Sequence[FrozenTrial] = ()) -> BaseSampler:
    """Return the sampler of a good definition (`problems_of` finds nothing).

    `trials` are those that the study has. While none but copies of another study's are there, it is exactly
    what the arguments say.
    Afterwards a seed is replaced by one made of itself and of how much has been proposed: the random numbers
    of a server that starts again do not begin anew, which would repeat its suggestions; yet the same history
    leads to the same sampler.
    """
    sampler = completed(_sampler_of(definition), definition)
    mine = (trial for trial in trials if trial.state != TrialState.WAITING and not is_copied(trial))
    proposed = sum(1 + len(trial.params) for trial in mine)
    built: BaseSampler = build(_reseeded(sampler, proposed) if proposed else sampler)
    return built


def build_pruner(definition: StudyDefinition) -> BasePruner:
    """Return the pruner of a good definition; without one, what Optuna chooses for a study."""
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


def _sampler_of(definition: StudyDefinition) -> Named:
    return Named("BaseSampler", definition.sampler.name, definition.sampler.args, "sampler")


def _pruner_of(definition: StudyDefinition) -> Named | None:
    pruner = definition.pruner
    return Named("BasePruner", pruner.name, pruner.args, "pruner") if pruner else None


def _refusals(definition: StudyDefinition) -> Iterator[Problem]:
    """Yield what Optuna itself says to the arguments."""
    for build_one in (build_sampler, build_pruner):
        try:
            build_one(definition)
        except Misfit as misfit:
            yield misfit.problem


def _pruner_problems(pruner: Named, definition: StudyDefinition) -> Iterator[Problem]:
    if len(definition.objectives) > 1 and pruner.name != "NopPruner":
        message = (
            f"{pruner.name} cannot prune with several objectives (Optuna prunes for one only): remove "
            "pruner, or leave one objective"
        )
        yield Problem(field=pruner.field, message=message)
    if pruner.name == "HyperbandPruner":
        yield from _hyperband_problems(pruner)
    for inner in pruner.inner():
        yield from _pruner_problems(inner, definition)


def _hyperband_problems(pruner: Named) -> Iterator[Problem]:
    """Yield what HyperbandPruner finds out in the middle of a study only."""
    least, most = pruner.args.get("min_resource", 1), pruner.args.get("max_resource", "auto")
    if least < 1:
        yield Problem(field=f"{pruner.field}.args.min_resource", message=f"must be >= 1, not {least}")
    elif not isinstance(most, str) and most < least:
        message = f"must be at least min_resource, which is {least}, not {most}"
        yield Problem(field=f"{pruner.field}.args.max_resource", message=message)
    for name, smallest in {"reduction_factor": 2, "bootstrap_count": 0}.items():
        if (value := pruner.args.get(name, smallest)) < smallest:
            yield Problem(field=f"{pruner.field}.args.{name}", message=f"must be >= {smallest}, not {value}")


def _reseeded(sampler: Named, proposed: int) -> Named:
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
