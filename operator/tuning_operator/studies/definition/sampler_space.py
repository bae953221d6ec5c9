"""Whether a sampler goes with the study: a grid needs values, fixed parameters their ranges, and so on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.space.check import unknown
from tuning_operator.resource.space.values import size
from tuning_operator.resource.study import Parameter
from tuning_operator.studies.definition.components import Component

LARGEST_GRID = 100_000
"""The most combinations of a grid: Optuna keeps them all in memory and reads them all for each trial."""

LARGEST_REFERENCE = 10_000
"""The most reference points of NSGAIIISampler."""


def completed(
    sampler: Component, definition: StudyDefinition, fixed: Mapping[str, Any] = MappingProxyType({})
) -> Component:
    """Return the sampler with what follows from the search space: the values of a GridSampler without any.

    A parameter that is fixed is one of the grid's, with one value: with another value, it is another grid.
    """
    args: dict[str, Any] = dict(sampler.args)
    if sampler.name == "GridSampler":
        free = [p for p in definition.search_space or [] if p.name not in fixed]
        values = args.get("search_space", {parameter.name: space.values(parameter) for parameter in free})
        args["search_space"] = {name: [value] for name, value in fixed.items()} | values
    if sampler.name == "PartialFixedSampler":
        for base in sampler.inner():
            inner = completed(base, definition, {**args["fixed_params"], **fixed})
            args["base_sampler"] = {"name": inner.name, "args": dict(inner.args)}
    return sampler._replace(args=args)


def sampler_problems(
    sampler: Component,
    definition: StudyDefinition,
    *,
    space_is_good: bool,
    fixed: frozenset[str] = frozenset(),
) -> Iterator[Problem]:
    """Yield conflicts of a sampler (good by itself) with search space, objectives and initial trials."""
    if sampler.name == "CmaEsSampler" and len(definition.objectives) > 1:
        message = "CmaEsSampler supports one objective only: use TPESampler or NSGAIISampler"
        yield Problem(field=f"{sampler.field}.name", message=message)
    if sampler.name == "NSGAIIISampler":
        yield from _reference_point_problems(sampler, len(definition.objectives))
    if space_is_good:
        yield from _space_problems(sampler, definition, fixed)
    for inner in sampler.inner():
        if inner.family == "BaseSampler":
            known = fixed | frozenset(sampler.args.get("fixed_params", ()))
            yield from sampler_problems(inner, definition, space_is_good=space_is_good, fixed=known)


def _space_problems(
    sampler: Component, definition: StudyDefinition, fixed: frozenset[str]
) -> Iterator[Problem]:
    free = [p for p in definition.search_space or [] if p.name not in fixed]
    for argument in ("fixed_params", "x0"):
        if definition.search_space is not None and sampler.args.get(argument):
            field = f"{sampler.field}.args.{argument}"
            yield from _point_problems(definition.search_space, sampler.args[argument], field)
    if sampler.name == "GridSampler":
        yield from _grid_problems(sampler, definition, free)
    if sampler.name == "BruteForceSampler":
        yield from _countable_problems("BruteForceSampler", definition, free)


def _reference_point_problems(sampler: Component, objectives: int) -> Iterator[Problem]:
    divisions = int(sampler.args.get("dividing_parameter", 3))
    if (points := math.comb(objectives + divisions - 1, objectives - 1)) > LARGEST_REFERENCE:
        message = (
            f"{objectives} objectives and dividing_parameter {divisions} make {points:,} reference points, "
            f"and the limit is {LARGEST_REFERENCE:,}: lower dividing_parameter"
        )
        yield Problem(field=f"{sampler.field}.args.dividing_parameter", message=message)


def _point_problems(
    parameters: Sequence[Parameter], point: Mapping[str, Any], field: str
) -> Iterator[Problem]:
    by_name = {parameter.name: parameter for parameter in parameters}
    for name, value in point.items():
        known = by_name.get(name)
        message = space.value_flaw(known, value) if known else unknown(name, list(by_name))
        if message:
            yield Problem(field=f"{field}.{name}", message=message)


def _grid_problems(
    sampler: Component, definition: StudyDefinition, free: list[Parameter]
) -> Iterator[Problem]:
    own = sampler.args.get("search_space")
    if own is not None:
        problems = [*_own_grid_problems(own, f"{sampler.field}.args.search_space", definition, free)]
    elif definition.search_space is None:
        message = "GridSampler needs searchSpace: declare it, or use another sampler"
        problems = [Problem(field="searchSpace", message=message)]
    else:
        problems = [*_countable_problems("GridSampler", definition, free)]
    yield from problems
    yield from _condition_problems(definition, free)
    yield from _incomplete_trials(definition, free)
    if problems:
        return
    count = math.prod([len(values) for values in own.values()] if own else map(size, free))
    if count > LARGEST_GRID:
        message = (
            f"GridSampler supports up to {LARGEST_GRID:,} combinations, and these are {count:,}: use "
            "BruteForceSampler or another sampler, or fewer values"
        )
        yield Problem(field=sampler.field, message=message)


def _own_grid_problems(
    own: Mapping[str, Any], field: str, definition: StudyDefinition, free: list[Parameter]
) -> Iterator[Problem]:
    for name, values in own.items():
        if not isinstance(values, list) or not values:
            yield Problem(field=f"{field}.{name}", message=f"list the values of {name} to try")
        elif definition.search_space is not None:
            for value in values:
                yield from _point_problems(definition.search_space, {name: value}, field)
    missing = [parameter.name for parameter in free if parameter.name not in own]
    if missing:
        message = f"the values of {', '.join(missing)} are missing: list them, or remove this argument"
        yield Problem(field=field, message=message)


def _countable_problems(
    sampler: str, definition: StudyDefinition, free: list[Parameter]
) -> Iterator[Problem]:
    for index, parameter in enumerate(definition.search_space or []):
        if parameter not in free or size(parameter) <= LARGEST_GRID:
            continue
        many = "infinitely many" if size(parameter) == math.inf else f"{size(parameter):,}"
        fix = "give it a step" if parameter.step is None else "make its step larger"
        message = (
            f"{sampler} tries every value, but {parameter.name} has {many}: {fix}, or use another sampler"
        )
        yield Problem(field=f"searchSpace[{index}].step", message=message)


def _condition_problems(definition: StudyDefinition, free: list[Parameter]) -> Iterator[Problem]:
    for index, parameter in enumerate(definition.search_space or []):
        if parameter in free and parameter.when is not None:
            message = (
                f"GridSampler does not support conditions: it would repeat trials without "
                f"{parameter.name} for each of its values; use BruteForceSampler, or remove when"
            )
            yield Problem(field=f"searchSpace[{index}].when", message=message)


def _incomplete_trials(definition: StudyDefinition, free: list[Parameter]) -> Iterator[Problem]:
    for index, trial in enumerate(definition.initial_trials):
        missing = [parameter.name for parameter in free if parameter.name not in trial]
        if missing:
            message = f"GridSampler cannot choose the missing parameters: add {', '.join(missing)}"
            yield Problem(field=f"initialTrials[{index}]", message=message)
