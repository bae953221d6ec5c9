"""Compares what a script asks of Optuna with what the manifest says: the manifest runs the study."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure

if TYPE_CHECKING:
    from collections.abc import Callable

CONSTRAINTS = "constraints_func"
INSTEAD = {"source_trials": "spec.warmStart continues from another study's trials."}
"""Fields that take the place of arguments which are Python objects."""


def check_asked(asked: dict[str, Any], directions: list[str], config: dict[str, Any]) -> None:
    """Check the arguments of create_study or load_study; what the script leaves out contradicts nothing.

    Args:
        directions: the manifest's, "minimize" or "maximize".
        config: the manifest's sampler and pruner ({name, args} each), where the operator tells them.

    Raises:
        TrialFailure: script and manifest contradict one another.
    """
    _check_directions(asked, directions)
    for kind in ("sampler", "pruner"):
        if asked.get(kind) is not None and config.get(kind):
            _check_named(kind, asked[kind], config[kind])


def described(thing: Any) -> dict[str, Any]:
    """Return a sampler or pruner as the manifest would have it, its arguments as far as YAML can say them."""
    given = {name: _said(value) for name, value in _given(thing).items() if can_be_said(value)}
    return {"name": type(thing).__name__, "args": given}


def unsaid(thing: Any) -> dict[str, Any]:
    """Return the arguments of a sampler or pruner that no manifest can hold."""
    return {name: value for name, value in _given(thing).items() if not can_be_said(value)}


def is_optunas(thing: Any) -> bool:
    """Return whether it is one of Optuna's own classes, which the study server has, and not the script's."""
    return type(thing).__module__.startswith(("optuna.", "tuning_trainer."))


def can_be_said(value: Any) -> bool:
    """Return whether a manifest can hold an argument: JSON, or an object of Optuna's."""
    return _plain(value) or (_is_named(value) and all(map(can_be_said, _given(value).values())))


def _is_named(value: Any) -> bool:
    return is_optunas(value) and "_tuning_arguments" in getattr(value, "__dict__", {})


def _said(value: Any) -> Any:
    return described(value) if _is_named(value) else value


def constraints_function(sampler: Any) -> Callable[[Any], Any] | None:
    """Return the constraints_func that a sampler was made with: it runs in the pod, after the objective."""
    found: Callable[[Any], Any] | None = _given(sampler).get(CONSTRAINTS) if sampler is not None else None
    return found


def _given(thing: Any) -> dict[str, Any]:
    given: dict[str, Any] = vars(thing).get("_tuning_arguments", {})
    return given


def _check_directions(asked: dict[str, Any], directions: list[str]) -> None:
    given = asked.get("directions") or ([asked["direction"]] if asked.get("direction") else None)
    if given is None:
        return
    names = [str(getattr(one, "name", one)).lower() for one in given]
    if names != directions:
        raise contradiction(
            f"direction {', '.join(names)}",
            f"spec.objectives: {', '.join(directions)}",
            "Mend the direction in one of them.",
        )


def _check_named(kind: str, thing: Any, manifest: dict[str, Any]) -> None:
    _check_can_be_said(kind, thing)
    script = described(thing)
    known = _defaults(thing) | (manifest.get("args") or {})
    missing = object()
    args = {name: v for name, v in script["args"].items() if not _same(known.get(name, missing), v)}
    if script["name"] == manifest["name"] and not args:
        return
    raise contradiction(
        f"the {kind} {_worded(script)}",
        f"spec.{kind}: {_worded(manifest)}",
        f"Write spec.{kind}: {json.dumps(script)} in the manifest, or take the {kind} out of the script.",
    )


def _check_can_be_said(kind: str, thing: Any) -> None:
    """Refuse what no manifest can hold: the study server would run something else."""
    made = f"The script's {kind} {type(thing).__name__}"
    if not is_optunas(thing):
        raise TrialFailure(
            Failure(
                "Script",
                f"{made} is not one of optuna.{kind}s, and the study server runs these only.",
                f"Take the {kind} out of the script, and name one of Optuna's in spec.{kind}.",
            )
        )
    for name, value in unsaid(thing).items():
        if name != CONSTRAINTS:
            what = f"{made} is given {name}={type(value).__name__}, which a manifest cannot hold."
            instead = INSTEAD.get(name, f"spec.{kind}.args takes numbers, texts and lists.")
            raise TrialFailure(Failure("Script", what, f"Leave {name} out. {instead}"))


def contradiction(script: str, manifest: str, remedy: str) -> TrialFailure:
    """Return the failure of a script that says one thing where the manifest says another."""
    message = f"The script asks for {script}, but the manifest says {manifest}."
    return TrialFailure(Failure("Script", message, f"The manifest decides. {remedy}"))


def _same(manifest: Any, script: Any) -> bool:
    """Compare an argument; an object's `args` may be left out in a manifest."""
    if isinstance(manifest, dict) and isinstance(script, dict) and manifest.get("name") == script.get("name"):
        return bool((manifest.get("args") or {}) == (script.get("args") or {}))
    return bool(manifest == script)


def _defaults(thing: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _worded(named: dict[str, Any]) -> str:
    args = ", ".join(f"{name}={value!r}" for name, value in (named.get("args") or {}).items())
    return f"{named['name']}({args})"
