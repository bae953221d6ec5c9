"""Conditions of a study: kept in a fixed order, their times changed only with their status."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tuning_operator.resource.study import Condition
from tuning_operator.resource.text import shorten
from tuning_operator.resource.times import rfc3339

ORDER = ("Accepted", "Stalled", "Suspended", "Complete", "Failed", "Contested")
MESSAGE_LIMIT = 2000
"""Characters; the API conventions allow 32768, people read less."""
CONTINUED = "RecordContinued"
"""The reason of Accepted, and of an Event, when the study continues the record of an earlier TuningStudy."""
IGNORED = "FieldsIgnored"
"""The reason of Accepted, and of an Event, when the spec has fields that only a newer operator knows."""
YIELDING = "YieldingGpus"
"""The reason of Stalled, and of an Event, while an elastic study gives back GPUs."""

Type = Literal["Accepted", "Stalled", "Suspended", "Complete", "Failed", "Contested"]


@dataclass(frozen=True)
class Finding:
    """What a condition should be now."""

    type: Type
    holds: bool
    reason: str
    message: str


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of a type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def apply(
    old: Sequence[Condition], findings: Iterable[Finding], generation: int, now: datetime
) -> list[Condition]:
    """Return the conditions after the findings; those without a finding stay as they are."""
    by_type = {condition.type: condition for condition in old}
    for finding in findings:
        by_type[finding.type] = _condition(by_type.get(finding.type), finding, generation, now)
    return [by_type[type_] for type_ in ORDER if type_ in by_type]


def last_transition(conditions: Iterable[Condition]) -> str | None:
    """Return when a condition changed last."""
    return max((condition.last_transition_time for condition in conditions), default=None)


def _condition(old: Condition | None, finding: Finding, generation: int, now: datetime) -> Condition:
    status: Literal["True", "False"] = "True" if finding.holds else "False"
    unchanged = old is not None and old.status == status
    return Condition(
        type=finding.type,
        status=status,
        reason=finding.reason,
        message=shorten(finding.message, MESSAGE_LIMIT),
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and unchanged else rfc3339(now),
    )
