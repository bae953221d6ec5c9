"""A script's study in the terms of a manifest: the document that `init` writes."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.modes.manifest_check import (
    CONSTRAINTS,
    described,
    inexpressible,
    is_expressible,
    is_optunas,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class RecordedStudy(NamedTuple):
    """A study that the script has created, and how."""

    study: Any
    arguments: dict[str, Any]
    """The arguments of create_study or load_study."""
    sampler: Any
    """The study's initial sampler, even if the script names none."""
    pruner: Any
    loaded: bool
    """Whether load_study returned it: then the directions are unknown."""


def study_document(made: RecordedStudy, call: str, arguments: dict[str, Any], others: int) -> dict[str, Any]:
    """Return the `study` of the document that `init` writes.

    Args:
        call: 'optimize' or 'ask'.
        arguments: those of the call.
        others: how many other studies the script has created so far.
    """
    notes: list[str] = []
    chosen = {kind: _chosen(made, kind) for kind in ("sampler", "pruner")}
    document = {
        "call": call,
        "studyName": made.arguments.get("study_name"),
        "directions": [direction.name.lower() for direction in made.study.directions],
        "metricNames": _metric_names(made.study),
        **{kind: _named(kind, thing, notes) for kind, thing in chosen.items()},
        "nTrials": _n_trials(arguments),
        "timeout": _seconds(arguments.get("timeout")),
        "parallelism": _parallelism(arguments.get("n_jobs", 1), notes),
        "initialTrials": _initial_trials(made.study, notes),
        "notes": notes,
    }
    notes.extend(_further_notes(made, call, arguments, others))
    return document


def _chosen(made: RecordedStudy, kind: str) -> Any:
    """Return the sampler or pruner that the script chose when creating the study or assigned later."""
    now = getattr(made.study, kind)
    return now if now is not getattr(made, kind) else made.arguments.get(kind)


def _named(kind: str, thing: Any, notes: list[str]) -> dict[str, Any] | None:
    if thing is None:
        return None
    name = type(thing).__name__
    if not is_optunas(thing):
        notes.append(f"the {kind} {name} is not one of Optuna's, and the study server only has those")
        return None
    if "_tuning_arguments" not in vars(thing):
        notes.append(f"the arguments of the {kind} {name} are unknown")
    for argument, value in inexpressible(thing).items():
        if argument == CONSTRAINTS:
            notes.append(f"{CONSTRAINTS} stays in the script and runs in the trial's pod")
        else:
            what = "a function" if inspect.isroutine(value) else f"a {type(value).__name__}"
            notes.append(f"the {kind}'s argument {argument} is {what}, which a manifest can't express")
    return described(thing)


def _n_trials(arguments: dict[str, Any]) -> int | None:
    given = [arguments.get("n_trials")]
    given += [getattr(callback, "_n_trials", None) for callback in arguments.get("callbacks") or ()]
    found = [int(number) for number in given if number is not None]
    return min(found) if found else None


def _seconds(timeout: Any) -> float | None:
    return None if timeout is None else float(timeout)


def _parallelism(jobs: int, notes: list[str]) -> int | None:
    if jobs < 0:
        notes.append(
            f"n_jobs={jobs} means one job per CPU: set spec.parallelism to the number of pods to run at once"
        )
    elif jobs > 1:
        notes.append(
            f"n_jobs={jobs} becomes spec.parallelism: remove it from the script, because a pod runs one trial"
        )
    return jobs if jobs > 1 else None


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
                f"the enqueued trial {number} is written without {left_out}: not a number, string or boolean"
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


def _further_notes(made: RecordedStudy, call: str, arguments: dict[str, Any], others: int) -> Iterator[str]:
    if made.loaded:
        yield "the script loads its study, so its directions are unknown: set them in spec.objectives"
    if others:
        studies = "another study" if others == 1 else f"{others} other studies"
        yield f"the script also creates {studies}: the manifest describes the first one that runs"
    if call == "ask":
        yield "the script uses ask and tell: each pod runs the first trial that the script asks for"
    finished = sum(trial.state.name != "WAITING" for trial in made.study.trials)
    if finished:
        yield f"{finished} added by add_trial left out: spec.warmStart continues from another study's trials"
    if made.arguments.get("storage") is not None:
        yield "the script's storage is ignored: the study server keeps the study"
    for callback in arguments.get("callbacks") or ():
        if not hasattr(callback, "_n_trials"):
            name = getattr(callback, "__name__", type(callback).__name__)
            yield f"the callback {name} is ignored: spec.objectives[].target can end a study early"
