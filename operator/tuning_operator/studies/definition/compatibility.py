"""Whether a definition is compatible with the record that a study of this name already has."""

from collections.abc import Iterable, Sequence

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.studies.definition.samplers import to_optuna


def directions_of(definition: StudyDefinition) -> list[StudyDirection]:
    """Return the directions of the objectives."""
    return [StudyDirection[objective.direction.upper()] for objective in definition.objectives]


def direction_problems(
    name: str, recorded: Sequence[StudyDirection], definition: StudyDefinition
) -> list[Problem]:
    """Return a problem where the directions are not those that the study was created with."""
    if list(recorded) == directions_of(definition):
        return []
    was = ", ".join(direction.name.lower() for direction in recorded)
    message = f"the record of {name} has the directions {was}, which can't change: keep them, {_fix(name)}"
    return [Problem(field="objectives", message=message)]


def space_problems(name: str, trials: Iterable[FrozenTrial], definition: StudyDefinition) -> list[Problem]:
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
                message = (
                    f"{_change(parameter.name, old, new)} in the record of {name}: keep it, {_fix(name)}"
                )
                found.append(Problem(field=f"searchSpace[{index}]", message=message))
    return found


def _change(parameter: str, old: BaseDistribution, new: BaseDistribution) -> str:
    if isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution):
        return f"the choices of {parameter} can't change from {list(old.choices)}"
    if type(old) is type(new):
        return (
            f"the scale of {parameter} can't change from {'log' if getattr(old, 'log', False) else 'linear'}"
        )
    kind = type(old).__name__.removesuffix("Distribution").lower()
    return f"the type of {parameter} can't change from {kind}"


def _fix(name: str) -> str:
    return (
        "give the study another name, or delete the record "
        f"(optuna delete-study --study-name {name} --storage URL)"
    )
