"""Arguments of Optuna's classes as a manifest gives them, checked against the classes' own signatures."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from tuning_operator.protocol import Problem
from tuning_operator.resource.space.values import is_number


class Kind(NamedTuple):
    """What an annotation means for data: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return is_number(value) and float(value).is_integer()


def _is_matrix(value: Any) -> bool:
    rows = value if isinstance(value, list) else []
    widths = {len(row) if isinstance(row, list) and all(map(is_number, row)) else 0 for row in rows}
    return len(widths) == 1 and 0 not in widths


KINDS = {
    "Any": Kind("a value", lambda _: True),
    "None": Kind("null", lambda value: value is None),
    "bool": Kind("true or false", lambda value: isinstance(value, bool)),
    "dict": Kind("a mapping from parameter to value", lambda value: isinstance(value, Mapping)),
    "float": Kind("a number", is_number),
    "int": Kind("a whole number", _is_whole),
    "Mapping": Kind("a mapping from parameter to values", lambda value: isinstance(value, Mapping)),
    "np.ndarray": Kind("a list of lists of numbers, all of one length", _is_matrix),
    "str": Kind("a text", lambda value: isinstance(value, str)),
}
"""Kinds of arguments that data can be, by their annotations without what is in brackets."""

LEAST = {"dividing_parameter": 1, "n_ei_candidates": 1, "n_startup_trials": 0}
"""Smallest values that make sense where Optuna itself does not check."""

INSTEAD = {
    "constraints_func": "let the objective call trial.set_constraint(name, value) instead",
}
"""What to do in place of arguments that only a program can give."""


def alternatives(parameter: inspect.Parameter) -> list[str]:
    """Return the names of an annotation's alternatives without what is in brackets: [`Callable`, `None`]."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = shorter
    return [name.strip() for name in text.split("|")]


def takes(made: type) -> dict[str, inspect.Parameter]:
    """Return the arguments that a class has, by name."""
    if made.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    parameters = inspect.signature(made).parameters.values()
    return {parameter.name: parameter for parameter in parameters}


def argument_problems(
    made: type, args: Mapping[str, Any], field: str, objects: Mapping[str, Any], filled_in: Sequence[str] = ()
) -> Iterator[Problem]:
    """Yield what is wrong with the arguments of a class, by its signature alone.

    `objects` are the annotations whose values are objects themselves; those are looked at elsewhere.
    Arguments that are `filled_in` may be left out.
    """
    known = takes(made)
    for name, value in args.items():
        if name not in known:
            yield Problem(field=f"{field}.{name}", message=_unknown(made, name, known, objects))
        elif message := _misfit(known[name], value, objects):
            yield Problem(field=f"{field}.{name}", message=message)
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in (*args, *filled_in):
            yield Problem(
                field=f"{field}.{name}", message=f"{made.__name__} needs it: {_wanted(parameter, objects)}"
            )


def converted(made: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return good arguments as Optuna's classes want them: 2.0 is 2 where only whole numbers go."""
    known = takes(made)
    return {name: _converted(alternatives(known[name]), value) for name, value in args.items()}


def meant(name: str, known: Sequence[str]) -> str:
    """Return how a message goes on after a name that is not known."""
    close = get_close_matches(name, known, n=1) or [other for other in known if name.lower() in other.lower()]
    return f"; did you mean '{close[0]}'?" if close else "."


def blamed(error: Exception, args: Mapping[str, Any], field: str) -> Problem:
    """Return what Optuna itself says against arguments; of the field that its message names first."""
    words = re.findall(r"\w+", str(error).lower())
    named = [name for word in words for name in args if name.lower() == word]
    return Problem(field=f"{field}.{named[0]}" if named else field, message=str(error))


def _converted(names: list[str], value: Any) -> Any:
    if "np.ndarray" in names and value is not None:
        return np.array(value, dtype=float)
    if "int" in names and "float" not in names and isinstance(value, float):
        return int(value)
    return value


def _unknown(
    made: type, name: str, known: Mapping[str, inspect.Parameter], objects: Mapping[str, Any]
) -> str:
    if not known:
        return f"{made.__name__} takes no arguments: remove it"
    usable = [
        other
        for other, parameter in known.items()
        if _usable(_kinds(parameter)) or _objects(parameter, objects)
    ]
    return f"{made.__name__} has no argument '{name}'{meant(name, usable)} It takes: {', '.join(usable)}"


def _misfit(parameter: inspect.Parameter, value: Any, objects: Mapping[str, Any]) -> str | None:
    kinds = _kinds(parameter)
    if any(kind.fits(value) for kind in kinds):
        least = LEAST.get(parameter.name)
        return f"must be {least} or more, not {value}" if least is not None and value < least else None
    if _objects(parameter, objects):
        return None if value is not None else _wanted(parameter, objects)
    return (
        f"must be {_words(kinds)}, not {json.dumps(value, default=repr)}"
        if _usable(kinds)
        else _program(parameter)
    )


def _wanted(parameter: inspect.Parameter, objects: Mapping[str, Any]) -> str:
    if _objects(parameter, objects):
        return "give {name: ..., args: {...}}"
    return f"give {_words(_kinds(parameter))}"


def _program(parameter: inspect.Parameter) -> str:
    what = "a function" if "Callable" in alternatives(parameter) else "a Python object"
    mend = INSTEAD.get(parameter.name, "remove it")
    return f"this argument is {what}, which a manifest cannot hold: {mend}"


def _kinds(parameter: inspect.Parameter) -> list[Kind]:
    return [KINDS[name] for name in alternatives(parameter) if name in KINDS]


def _words(kinds: list[Kind]) -> str:
    return " or ".join(kind.words for kind in kinds if kind.words != "null")


def _usable(kinds: list[Kind]) -> bool:
    return any(kind.words != "null" for kind in kinds)


def _objects(parameter: inspect.Parameter, objects: Mapping[str, Any]) -> bool:
    return any(name in objects for name in alternatives(parameter))
