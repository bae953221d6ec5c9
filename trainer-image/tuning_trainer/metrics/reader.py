"""Reads metrics from lines of text: `accuracy=0.93`, `epoch 3 loss: 0.2`, JSON, tables, a pattern.

A line may have a megabyte, and a search can't be interrupted. So what is searched once takes time in
proportion to the line, and what is searched for each mention of a metric looks no further than the next one,
or a fixed distance.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Union

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.metrics.records import Leaf, leaves, split_objects
from tuning_trainer.metrics.steps import NOWHERE, Position
from tuning_trainer.metrics.tables import Table
from tuning_trainer.metrics.values import Unreadable, Value, plain_signs, read_value, value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEP_NAMES = ("global_step", "step", "iteration", "iter", "batch")
"""What a line may call a step within the training, beside `epoch`; the first of them that it has counts."""

OTHER_CASE, STANDARD_ERROR, LOOSE = 1, 2, 4
"""What makes a value weaker than others, which replace it: Accuracy for accuracy, a line on standard error,
`accuracy 0.5` without a sign between."""

KEPT_LINES, KEPT_LENGTH, KEPT_NAMES = 3, 200, 10
FARTHEST_KEY = 200
"""Characters between a metric's name and the keys of its name and its value."""

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])"
)
_COUNT = r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:\.[0-9]+)?)(?!\w|[.,][0-9])"
_COUNTS = {
    name: re.compile(rf"(?<![\w.\-]){name}[\"']?\s*(?:[=:#]\s*)?(?:[\"'\[(]\s*)?{_COUNT}", re.IGNORECASE)
    for name in ("epoch", *STEP_NAMES)
}

_SIGN = re.compile(r"""[\\"'`*]{0,3}(?:\s*\.{3,})?\s*(?::=|[-=]>|→|=(?!=)|:(?!:))\*{0,2}""")
_SPACE = re.compile(
    r"""["'`*]?\s+(?=[-+]?\.?[0-9]|[-+]?(?:nan|inf(?:inity)?)(?!\w)"""
    r"""|(?:\w+\.)*(?:tensor|array|float[0-9]*|bfloat16|decimal)\()""",
    re.IGNORECASE,
)
_PROGRESS_BAR = re.compile(r"\s*[0-9]+%\s?\|[^|]*\|")  # of something that is called like the metric
_SEVERAL = re.compile(
    r"\s*[-+]?\.?[0-9]\S*(?:(?:(?:[;|]|(?<=%),)?\s+|\s+[,;|]\s+)[-+]?\.?[0-9][0-9.,e+\-]*%?)+\s*$"
)
_NUMERALS = re.compile(r"\s*[-+]?[.,]?[0-9][0-9.,_'/% ]*(?!\w)")
_NAME_KEY = re.compile(
    r"""(?<![\w.])(?:metric[_ ]?name|metric|name|key|tag)[\\"']*\s*[=:]\s*[\\"']*$""", re.IGNORECASE
)
_VALUE_KEY = re.compile(
    rf"""[^{{}}]{{0,{FARTHEST_KEY}}}?(?<![\w.])(?:metric[_ ]?value|value|val)[\\"']*\s*[=:]""", re.IGNORECASE
)
_ANY_VALUE = re.compile(r"""(?<![\w./\-])([A-Za-z_][\w./\-]*)["']?\s*[=:]\s*["']?[-+]?\.?[0-9]""")
_CUT_BEFORE = re.compile(r"(?:[0-9][.,_']?|(?<![\w)])-)$")
_CUT_AFTER = re.compile(r"[0-9]|[.,_'][0-9]|[eE][-+]?[0-9]")


class Found(NamedTuple):
    """What was found beside a metric's name."""

    value: Union[float, Unreadable]  # noqa: UP007  Python 3.9 evaluates it
    weakness: int = 0


class Reading(NamedTuple):
    """What one line says."""

    position: Position
    values: dict[str, float]


class MetricReader:
    """Finds the study's metrics in lines of text, and remembers the last value of each."""

    def __init__(self, metrics: Sequence[str], pattern: str | None = None) -> None:
        """Prepare to look for metrics, by a regular expression of the user's if there is one.

        Raises:
            TrialFailure: the expression has an error or names no metric.
        """
        self.last: dict[str, float] = {}
        self.unreadable: dict[str, str] = {}
        """By metric, the line whose value cannot be read and why, as long as no other value follows."""
        self._metrics = list(metrics)
        self._pattern = _compile(pattern, self._metrics) if pattern else None
        self._mentions = {name: _mention(name) for name in metrics}
        self._weakness: dict[str, int] = {}
        self._tables = {on_error: Table(metrics) for on_error in (False, True)}
        self._needles = [re.split(r"[./\s]", name.casefold())[-1] for name in metrics]
        self._similar: dict[str, None] = {}
        self._other_names: dict[str, None] = {}

    def read(self, line: str, *, on_error: bool = False) -> Reading:
        """Return what a line says; of one redrawn with carriage returns, its last state that has a value.

        Args:
            line: with or without its end.
            on_error: it comes from standard error, which counts only as long as no other line has the metric.
        """
        position = NOWHERE
        found: dict[str, Found] = {}
        for state in reversed(states(line)):
            at, found = self._state(state, on_error)
            position = at if found or position == NOWHERE else position
            if found:
                break
        values = {}
        for name, (value, weakness) in found.items():
            weakness += STANDARD_ERROR * on_error
            if weakness > self._weakness.setdefault(name, weakness):
                continue
            self._weakness[name] = weakness
            self.last.pop(name, None)
            self.unreadable.pop(name, None)
            if isinstance(value, Unreadable):
                self.unreadable[name] = f"{quoted(line)}: {value.reason}"
            else:
                values[name] = self.last[name] = value
        return Reading(position, values)

    def missing(self) -> Failure | None:
        """Return why there is no value for some of the metrics, None if each has one."""
        if self.unreadable:
            name, line = next(iter(self.unreadable.items()))
            return Failure(
                "MetricUnreadable",
                f"The value of {name} can't be read in the line {line}.",
                f"Print it as a plain number, for example {name}=0.93, "
                + ("and let spec.trial.metrics.pattern match all of it." if self._pattern else _OR_A_PATTERN),
            )
        absent = [name for name in self._metrics if name not in self.last]
        if not absent:
            return None
        message = f"The program succeeded, but no line of its output has a value for {' or '.join(absent)}."
        if self._pattern:
            message = (
                f"The program succeeded, but no line of its output matched spec.trial.metrics.pattern "
                f"({self._pattern.pattern}) with a value for {' or '.join(absent)}."
            )
            remedy = (
                "Correct the pattern: it is searched for in each line of output, after colors are removed."
            )
            return Failure("MetricMissing", message + self._clues(), remedy)
        return Failure("MetricMissing", message + self._clues(), _HOW_TO_PRINT % absent[0])

    def _clues(self) -> str:
        if self._similar:
            return f" Similar lines: {'; '.join(self._similar)}."
        if self._other_names:
            return f" It has values for {', '.join(self._other_names)}."
        return ""

    def _state(self, text: str, on_error: bool) -> tuple[Position, dict[str, Found]]:
        if self._pattern is not None:
            position, found = self._by_pattern(self._pattern, text)
        else:
            text = plain_signs(text)
            row = self._tables[on_error].read(text)
            if row is not None:
                cells = [Leaf((column,), cell) for column, cell in row]
                position, found = _position(cells), self._in_leaves(cells)
            else:
                position, found = self._in_line(text)
        if not found:
            self._note(text)
        return position, found

    def _note(self, text: str) -> None:
        """Keep what helps to say why there is no value."""
        if len(self._similar) < KEPT_LINES and self._may_name_one(text):
            self._similar[quoted(text)] = None
        if len(self._other_names) < KEPT_NAMES:
            names = (match[1] for match in _ANY_VALUE.finditer(text))
            self._other_names.update(dict.fromkeys(name for name in names if name.lower() not in _COUNTS))

    def _may_name_one(self, text: str) -> bool:
        folded = text.casefold()
        return any(needle in folded for needle in self._needles)

    def _in_line(self, text: str) -> tuple[Position, dict[str, Found]]:
        """Read the objects in a line, then the text around them."""
        if not self._may_name_one(text):
            return _position_in_text(text), {}
        objects, around = split_objects(text)
        position, found = _position_in_text(around), self._in_text(around)
        for thing in objects:
            inside = list(leaves(thing))
            at, values = _position(inside), self._in_leaves(inside)
            if not values:  # a record of a log, whose message has the metric
                messages = [state for leaf in inside for state in states(plain_signs(leaf.text))]
                for message_at, of_message in map(self._in_line, messages):
                    at = at if at != NOWHERE else message_at
                    values.update(of_message)
            position = at if at != NOWHERE else position
            found.update(values)
        return position, found

    def _in_text(self, text: str) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for name, mention in self._mentions.items():
            for place in mention.finditer(text):
                value, weakness = _beside(text, place)
                weakness += OTHER_CASE * (place[0] != name)
                if value is not None and (name not in found or weakness <= found[name].weakness):
                    found[name] = Found(value, weakness)
        return found

    def _in_leaves(self, inside: list[Leaf]) -> dict[str, Found]:
        """Find metrics among an object's leaves; of several with the name, the least nested counts."""
        found: dict[str, Found] = {}
        for name in self._metrics:
            exact = [leaf for leaf in inside if leaf.is_called(name)]
            others = [leaf for leaf in inside if leaf.folded().is_called(name.casefold())]
            for weakness, called in enumerate((exact, others)):
                numbers = [(len(leaf.path), value) for leaf in called if (value := leaf.read()) is not None]
                values = {repr(value): value for depth, value in numbers if depth == numbers[0][0]}
                if values:
                    several = Unreadable(f"it has several values for {name}: {', '.join(values)}")
                    found[name] = Found(numbers[0][1] if len(values) == 1 else several, weakness)
                    break
        return found

    def _by_pattern(self, pattern: re.Pattern[str], text: str) -> tuple[Position, dict[str, Found]]:
        position, found = NOWHERE, {}
        for match in pattern.finditer(text):
            groups: dict[str, int | str] = {name: name for name in pattern.groupindex}
            if not groups:
                groups = {self._metrics[0]: 1}
            elif "name" in groups and match["name"]:
                groups[match["name"]] = "value"
            at = _position([Leaf((name,), match[group]) for name, group in groups.items()])
            position = at if at != NOWHERE else position
            for name in self._metrics:
                if name in groups and match[groups[name]]:
                    value = _whole(text, *match.span(groups[name]))
                    found.update({} if value is None else {name: Found(value)})
        return position, found


_OR_A_PATTERN = "or set spec.trial.metrics.pattern."
_HOW_TO_PRINT = (
    "Print a line such as %s=0.93, or append a JSON line to the file named by TUNING_METRICS_FILE; the name "
    "must be that of spec.objectives. For output that you can't change, set spec.trial.metrics.pattern."
)


def shown(line: str) -> str:
    """Return what a terminal shows of a line: without colours, the last state of a redrawn one."""
    return "".join(states(line)[-1:])


def quoted(line: str) -> str:
    """Return a line as a message quotes it, cut to a sensible length."""
    text = " ".join(shown(line).split())
    return repr(text if len(text) <= KEPT_LENGTH else text[: KEPT_LENGTH - 3] + "...")


def states(line: str) -> list[str]:
    """Return what a terminal shows of a line, one text for each time it is redrawn; without colours."""
    return [state for state in re.split(r"[\r\n]", _ESCAPES.sub("", line)) if state.strip()]


def _mention(name: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, name.split()))
    return re.compile(rf"(?<![\w.\-/@]){words}", re.IGNORECASE)


def _beside(text: str, place: re.Match[str]) -> tuple[Value, int]:
    """Return the value that belongs to a metric's name, and how weak it is."""
    start = max(place.start() - FARTHEST_KEY, 0)
    if _NAME_KEY.search(text, start, place.start()) and (key := _VALUE_KEY.match(text, place.end())):
        return value_at(text, key.end()), 0
    if sign := _SIGN.match(text, place.end()):
        if _PROGRESS_BAR.match(text, sign.end()):
            return None, 0
        value = value_at(text, sign.end())
        if isinstance(value, float) and (numbers := _SEVERAL.match(text, sign.end())):
            value = Unreadable(f"{numbers[0].strip()!r} are several numbers")
        return value, 0
    if space := _SPACE.match(text, place.end()):
        value = value_at(text, space.end())
        is_word = isinstance(value, Unreadable) and not _NUMERALS.match(text, space.end())  # 2nd
        return None if is_word else value, LOOSE
    return None, 0


def _position_in_text(text: str) -> Position:
    matches = {name: count.search(text) for name, count in _COUNTS.items()}
    return _position(Leaf((name,), match[1]) for name, match in matches.items() if match)


def _position(inside: Iterable[Leaf]) -> Position:
    """Return the position that an object has; of several values with a name, the first."""
    counts: dict[str, float] = {}
    for leaf in inside:
        name = leaf.path[-1].casefold()
        count = re.match(_COUNT, str(leaf.value).lstrip()) if name in _COUNTS else None  # 3, "3", 3/10, 2.5
        if count:
            counts.setdefault(name, float(count[1].replace(",", "")))
    step = next((counts[name] for name in STEP_NAMES if name in counts), None)
    return Position(counts.get("epoch"), step)


def _whole(text: str, start: int, end: int) -> Value:
    """Return a pattern's group as a number, unless it has only a part of one."""
    value = read_value(text[start:end])
    begins = text[start].isdigit() and _CUT_BEFORE.search(text, max(start - 2, 0), start)
    ends = text[end - 1].isdigit() and _CUT_AFTER.match(text, end)
    if isinstance(value, float) and (begins or ends):
        return Unreadable(f"the pattern matches only {text[start:end]!r} of the number")
    return value


def _compile(pattern: str, metrics: list[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _bad_pattern(
            f"The pattern {pattern!r} is not a valid regular expression: {error}.", metrics
        ) from None
    groups = set(compiled.groupindex)
    plain = not groups and compiled.groups == 1 and len(metrics) == 1
    if not (plain or {"name", "value"} <= groups or set(metrics) & groups):
        raise _bad_pattern(f"The pattern {pattern!r} has no group for {' or '.join(metrics)}.", metrics)
    return compiled


def _bad_pattern(message: str, metrics: list[str]) -> TrialFailure:
    named = (
        f"Name a group after the metric, (?P<{metrics[0]}>...), or" if metrics[0].isidentifier() else "Use"
    )
    single = ", or a single group" if len(metrics) == 1 else ""
    return TrialFailure(Failure("Metrics", message, f"{named} two groups `name` and `value`{single}."))
