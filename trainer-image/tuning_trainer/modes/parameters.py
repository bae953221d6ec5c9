"""How any program gets its parameters: environment variables, a JSON file, `{{name}}` in arguments."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PREFIX = "TUNING_PARAM_"
"""A parameter `lr` is the variable TUNING_PARAM_LR. There is no plain `lr`: a parameter named `path`
or `home` would change what the program runs in."""

_PLACE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


def as_text(value: Any) -> str:
    """Return a value as text: true and false as in JSON and YAML, numbers so that they read back the same."""
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def variables(parameters: dict[str, Any]) -> dict[str, str]:
    """Return the environment variables of the parameters: letters in upper case, signs as underscores.

    Raises:
        TrialFailure: two parameters would have the same variable.
    """
    made: dict[str, str] = {}
    for name, value in parameters.items():
        variable = PREFIX + re.sub(r"\W", "_", name).upper()
        if variable in made:
            message = f"Two parameters have the same environment variable {variable}; {name} is one of them."
            raise TrialFailure(Failure("Parameters", message, "Rename one in spec.searchSpace."))
        made[variable] = as_text(value)
    return made


def fill_in(arguments: list[str], parameters: dict[str, Any], source: Path | None) -> list[str]:
    """Return the arguments with `{{name}}` replaced, and files of the trial's source by their full paths.

    Raises:
        TrialFailure: an argument names a parameter that the trial does not have.
    """
    filled = [_PLACE.sub(lambda place: _value(place[1], parameters), argument) for argument in arguments]
    return [_in_source(argument, source) for argument in filled]


def _value(name: str, parameters: dict[str, Any]) -> str:
    if name in parameters:
        return as_text(parameters[name])
    has = f"the trial has no such parameter; it has {_listed(parameters)}."
    remedy = "Mend the name; a parameter with `when` may be absent: use its variable or the file instead."
    raise TrialFailure(Failure("Parameters", f"trial.command refers to {{{{{name}}}}}, but {has}", remedy))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _in_source(argument: str, source: Path | None) -> str:
    """Let `python train.py` find a train.py that came with trial.source, whatever the working directory."""
    if source is None or not argument or argument.startswith(("/", "-")):
        return argument
    file = source / argument
    return str(file) if file.is_file() else argument
