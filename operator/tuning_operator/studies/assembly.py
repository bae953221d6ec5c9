"""A study's definition becomes Optuna's objects."""

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource.study import Parameter, When


def build_sampler(definition: StudyDefinition) -> BaseSampler:
    args = dict(definition.sampler.args)
    if definition.sampler.name == "GridSampler":
        args.setdefault(
            "search_space", {p.name: p.choices or _steps(p) for p in definition.search_space or []}
        )
    return getattr(optuna.samplers, definition.sampler.name)(**args)  # type: ignore[no-any-return]


def build_pruner(definition: StudyDefinition) -> BasePruner:
    if definition.pruner is None:
        one = len(definition.objectives) == 1
        return optuna.pruners.MedianPruner() if one else optuna.pruners.NopPruner()
    return getattr(optuna.pruners, definition.pruner.name)(**definition.pruner.args)  # type: ignore[no-any-return]


def problems_of(definition: StudyDefinition) -> list[Problem]:
    found = []
    for field, build in (("sampler", build_sampler), ("pruner", build_pruner)):
        try:
            build(definition)
        except (TypeError, ValueError, AttributeError, ImportError) as error:
            found.append(Problem(field=field, message=str(error)))
    return found


def distribution(parameter: Parameter) -> BaseDistribution:
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.type == "categorical":
        return CategoricalDistribution(parameter.choices or [])
    if parameter.type == "int":
        return IntDistribution(int(low or 0), int(high or 0), log=parameter.log, step=int(step or 1))
    return FloatDistribution(low or 0.0, high or 0.0, log=parameter.log, step=step)


def exists(parameter: Parameter, chosen: dict[str, Any]) -> bool:
    return parameter.when is None or _holds(parameter.when, chosen)


def _holds(when: When, chosen: dict[str, Any]) -> bool:
    if when.parameter not in chosen:
        return False
    value = chosen[when.parameter]
    if when.at_least is not None:
        return bool(value >= when.at_least)
    if when.at_most is not None:
        return bool(value <= when.at_most)
    return value in (when.any_of if when.any_of is not None else [when.equals])


def _steps(parameter: Parameter) -> list[float]:
    values, step = [], parameter.step or 1
    value = parameter.low or 0
    while value <= (parameter.high or 0):
        values.append(int(value) if parameter.type == "int" else value)
        value += step
    return values
