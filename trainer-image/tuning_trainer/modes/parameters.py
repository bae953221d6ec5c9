"""How a program gets its parameters: environment variables, a JSON file, `{{name}}` in arguments."""

from __future__ import annotations

import json
import re
from typing import Any

from tuning_trainer.failure import Failure, TrialFailure

PREFIX = "TUNING_PARAM_"
"""A parameter `lr` becomes TUNING_PARAM_LR. Plain names would be dangerous: one could be `path`."""

PLACEHOLDER = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


def as_text(value: Any) -> str:
    """Return a value as text: booleans and null as in JSON and YAML, numbers in full precision."""
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def variables(parameters: dict[str, Any]) -> dict[str, str]:
    """Return the parameters as environment variables: in upper case, punctuation as underscores.

    Raises:
        TrialFailure: two parameters would have the same variable.
    """
    names: dict[str, str] = {}
    for name in parameters:
        variable = PREFIX + re.sub(r"\W", "_", name).upper()
        if variable in names:
            message = f"{names[variable]} and {name} both map to the environment variable {variable}."
            raise TrialFailure(Failure("Parameters", message, "Rename one of them in spec.searchSpace."))
        names[variable] = name
    return {variable: as_text(parameters[name]) for variable, name in names.items()}


def fill_in(arguments: list[str], parameters: dict[str, Any]) -> list[str]:
    """Return the arguments with `{{name}}` replaced.

    Raises:
        TrialFailure: an argument refers to a parameter that the trial does not have.
    """
    return [PLACEHOLDER.sub(lambda found: _value(found[1], parameters), argument) for argument in arguments]


def _value(name: str, parameters: dict[str, Any]) -> str:
    if name in parameters:
        return as_text(parameters[name])
    names = ", ".join(sorted(parameters)) or "none"
    message = f"trial.command refers to {{{{{name}}}}}, but the trial's parameters are: {names}."
    remedy = (
        "Correct the name. If the parameter has a `when` condition, it can be absent: read its environment "
        "variable or the parameters file instead."
    )
    raise TrialFailure(Failure("Parameters", message, remedy))
