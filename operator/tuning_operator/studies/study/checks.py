"""What a study refuses to do, and why."""

import json
import math
from collections.abc import Sequence

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import AttributesRequest, Problem, StudyDefinition, SuggestRequest
from tuning_operator.studies.errors import Conflict, Refused


def started(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial, if it runs or has ended. Raises Conflict."""
    if trial.state == TrialState.WAITING:
        message = f"trial {trial.number} waits in the queue: it has not been started"
        raise Conflict(Problem(field="trial", message=message))
    return trial


def distribution_of(request: SuggestRequest) -> BaseDistribution:
    """Return what a request asks a value from. Raises Refused."""
    try:
        return json_to_distribution(json.dumps(request.distribution))
    except (ValueError, KeyError, TypeError) as error:
        raise refused("distribution", f"is not Optuna's JSON form of a distribution: {error!r}") from None


def check_suggestible(trial: FrozenTrial, name: str, definition: StudyDefinition) -> None:
    """Check that a trial has a parameter, or may get it. Raises StudyError."""
    if name in trial.params:
        return
    if trial.state.is_finished():
        message = f"trial {trial.number} has ended already ({trial.state.name})"
        raise Conflict(Problem(field="trial", message=message))
    if definition.search_space is not None:
        raise refused(
            name,
            f"spec.searchSpace gives trial {trial.number} no parameter {name}: declare it there, or leave "
            "searchSpace out, so that the objective suggests its own",
        )


def check_reportable(definition: StudyDefinition, values: Sequence[tuple[int, float]]) -> None:
    """Check that a trial may report intermediate values. Raises Refused."""
    if len(definition.objectives) > 1:
        raise refused("values", "a study with several objectives takes no intermediate values (Optuna)")
    if any(step < 0 for step, _ in values):
        raise refused("values", "a step must not be negative: count from 0")


def check_constraints(request: AttributesRequest) -> None:
    """Check that constraint values are numbers. Raises Refused."""
    for key, value in request.constraints.items():
        if math.isnan(value):
            raise refused(f"constraints.{key}", "NaN says neither feasible nor infeasible: tell a number")


def refused(field: str, message: str) -> Refused:
    """Return the error for something that can never work."""
    return Refused(Problem(field=field, message=message))
