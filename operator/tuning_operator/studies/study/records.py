"""Optuna's trials as the protocol's records."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Failure, StudyDefinition, TrialRecord, TrialView
from tuning_operator.protocol import TrialState as State

DEFINITION = "tuning:definition"
"""A study's system attribute: its definition, so that a server that starts needs no operator."""
COPIED_FROM = "tuning:copied_from"
"""A trial's system attribute: the study and the number of the trial of which it is a copy (warm start)."""
PRUNE_REQUESTED = "tuning:prune_requested"
"""A trial's system attribute: when it was first told to stop."""
FAIL_REASON = "fail_reason"
"""The system attribute in which Optuna itself used to keep it, and Optuna's dashboard looks for it."""
FAILURE = "failure_"
"""User attributes `failure_category`, `failure_message`, `failure_remedy` and `failure_traceback`."""


def definition_in(system_attrs: Mapping[str, Any]) -> StudyDefinition | None:
    """Return the definition that a study's system attributes hold."""
    stored = system_attrs.get(DEFINITION)
    return None if stored is None else StudyDefinition.model_validate_json(stored)


def is_copied(trial: FrozenTrial) -> bool:
    """Return whether a trial was run in another study."""
    return COPIED_FROM in trial.system_attrs


def failure_attrs(failure: Failure) -> dict[str, str]:
    """Return the user attributes that keep a failure."""
    fields = failure.model_dump(exclude_none=True)
    return {FAILURE + field: text for field, text in fields.items()}


def failure_of(trial: FrozenTrial) -> Failure | None:
    """Return why a trial failed; None where it did not, or the one who told it gave no reason."""
    if trial.state != TrialState.FAIL:
        return None
    attrs = trial.user_attrs
    message = attrs.get(FAILURE + "message", trial.system_attrs.get(FAIL_REASON))
    if message is None:
        return None
    return Failure(
        category=str(attrs.get(FAILURE + "category", "Unknown")),
        message=str(message),
        remedy=_text(attrs.get(FAILURE + "remedy")),
        traceback=_text(attrs.get(FAILURE + "traceback")),
    )


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Return a trial as the protocol has it."""
    requested = trial.system_attrs.get(PRUNE_REQUESTED)
    return TrialRecord.model_construct(  # from Optuna's own types: nothing to validate
        number=trial.number,
        state=cast("State", trial.state.name),
        parameters=trial.params,
        values=trial.values,
        started=utc(trial.datetime_start),
        finished=utc(trial.datetime_complete),
        prune_requested=datetime.fromisoformat(requested) if requested else None,
        failure=failure_of(trial),
    )


def view_of(trial: FrozenTrial, definition: StudyDefinition) -> TrialView:
    """Return what the trial's pod needs of it."""
    return TrialView.model_construct(
        trial=record_of(trial),
        objectives=definition.objectives,
        fixed=definition.search_space is not None,
        distributions={
            name: json.loads(distribution_to_json(kind)) for name, kind in trial.distributions.items()
        },
        reported=trial.intermediate_values,
        user_attrs=trial.user_attrs,
        constraints=trial.constraints,
    )


def utc(moment: datetime | None) -> datetime | None:
    """Return one of Optuna's times, which are naive and local, in UTC."""
    return moment and moment.astimezone(UTC)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
