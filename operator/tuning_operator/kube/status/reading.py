"""Reads a study whose spec or status may be from another version of the operator or of the CRD."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tuning_operator.protocol import Problem
from tuning_operator.resource.study import TuningStudySpec, TuningStudyStatus
from tuning_operator.resource.text import field_path

UNKNOWN = "extra_forbidden"
"""Pydantic's type of the error for a field that a model doesn't have."""
UNKNOWN_FIELD = (
    "this operator does not know the field, since it is older than the CRD: upgrade the operator, or remove "
    "the field"
)


def read_status(body: Mapping[str, Any]) -> TuningStudyStatus:
    """Read the status without what only another version of the operator can read."""
    status = body.get("status", {})
    try:
        return TuningStudyStatus.model_validate(status, extra="ignore")
    except ValidationError as error:
        unread = {detail["loc"][0] for detail in error.errors()}
        known = {field: value for field, value in status.items() if field not in unread}
        return TuningStudyStatus.model_validate(known, extra="ignore")


class SpecUnreadable(Exception):  # noqa: N818
    """The operator cannot read a spec that the CRD lets pass."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(str(problems))
        self.problems = problems


def read_spec(spec: Mapping[str, Any], *, started: bool) -> tuple[TuningStudySpec, tuple[str, ...]]:
    """Return the spec, and the fields that the operator doesn't know: a study that has started ignores them.

    Raises:
        SpecUnreadable: anything else is wrong, or the study has not started.
    """
    try:
        return TuningStudySpec.model_validate(spec), ()
    except ValidationError as error:
        unknown = _unknown_fields(error)
        if not unknown or not started:
            raise SpecUnreadable(_problems(error)) from error
        return TuningStudySpec.model_validate(spec, extra="ignore"), unknown


def _unknown_fields(error: ValidationError) -> tuple[str, ...]:
    """Return the fields of a spec that the operator doesn't know; empty if anything else is wrong as well."""
    details = error.errors()
    if any(detail["type"] != UNKNOWN for detail in details):
        return ()
    return tuple(field_path(detail["loc"]) for detail in details)


def _problems(error: ValidationError) -> tuple[Problem, ...]:
    return tuple(
        Problem(
            field=field_path(detail["loc"]),
            message=UNKNOWN_FIELD if detail["type"] == UNKNOWN else detail["msg"],
        )
        for detail in error.errors()
    )
