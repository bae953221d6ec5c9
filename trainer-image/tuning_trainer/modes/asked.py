"""What a script has asked of Optuna, in a manifest's words."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.modes.manifest_check import CONSTRAINTS, can_be_said, described, is_optunas, unsaid

if TYPE_CHECKING:
    from collections.abc import Iterator


class Asked(NamedTuple):
    """A study that the script has made, and with what."""

    study: Any
    arguments: dict[str, Any]
    """Those of create_study or load_study."""
    sampler: Any
    """The study's at first, also where the script gives none."""
    pruner: Any
    loaded: bool
    """Whether it came from load_study: then the script does not say what its directions are."""


def study_document(made: Asked, call: str, arguments: dict[str, Any], others: int) -> dict[str, Any]:
    """Return the `study` of the document that `init` writes.

    Args:
        call: optimize or ask, and its arguments.
        others: how many more studies the script has made before.
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


def _chosen(made: Asked, kind: str) -> Any:
    """Return the sampler or pruner that the script chose: at the creation, or by an assignment after it."""
    now = getattr(made.study, kind)
    return now if now is not getattr(made, kind) else made.arguments.get(kind)


def _named(kind: str, thing: Any, notes: list[str]) -> dict[str, Any] | None:
    if thing is None:
        return None
    name = type(thing).__name__
    if not is_optunas(thing):
        notes.append(f"the {kind} {name} is not one of Optuna's: the study server has these only")
        return None
    if "_tuning_arguments" not in vars(thing):
        notes.append(f"the arguments of the {kind} {name} are not known")
    for argument, value in unsaid(thing).items():
        if argument == CONSTRAINTS:
            notes.append(f"{CONSTRAINTS} stays in the script: it runs in the trial's pod")
        else:
            what = "a function" if inspect.isroutine(value) else f"a {type(value).__name__}"
            notes.append(f"the {kind}'s argument {argument} is {what}, which a manifest cannot hold")
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
            f"n_jobs={jobs} means as many as there are CPUs: say with spec.parallelism how many pods run"
        )
    elif jobs > 1:
        notes.append(
            f"n_jobs={jobs} is spec.parallelism: take it out of the script, since a pod runs one trial"
        )
    return jobs if jobs > 1 else None


def _metric_names(study: Any) -> list[str] | None:
    names = getattr(study, "metric_names", None)
    return list(names) if names else None


def _initial_trials(study: Any, notes: list[str]) -> list[dict[str, Any]]:
    """Return the parameters of enqueue_trial as far as they are plain values."""
    kept = []
    for number, parameters in enumerate(_enqueued(study)):
        plain = {name: value for name, value in parameters.items() if _scalar(value)}
        left_out = ", ".join(name for name in parameters if name not in plain)
        if left_out:
            notes.append(f"the enqueued trial {number} goes without {left_out}: no number, text or boolean")
        kept.append(plain)
    return kept


def _enqueued(study: Any) -> Iterator[dict[str, Any]]:
    for trial in study.trials:
        if trial.state.name == "WAITING":
            yield trial.system_attrs.get("fixed_params") or {}


def _scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, int, bool)) and can_be_said(value)


def _further_notes(made: Asked, call: str, arguments: dict[str, Any], others: int) -> Iterator[str]:
    if made.loaded:
        yield "the script loads its study and does not say its directions: write them in spec.objectives"
    if others:
        yield f"the script makes {others} more studies: the manifest is of the first one that runs"
    if call == "ask":
        yield "the script asks for its trials itself (ask and tell): each pod runs the first it asks for"
    finished = sum(trial.state.name != "WAITING" for trial in made.study.trials)
    if finished:
        yield f"{finished} trials of add_trial are left out: spec.warmStart continues from another study"
    if made.arguments.get("storage") is not None:
        yield "the script's storage is not used: the study server keeps the study"
    for callback in arguments.get("callbacks") or ():
        if not hasattr(callback, "_n_trials"):
            name = getattr(callback, "__name__", type(callback).__name__)
            yield f"the callback {name} is not used: spec.objectives[].target may end a study"
