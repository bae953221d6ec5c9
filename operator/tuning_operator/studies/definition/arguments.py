"""Arguments of Optuna's classes as a manifest has them, checked against the classes' own signatures."""

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
    """Which data an annotation allows: in words, and as a test."""

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
"""The kinds of arguments that data can express, by annotation without the brackets."""

LEAST = {"dividing_parameter": 1, "n_ei_candidates": 1, "n_startup_trials": 0}
"""Smallest values that make sense where Optuna itself does not check."""

MOST = {
    "min_early_stopping_rate": 64,
    "n_ei_candidates": 1_000,
    "popsize": 10_000,
    "population_size": 10_000,
}
"""Largest values: memory or time grow with these arguments, and the server is shared by all studies."""

ALTERNATIVES_IN_CODE = {
    "constraints_func": "let the objective call trial.set_constraint(name, value) instead",
}
"""What to do instead of giving an argument that only a program can give."""


def alternatives(parameter: inspect.Parameter) -> list[str]:
    """Return the names of an annotation's alternatives without what is in brackets: [`Callable`, `None`]."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = shorter
    return [name.strip() for name in text.split("|")]


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the arguments that a class takes, by name."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter for parameter in parameters}


def argument_problems(
    cls: type, args: Mapping[str, Any], field: str, objects: Mapping[str, Any], filled_in: Sequence[str] = ()
) -> Iterator[Problem]:
    """Yield what is wrong with the arguments of a class, by its signature alone.

    Args:
        cls: the class.
        args: the arguments, by name.
        field: the path of `args` in the spec.
        objects: annotations of arguments that are components themselves; those are checked elsewhere.
        filled_in: required arguments that may be left out.
    """
    known = arguments_of(cls)
    for name, value in args.items():
        if name not in known:
            yield Problem(field=f"{field}.{name}", message=_unknown(cls, name, known, objects))
        elif message := _value_problem(known[name], value, objects):
            yield Problem(field=f"{field}.{name}", message=message)
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in (*args, *filled_in):
            yield Problem(
                field=f"{field}.{name}",
                message=f"{cls.__name__} requires this argument: {_wanted(parameter, objects)}",
            )


def converted(cls: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return good arguments as Optuna's classes expect them: 2.0 as 2 where a number must be whole."""
    known = arguments_of(cls)
    return {name: _converted(alternatives(known[name]), value) for name, value in args.items()}


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return how a message about an unknown name continues: with the name that was probably meant."""
    close = get_close_matches(name, known, n=1) or [other for other in known if name.lower() in other.lower()]
    return f"; did you mean '{close[0]}'?" if close else "."


def problem_of(error: Exception, args: Mapping[str, Any], field: str) -> Problem:
    """Return the problem that an error of Optuna's reports, at the argument that its message names first."""
    words = re.findall(r"\w+", str(error).lower())
    named = [name for word in words for name in args if name.lower() == word]
    return Problem(field=f"{field}.{named[0]}" if named else field, message=str(error))


def _converted(names: list[str], value: Any) -> Any:
    if "np.ndarray" in names and value is not None:
        return np.array(value, dtype=float)
    if "int" in names and "float" not in names and isinstance(value, float):
        return int(value)
    return value


def _unknown(cls: type, name: str, known: Mapping[str, inspect.Parameter], objects: Mapping[str, Any]) -> str:
    if not known:
        return f"{cls.__name__} takes no arguments: remove it"
    usable = [
        other
        for other, parameter in known.items()
        if _usable(_kinds(parameter)) or _objects(parameter, objects)
    ]
    return (
        f"{cls.__name__} has no argument '{name}'{did_you_mean(name, usable)} It takes: {', '.join(usable)}"
    )


def _value_problem(parameter: inspect.Parameter, value: Any, objects: Mapping[str, Any]) -> str | None:
    kinds = _kinds(parameter)
    if any(kind.fits(value) for kind in kinds):
        least, most = LEAST.get(parameter.name), MOST.get(parameter.name)
        if value is not None and least is not None and value < least:
            return f"must be {least} or more, not {value}"
        if value is not None and most is not None and value > most:
            return f"must be {most:,} or less, not {value:,}, as the study server is shared by all studies"
        return None
    if _objects(parameter, objects):
        return None if value is not None else _wanted(parameter, objects)
    return (
        f"must be {_words(kinds)}, not {json.dumps(value, default=repr)}"
        if _usable(kinds)
        else _program(parameter)
    )


def _wanted(parameter: inspect.Parameter, objects: Mapping[str, Any]) -> str:
    if _objects(parameter, objects):
        return "set it to {name: ..., args: {...}}"
    return f"set it to {_words(_kinds(parameter))}"


def _program(parameter: inspect.Parameter) -> str:
    what = "a function" if "Callable" in alternatives(parameter) else "a Python object"
    fix = ALTERNATIVES_IN_CODE.get(parameter.name, "remove it")
    return f"this argument is {what}, which a manifest cannot express: {fix}"


def _kinds(parameter: inspect.Parameter) -> list[Kind]:
    return [KINDS[name] for name in alternatives(parameter) if name in KINDS]


def _words(kinds: list[Kind]) -> str:
    return " or ".join(kind.words for kind in kinds if kind.words != "null")


def _usable(kinds: list[Kind]) -> bool:
    return any(kind.words != "null" for kind in kinds)


def _objects(parameter: inspect.Parameter, objects: Mapping[str, Any]) -> bool:
    return any(name in objects for name in alternatives(parameter))
