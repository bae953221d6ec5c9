"""A study's standing in words, from the resource alone."""

from collections.abc import Iterator, Mapping
from typing import Any

Resource = Mapping[str, Any]

SHOWN_FRONT = 50
"""So many trials of a Pareto front the status holds."""


def best_of(study: Resource) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Return the best trial, a list of those of the Pareto front for several objectives, None where none is.

    Each is {number, values: {metric: value}, parameters}.
    """
    metrics = metrics_of(study)
    status = study.get("status", {})
    if len(metrics) > 1:
        return [_trial(trial, metrics) for trial in status.get("paretoFront") or []] or None
    best = status.get("best")
    return _trial(best, metrics) if best else None


def metrics_of(study: Resource) -> list[str]:
    """Return the objectives' names."""
    return [objective["metric"] for objective in study["spec"]["objectives"]]


def _trial(trial: Resource, metrics: list[str]) -> dict[str, Any]:
    return {
        "number": trial["number"],
        "values": dict(zip(metrics, trial["values"], strict=True)),
        "parameters": dict(trial.get("parameters", {})),
    }


def headline(study: Resource) -> str:
    """Return name, phase and counts in a line: `mnist: Running, 6/10 trials finished (4 complete, ...)`."""
    status = study.get("status", {})
    name, phase = study["metadata"]["name"], status.get("phase")
    if phase is None:
        return f"{name}: the operator has not taken it up yet"
    counts = status.get("trials") or {}
    kinds = ("complete", "pruned", "failed", "running", "copied")
    told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts.get(kind))
    finished = status.get("progress") or f"0/{study['spec']['maxTrials']}"
    return f"{name}: {phase}, {finished} trials finished" + (f" ({told})" if told else "")


def obstacles(study: Resource) -> Iterator[str]:
    """Yield what the conditions say stands in the way of trials."""
    hindering = {"Accepted": "False", "Stalled": "True", "Suspended": "True", "Failed": "True"}
    for condition in study.get("status", {}).get("conditions") or []:
        if hindering.get(condition["type"]) == condition["status"]:
            yield f"{condition['type']}={condition['status']} ({condition['reason']}): {condition['message']}"


def missing_best(study: Resource) -> str:
    """Return why there is no best trial yet, for a person."""
    told = [f"no best trial yet. {headline(study)}", *obstacles(study)]
    if len(told) == 1 and study.get("status", {}).get("phase") is None:
        told.append(
            "Is the operator running? See `kubectl get pods -A -l app.kubernetes.io/name=tuning-operator`"
        )
    return "\n".join(told)
