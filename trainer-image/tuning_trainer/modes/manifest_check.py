"""Compares a script's study with the manifest, which decides how the study runs."""

from __future__ import annotations

import inspect
import json
import math
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.optuna_api.distributions import values

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.distributions import Distribution

CONSTRAINTS = "constraints_func"
GRID = "search_space"
"""The argument of GridSampler."""
INSTEAD = {"source_trials": "spec.warmStart continues from another study's trials."}
"""What to use instead of arguments that are Python objects."""


def check_arguments(arguments: dict[str, Any], directions: list[str], config: dict[str, Any]) -> None:
    """Check the arguments of create_study or load_study; whatever the script omits is not checked.

    Args:
        directions: the manifest's, "minimize" or "maximize".
        config: the manifest's `sampler` and `pruner`, each {name, args}.

    Raises:
        TrialFailure: the script contradicts the manifest.
    """
    _check_directions(arguments, directions)
    given = {kind: arguments[kind] for kind in ("sampler", "pruner") if arguments.get(kind) is not None}
    check_components(given, len(directions), config)


def check_components(given: dict[str, Any], objectives: int, config: dict[str, Any]) -> None:
    """Check the sampler and the pruner that a script gives its study, by kind.

    Raises:
        TrialFailure: one of them contradicts the manifest.
    """
    for kind, thing in given.items():
        if kind == "pruner" and objectives > 1:
            log("the script's pruner is ignored: Optuna does not prune trials with several objectives")
        elif config.get(kind):
            _check_same(kind, thing, config[kind])


def with_grid(config: dict[str, Any], declared: dict[str, Distribution]) -> dict[str, Any]:
    """Return the config with the values of a GridSampler that has none: those of the search space."""
    sampler = config.get("sampler") or {}
    if sampler.get("name") != "GridSampler" or GRID in sampler["args"]:
        return config
    grid = {name: values(distribution) for name, distribution in declared.items()}
    return {**config, "sampler": {**sampler, "args": {**sampler["args"], GRID: grid}}}


def described(thing: Any) -> dict[str, Any]:
    """Return a sampler or pruner as in a manifest, with the arguments that a manifest can express."""
    given = {name: _as_argument(value) for name, value in _given(thing).items() if is_expressible(value)}
    return {"name": type(thing).__name__, "args": given}


def inexpressible(thing: Any) -> dict[str, Any]:
    """Return the arguments of a sampler or pruner that a manifest can't express."""
    return {name: value for name, value in _given(thing).items() if not is_expressible(value)}


def is_optunas(thing: Any) -> bool:
    """Return whether it is of one of Optuna's own classes, which the study server has too."""
    return type(thing).__module__.startswith(("optuna.", "tuning_trainer."))


def is_expressible(value: Any) -> bool:
    """Return whether a manifest can express an argument: JSON, or an object of Optuna's."""
    return _plain(value) or (_is_recorded(value) and all(map(is_expressible, _given(value).values())))


def _is_recorded(value: Any) -> bool:
    return is_optunas(value) and "_tuning_arguments" in getattr(value, "__dict__", {})


def _as_argument(value: Any) -> Any:
    return described(value) if _is_recorded(value) else value


def constraints_function(sampler: Any) -> Callable[[Any], Any] | None:
    """Return a sampler's constraints_func, which runs in the pod after the objective."""
    found: Callable[[Any], Any] | None = _given(sampler).get(CONSTRAINTS) if sampler is not None else None
    return found


def _given(thing: Any) -> dict[str, Any]:
    given: dict[str, Any] = vars(thing).get("_tuning_arguments", {})
    return given


def _check_directions(arguments: dict[str, Any], directions: list[str]) -> None:
    given = arguments.get("directions") or ([arguments["direction"]] if arguments.get("direction") else None)
    if given is None:
        return
    names = [str(getattr(one, "name", one)).lower() for one in given]
    if names != directions:
        raise contradiction(
            f"direction {', '.join(names)}",
            f"spec.objectives: {', '.join(directions)}",
            "Change the direction in one of them.",
        )


def _check_same(kind: str, thing: Any, manifest: dict[str, Any]) -> None:
    check_expressible(kind, thing)
    script = described(thing)
    known = _defaults(thing) | (manifest.get("args") or {})
    missing = object()
    args = {
        name: v
        for name, v in script["args"].items()
        if not (_same_grid if name == GRID else _same)(known.get(name, missing), v)
    }
    if script["name"] == manifest["name"] and not args:
        return
    raise contradiction(
        f"the {kind} {_as_call(script)}",
        f"spec.{kind}: {_as_call(manifest)}",
        f"Set spec.{kind}: {json.dumps(script)} in the manifest, or remove the {kind} from the script.",
    )


def check_expressible(kind: str, thing: Any) -> None:
    """Reject what a manifest can't express: the study server would run something else.

    Raises:
        TrialFailure: it is not one of Optuna's classes, or one of its arguments is an object.
    """
    made = f"The script's {kind} {type(thing).__name__}"
    if not is_optunas(thing):
        raise TrialFailure(
            Failure(
                "Script",
                f"{made} is not one of optuna.{kind}s, and the study server only has those.",
                f"Remove the {kind} from the script, and set spec.{kind} to one of Optuna's.",
            )
        )
    for name, value in inexpressible(thing).items():
        if name != CONSTRAINTS:
            what = f"{made} has {name} of type {type(value).__name__}, which a manifest can't express."
            instead = INSTEAD.get(name, f"spec.{kind}.args can hold numbers, strings and lists.")
            raise TrialFailure(Failure("Script", what, f"Remove {name}. {instead}"))


def contradiction(script: str, manifest: str, remedy: str) -> TrialFailure:
    """Return the failure of a script that contradicts the manifest."""
    message = f"The script has {script}, but the manifest has {manifest}."
    return TrialFailure(Failure("Script", message, f"The manifest takes precedence. {remedy}"))


def _same(manifest: Any, script: Any) -> bool:
    """Compare an argument; a manifest may omit an object's `args`."""
    if isinstance(manifest, dict) and isinstance(script, dict) and manifest.get("name") == script.get("name"):
        return bool((manifest.get("args") or {}) == (script.get("args") or {}))
    return bool(manifest == script)


def _same_grid(manifest: Any, script: Any) -> bool:
    """Compare the values of each parameter, in any order."""
    if not (isinstance(manifest, dict) and isinstance(script, dict) and manifest.keys() == script.keys()):
        return False
    return all(_same_values(manifest[name], list(script[name])) for name in manifest)


def _same_values(manifest: list[Any] | None, script: list[Any]) -> bool:
    if manifest is None or len(manifest) != len(script):
        return False
    return all(any(_same_value(one, other) for other in manifest) for one in script)


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def _defaults(thing: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _as_call(named: dict[str, Any]) -> str:
    args = ", ".join(f"{name}={value!r}" for name, value in (named.get("args") or {}).items())
    return f"{named['name']}({args})"
