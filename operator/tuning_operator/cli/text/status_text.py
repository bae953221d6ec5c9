"""Text about the status of a study, from its resource."""

from collections.abc import Iterator
from typing import Any

from tuning_operator.cli.studies import Resource, metrics_of
from tuning_operator.resource import names
from tuning_operator.resource.text import sentence


def best_of(study: Resource) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Return the best trial, or a list with the Pareto front for several objectives; None if there is none.

    Each is {number, values: {metric: value}, parameters}.
    """
    metrics = metrics_of(study)
    status = study.get("status", {})
    if len(metrics) > 1:
        return [_trial(trial, metrics, study) for trial in status.get("paretoFront") or []] or None
    best = status.get("best")
    return _trial(best, metrics, study) if best else None


def front_size(study: Resource) -> int:
    """Return how many trials the Pareto front has; the status lists some of them."""
    size = (study.get("status", {}).get("bestValue") or "").removeprefix("front of ")
    return int(size) if size.isdecimal() else 0


def _trial(trial: Resource, metrics: list[str], study: Resource) -> dict[str, Any]:
    """Return a trial, with its parameters in the order of the search space: the API server sorts them."""
    parameters = dict(trial.get("parameters", {}))
    declared = [each["name"] for each in study["spec"].get("searchSpace") or ()]
    ordered = [name for name in declared if name in parameters]
    return {
        "number": trial["number"],
        "values": dict(zip(metrics, trial["values"], strict=True)),
        "parameters": {name: parameters[name] for name in dict.fromkeys([*ordered, *parameters])},
    }


def headline(study: Resource) -> str:
    """Return a line with name, phase and counts: `mnist: Running, 6/10 trials finished (4 complete, ...)`."""
    status = study.get("status", {})
    name, phase = study["metadata"]["name"], status.get("phase")
    if phase is None:
        return f"{name}: {before_begin(study)}"
    counts = status.get("trials") or {}
    kinds = ("complete", "pruned", "failed", "running", "copied")
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts.get(kind))
    finished = status.get("progress") or f"0/{study['spec']['maxTrials']}"
    return f"{name}: {phase}, {finished} {_trials(finished)} finished" + (f" ({listed})" if listed else "")


def before_begin(study: Resource) -> str:
    """Return what is shown in place of a phase until the study has one."""
    return "starting" if _is_local(study) else "not processed by the operator yet"


def _is_local(study: Resource) -> bool:
    return bool(study["metadata"].get("namespace") == names.LOCAL_NAMESPACE)


def _trials(progress: str) -> str:
    return "trial" if progress.endswith("/1") else "trials"


def blocking_conditions(study: Resource) -> Iterator[str]:
    """Yield the conditions that keep trials from running."""
    blocking = {"Accepted": "False", "Stalled": "True", "Suspended": "True", "Failed": "True"}
    for condition in study.get("status", {}).get("conditions") or []:
        if blocking.get(condition["type"]) == condition["status"]:
            yield f"{condition['type']}={condition['status']} ({condition['reason']}): {condition['message']}"


def end_of(study: Resource) -> dict[str, Any] | None:
    """Return the condition that says why the study has ended; None if it has not."""
    conditions = study.get("status", {}).get("conditions") or []
    return next(
        (c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None
    )


def failed_refit(study: Resource) -> str | None:
    """Return why the refit failed, as a sentence; None if it did not fail."""
    refit = study.get("status", {}).get("refit") or {}
    if refit.get("phase") != "Failed":
        return None
    return sentence(f"The refit failed: {refit.get('message') or 'no reason is recorded'}")


def missing_best(study: Resource) -> str:
    """Return a message about the missing best trial: what the study is doing, and what blocks it."""
    phase = study.get("status", {}).get("phase")
    ended = phase in ("Completed", "Failed")
    lines = [f"no trial completed{'' if ended else ' yet'}", headline(study), *blocking_conditions(study)]
    if phase is None and not _is_local(study):
        lines.append(
            "Is the operator running? See `kubectl get pods -A -l app.kubernetes.io/name=tuning-operator`"
        )
    return "\n".join(lines)
