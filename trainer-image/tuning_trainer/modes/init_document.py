"""A script's study in the terms of a manifest: the document that `init` writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.modes.manifest_check import (
    CONSTRAINTS,
    check_expressible,
    described,
    inexpressible,
    is_expressible,
)
from tuning_trainer.optuna_api.callbacks import ENDS, OF_THE_STUDY, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Made(NamedTuple):
    """How the script has created a study."""

    arguments: dict[str, Any]
    """The arguments of create_study or load_study, without the storage."""
    sampler: Any
    """The study's initial sampler, even if the script names none."""
    pruner: Any
    has_storage: bool
    loaded: bool
    """Whether load_study returned it: then the directions are unknown."""


def study_document(study: Any, call: str, arguments: dict[str, Any], others: int) -> dict[str, Any]:
    """Return the `study` of the document that `init` writes.

    Args:
        study: the script's study; its attribute `_tuning_made` is missing if its constructor was called.
        call: 'optimize' or 'ask'.
        arguments: those of the call.
        others: how many other studies the script has created so far.

    Raises:
        TrialFailure: each trial would fail, since a manifest can't express the sampler or the pruner.
    """
    notes: list[str] = []
    unknown = Made({}, study.sampler, study.pruner, has_storage=False, loaded=True)
    made: Made = getattr(study, "_tuning_made", unknown)
    chosen = {kind: _chosen(study, made, kind) for kind in ("sampler", "pruner")}
    if chosen["pruner"] is not None and len(study.directions) > 1:
        notes.append("the script's pruner is ignored: Optuna does not prune trials with several objectives")
        chosen["pruner"] = None
    document = {
        "call": call,
        "studyName": made.arguments.get("study_name"),
        "directions": [direction.name.lower() for direction in study.directions],
        "metricNames": _metric_names(study),
        **{kind: _named(kind, thing, notes) for kind, thing in chosen.items()},
        "nTrials": _n_trials(arguments),
        "timeout": _seconds(arguments.get("timeout")),
        "initialTrials": _initial_trials(study, notes),
        "notes": notes,
    }
    notes.extend(_further_notes(study, made, call, arguments, others))
    return document


def _chosen(study: Any, made: Made, kind: str) -> Any:
    """Return the sampler or pruner that the script chose when creating the study or assigned later."""
    now = getattr(study, kind)
    return now if now is not getattr(made, kind) else made.arguments.get(kind)


def _named(kind: str, thing: Any, notes: list[str]) -> dict[str, Any] | None:
    if thing is None:
        return None
    check_expressible(kind, thing)
    if "_tuning_arguments" not in vars(thing):
        notes.append(f"the arguments of the {kind} {type(thing).__name__} are unknown")
    if CONSTRAINTS in inexpressible(thing):
        notes.append(f"{CONSTRAINTS} stays in the script and runs in each trial")
    return described(thing)


def _n_trials(arguments: dict[str, Any]) -> int | None:
    given = [arguments.get("n_trials")]
    given += [getattr(callback, "_n_trials", None) for callback in arguments.get("callbacks") or ()]
    found = [int(number) for number in given if number is not None]
    return min(found) if found else None


def _seconds(timeout: Any) -> float | None:
    return None if timeout is None else float(timeout)


def _metric_names(study: Any) -> list[str] | None:
    names = getattr(study, "metric_names", None)
    return list(names) if names else None


def _initial_trials(study: Any, notes: list[str]) -> list[dict[str, Any]]:
    """Return the parameters passed to enqueue_trial that are plain values."""
    kept = []
    for number, parameters in enumerate(_enqueued(study)):
        plain = {name: value for name, value in parameters.items() if _scalar(value)}
        left_out = ", ".join(name for name in parameters if name not in plain)
        if left_out:
            notes.append(
                f"the enqueued trial {number} omits {left_out}: only numbers, strings and booleans are copied"
            )
        kept.append(plain)
    return kept


def _enqueued(study: Any) -> Iterator[dict[str, Any]]:
    for trial in study.trials:
        if trial.state.name == "WAITING":
            yield trial.system_attrs.get("fixed_params") or {}


def _scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, int, bool)) and is_expressible(value)


def _further_notes(
    study: Any, made: Made, call: str, arguments: dict[str, Any], others: int
) -> Iterator[str]:
    if made.loaded:
        yield "the script loads its study, so its directions are unknown: set them in spec.objectives"
    if others:
        studies = "another study" if others == 1 else f"{others} other studies"
        yield f"the script also creates {studies}: the manifest describes the first one that runs"
    if call == "ask":
        yield "the script uses ask and tell: each pod runs the first trial that the script asks for"
    finished = sum(trial.state.name != "WAITING" for trial in study.trials)
    if finished:
        trials = "1 trial" if finished == 1 else f"{finished} trials"
        yield f"{trials} from add_trial left out: spec.warmStart continues from another study's trials"
    if made.has_storage:
        yield "the script's storage is ignored: the study server keeps the study"
    for callback in arguments.get("callbacks") or ():
        yield from _callback_notes(callback)


def _callback_notes(callback: Any) -> Iterator[str]:
    name, field = name_of(callback), OF_THE_STUDY.get(type(callback).__name__)
    if field is None:
        yield f"the callback {name} runs in each trial, where it can't end the study: {ENDS}"
    elif not hasattr(callback, "_n_trials"):
        yield f"the callback {name} is not run: use {field}"
