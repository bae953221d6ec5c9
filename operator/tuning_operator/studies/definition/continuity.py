"""Whether a definition can go on with the record of a study of this name."""

from collections.abc import Iterable, Sequence

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.studies.definition.samplers import to_optuna

MEND = "give the study another name, or delete its record"


def directions_of(definition: StudyDefinition) -> list[StudyDirection]:
    """Return the directions of the objectives."""
    return [StudyDirection[objective.direction.upper()] for objective in definition.objectives]


def direction_problems(
    name: str, recorded: Sequence[StudyDirection], definition: StudyDefinition
) -> list[Problem]:
    """Return what is wrong with the objectives, by the directions that the study was created with."""
    if list(recorded) == directions_of(definition):
        return []
    was = ", ".join(direction.name.lower() for direction in recorded)
    message = f"the record of {name} has the directions {was}, which cannot change: use these, {MEND}"
    return [Problem(field="objectives", message=message)]


def space_problems(name: str, trials: Iterable[FrozenTrial], definition: StudyDefinition) -> list[Problem]:
    """Return the declared parameters that Optuna could not keep beside those of earlier trials.

    Ranges may change; kind, scale and choices may not.
    """
    recorded: dict[str, BaseDistribution] = {}
    for trial in trials:
        recorded.update(trial.distributions)
    found = []
    for index, parameter in enumerate(definition.search_space or []):
        try:
            if old := recorded.get(parameter.name):
                check_distribution_compatibility(old, to_optuna(parameter))
        except ValueError as error:
            message = f"earlier trials of {name} have {parameter.name} as {old}: {error} Keep it, {MEND}"
            found.append(Problem(field=f"searchSpace[{index}]", message=message))
    return found
