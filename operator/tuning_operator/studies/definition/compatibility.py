"""Whether a definition is compatible with the record that a study of this name already has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Problem, StudyDefinition, StudyKey
from tuning_operator.resource import names, space
from tuning_operator.resource.space.values import is_number, same, shown
from tuning_operator.resource.study import Parameter
from tuning_operator.studies.definition.samplers import to_optuna, uses


def directions_of(definition: StudyDefinition) -> list[StudyDirection]:
    """Return the directions of the objectives."""
    return [StudyDirection[objective.direction.upper()] for objective in definition.objectives]


def direction_problems(
    name: str, recorded: Sequence[StudyDirection], definition: StudyDefinition, fix: str
) -> list[Problem]:
    """Return a problem where the directions are not those that the study was created with."""
    if list(recorded) == directions_of(definition):
        return []
    was = ", ".join(direction.name.lower() for direction in recorded)
    message = f"the record of {name} has the directions {was}, which can't change: keep them, {fix}"
    return [Problem(field="objectives", message=message)]


def space_problems(
    name: str, trials: Iterable[FrozenTrial], definition: StudyDefinition, fix: str
) -> list[Problem]:
    """Return the declared parameters that Optuna could not store next to those of earlier trials.

    Ranges may change; kind, scale and choices may not.
    """
    recorded: dict[str, BaseDistribution] = {}
    for trial in trials:
        recorded.update(trial.distributions)
    found = []
    for index, parameter in enumerate(definition.search_space or []):
        if old := recorded.get(parameter.name):
            new = to_optuna(parameter)
            try:
                check_distribution_compatibility(old, new)
            except ValueError:
                message = f"{_change(parameter.name, old, new)} in the record of {name}: keep it, {fix}"
                found.append(Problem(field=f"searchSpace[{index}]", message=message))
    return found


def brute_force_problems(
    name: str, trials: Iterable[FrozenTrial], definition: StudyDefinition, fix: str
) -> list[Problem]:
    """Return the declared parameters whose range differs from that of a trial, for a BruteForceSampler.

    Optuna's can't read such a trial: it would not propose another one.
    """
    if not uses("BruteForceSampler", definition):
        return []
    found = {}
    declared = {p.name: (index, to_optuna(p)) for index, p in enumerate(definition.search_space or [])}
    for trial in trials:
        for parameter, old in trial.distributions.items():
            index, new = declared.get(parameter, (0, old))
            if old != new:
                message = (
                    f"BruteForceSampler needs the same values of {parameter} in all trials, and trial "
                    f"{trial.number} in the record of {name} has others to choose from: keep them, use "
                    f"another sampler, {fix}"
                )
                found[index] = Problem(field=f"searchSpace[{index}]", message=message)
    return [*found.values()]


def _change(parameter: str, old: BaseDistribution, new: BaseDistribution) -> str:
    if isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution):
        return f"the choices of {parameter} can't change from {list(old.choices)}"
    if type(old) is type(new):
        return (
            f"the scale of {parameter} can't change from {'log' if getattr(old, 'log', False) else 'linear'}"
        )
    kind = type(old).__name__.removesuffix("Distribution").lower()
    return f"the type of {parameter} can't change from {kind}"


def metric_problems(
    name: str, recorded: StudyDefinition, definition: StudyDefinition, fix: str
) -> list[Problem]:
    """Return a problem where the metrics are not those whose values are in the record."""
    was = [objective.metric for objective in recorded.objectives]
    if was == [objective.metric for objective in definition.objectives]:
        return []
    what = f"metric {was[0]}" if len(was) == 1 else f"metrics {', '.join(was)}"
    message = f"the record of {name} has values of the {what}: keep the {what.split()[0]}, {fix}"
    return [Problem(field="objectives", message=message)]


def value_problems(
    name: str, trials: Iterable[FrozenTrial], definition: StudyDefinition, fix: str
) -> list[Problem]:
    """Return a problem for each parameter for which a trial does not fit the search space.

    Failed trials may have any values. Trials that are still to be started have those they were enqueued with.
    """
    declared = definition.search_space
    if declared is None:
        return []
    found: dict[str, Problem] = {}
    places = {parameter.name: index for index, parameter in enumerate(declared)}
    distributions = {parameter.name: to_optuna(parameter) for parameter in declared}
    for trial in trials:
        if trial.state == TrialState.FAIL:  # no sampler and no result uses it
            continue
        record = f"trial {trial.number} in the record of {name}"
        parameters = trial.params or trial.system_attrs.get("fixed_params", {})
        for parameter, value in parameters.items():
            place = places.get(parameter)
            if place is None:
                message = f"{record} has the parameter {parameter}, which is not declared: declare it, {fix}"
                found.setdefault("searchSpace", Problem(field="searchSpace", message=message))
            elif not allows(declared[place], distributions[parameter], value):
                message = (
                    f"{record} has {parameter} = {shown(value)}, which the search space excludes: "
                    f"include it, {fix}"
                )
                field = f"searchSpace[{place}]"
                found.setdefault(field, Problem(field=field, message=message))
        if trial.state == TrialState.COMPLETE and (lacking := _lacking(declared, parameters)):
            message = f"{record} has no parameter {lacking}: remove it, {fix}"
            field = f"searchSpace[{places[lacking]}]"
            found.setdefault(field, Problem(field=field, message=message))
    return list(found.values())


def allows(parameter: Parameter, distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a parameter can have a value; Optuna treats true as 1, and would convert "1"."""
    if parameter.type == "categorical":
        return any(same(value, choice) for choice in parameter.choices or ())
    return is_number(value) and distribution._contains(  # noqa: SLF001  Optuna's own rule, steps and rounding included
        distribution.to_internal_repr(value)
    )


def ways_out(key: StudyKey, recorded: StudyDefinition | None) -> str:
    """Return the advice on a record that no earlier resource left.

    Args:
        key: the study.
        recorded: the definition in the record; None if plain Optuna wrote it.
    """
    if key.namespace == names.LOCAL_NAMESPACE:
        how = f"delete it with its trials (tuning rm {key.name})"
    elif recorded and recorded.uid:
        how = (
            "delete the TuningStudy and apply it again with existingRecord: Replace, which deletes the record"
        )
    else:  # only the record of an earlier resource can be replaced
        name = names.optuna_study_name(*key)
        how = f"delete the record (optuna delete-study --study-name {name} --storage URL)"
    return f"give the study another name, or {how}"


def _lacking(declared: list[Parameter], parameters: Mapping[str, Any]) -> str | None:
    """Return the first parameter that a trial should have, given the values of those before it."""
    chosen: dict[str, Any] = {}
    while parameter := space.next_parameter(declared, chosen):
        if parameter.name not in parameters:
            return parameter.name
        chosen[parameter.name] = parameters[parameter.name]
    return None
