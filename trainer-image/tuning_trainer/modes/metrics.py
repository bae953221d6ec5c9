"""Reads metrics from what a program writes: `accuracy=0.93`, `epoch=3 loss: 0.2`, JSON, a pattern."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.failure import Failure, TrialFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP_NAMES = ("step", "global_step", "epoch", "iteration", "iter")
"""What a line may call the step that its metrics belong to; the first of them that it has counts."""

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?![\w])"
_STEP = r"(?<![\w.\-])%s[\"']?\s*[=:#]?\s*[\"']?(\d+)(?:\.0+)?(?![\w]|\.\d)"


class Reading(NamedTuple):
    """What one line says."""

    step: int | None
    values: dict[str, float]


class MetricReader:
    """Finds the study's metrics in lines of text."""

    def __init__(self, metrics: Sequence[str], pattern: str | None = None) -> None:
        """Prepare to look for metrics, by a regular expression of the user's if there is one.

        Raises:
            TrialFailure: the expression has an error or names no metric.
        """
        self._metrics = list(metrics)
        self._pattern = _compile(pattern, self._metrics) if pattern else None
        self._values = {name: _named(name) for name in metrics}
        self._steps = [re.compile(_STEP % name, re.IGNORECASE) for name in STEP_NAMES]

    def read(self, line: str) -> Reading:
        """Return the step and the metrics of a line; of one redrawn with carriage returns the last state."""
        line = line.rstrip("\r\n").rpartition("\r")[2]
        if self._pattern is not None:
            return self._by_pattern(self._pattern, line)
        return self._json(line) or self._text(line)

    def _json(self, line: str) -> Reading | None:
        if not line.lstrip().startswith("{"):
            return None
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        steps = (entry.get(name) for name in STEP_NAMES)
        return Reading(next((int(step) for step in steps if _is_step(step)), None), self._numbers(entry))

    def _text(self, line: str) -> Reading:
        found = {name: form.findall(line) for name, form in self._values.items()}
        matches = (form.search(line) for form in self._steps)
        step = next((int(match[1]) for match in matches if match), None)
        return Reading(step, {name: float(texts[-1]) for name, texts in found.items() if texts})

    def _by_pattern(self, pattern: re.Pattern[str], line: str) -> Reading:
        step: int | None = None
        values: dict[str, float] = {}
        for match in pattern.finditer(line):
            groups = match.groupdict() or {self._metrics[0]: match[1]}
            if groups.get("name"):
                groups[groups["name"]] = groups.get("value")
            said = _number(groups.get("step"))
            step = int(said) if said is not None and _is_step(said) else step
            values.update(self._numbers(groups))
        return Reading(step, values)

    def _numbers(self, entry: dict[str, Any]) -> dict[str, float]:
        found = {name: _number(entry.get(name)) for name in self._metrics}
        return {name: number for name, number in found.items() if number is not None}


class Steps:
    """Gives each reading its step: its own, that of a heading before it (`Epoch 3/10`), or the next."""

    def __init__(self) -> None:
        self._heading: int | None = None
        self._used: set[int] = set()

    def of(self, reading: Reading) -> int | None:
        """Return the step of a reading; None if it has no metric, or the step is not a new one."""
        step = reading.step
        if not reading.values:
            self._heading = step if step is not None else self._heading
            return None
        if step is None:
            step = max(self._used, default=-1) + 1 if self._heading is None else self._heading
            self._heading = None
        if step in self._used:
            return None
        self._used.add(step)
        return step


def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.\-/]){re.escape(name)}[\"']?\s*[=:]\s*[\"']?({_NUMBER})", re.IGNORECASE)


def _compile(pattern: str, metrics: list[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _bad_pattern(f"The pattern {pattern!r} is no regular expression: {error}.") from None
    groups = set(compiled.groupindex)
    plain = not groups and compiled.groups == 1 and len(metrics) == 1
    if not (plain or {"name", "value"} <= groups or set(metrics) & {*groups}):
        raise _bad_pattern(f"The pattern {pattern!r} has no group for {' or '.join(metrics)}.")
    return compiled


def _bad_pattern(message: str) -> TrialFailure:
    remedy = "Name a group after the metric, (?P<accuracy>...), or two groups `name` and `value`."
    return TrialFailure(Failure("Metrics", message, remedy))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _is_step(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value >= 0 and float(value).is_integer()
