"""Conditions of a study: kept in a fixed order, their times changed only with their status."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tuning_operator.protocol import Failure
from tuning_operator.resource.study import Condition, TuningStudyStatus

ORDER = ("Accepted", "Stalled", "Suspended", "Complete", "Failed")
MESSAGE_LIMIT = 2000
"""Characters; the API conventions allow 32768, people read less."""


Type = Literal["Accepted", "Stalled", "Suspended", "Complete", "Failed"]


@dataclass(frozen=True)
class Finding:
    """What a condition should say now."""

    type: Type
    holds: bool
    reason: str
    message: str


def rfc3339(moment: datetime) -> str:
    """Return the time as Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str | None) -> datetime | None:
    """Return the time of an API object's field; None for an absent one."""
    return datetime.fromisoformat(text) if text else None


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of a type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def holds(status: TuningStudyStatus, type_: str) -> bool:
    """Tell whether a condition is True."""
    found = find(status.conditions, type_)
    return found is not None and found.status == "True"


def apply(
    old: Sequence[Condition], findings: Iterable[Finding], generation: int, now: datetime
) -> list[Condition]:
    """Return the conditions after the findings; those without a finding stay as they are."""
    by_type = {condition.type: condition for condition in old}
    for finding in findings:
        by_type[finding.type] = _condition(by_type.get(finding.type), finding, generation, now)
    return [by_type[type_] for type_ in ORDER if type_ in by_type]


def _condition(old: Condition | None, finding: Finding, generation: int, now: datetime) -> Condition:
    status: Literal["True", "False"] = "True" if finding.holds else "False"
    unchanged = old is not None and old.status == status
    return Condition(
        type=finding.type,
        status=status,
        reason=finding.reason,
        message=shorten(finding.message),
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and unchanged else rfc3339(now),
    )


def told(failure: Failure) -> str:
    """Return what happened and what to do about it, in sentences."""
    message = failure.message.strip()
    return f"{as_sentence(message)} {failure.remedy}" if failure.remedy else message


def as_sentence(text: str) -> str:
    """Return the text with a full stop at its end, if it has none, so that another sentence can follow."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def shorten(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Cut a text that is too long in the middle: its beginning says what, its end often why."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
