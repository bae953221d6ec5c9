"""What commands show of a trial, from its record."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tuning_trainer.wire.codec import from_wire

from tuning_operator.cli import PluginError
from tuning_operator.cli.studies import Run, metrics_of
from tuning_operator.protocol import FAILURE, PRUNE_REASON, Failure, FinishedStudy, FinishedTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"} | {
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""Optuna's names of states, and those of `status.trials`."""


_FAILURE_FIELDS = {FAILURE + field: field for field in Failure.model_fields}
"""The user attributes that say why a trial failed, and the fields of Failure that they hold."""


class Trial:
    """A trial and the names of its study's metrics."""

    def __init__(self, record: FinishedTrial, metrics: Sequence[str], place: str | None = None) -> None:
        self.record = record
        self.place = place
        """Its pod, or its folder; None if that is gone."""
        self._metrics = metrics

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.record.number

    @property
    def state(self) -> str:
        """One of complete, pruned, failed, running, waiting."""
        return STATES[self.record.state]

    @property
    def values(self) -> dict[str, float]:
        """The trial's values by metric; empty unless it is complete."""
        values = self.record.values if self.record.state == "COMPLETE" else None
        return dict(zip(self._metrics, values or (), strict=False))

    @property
    def last_step(self) -> int | None:
        """The last step that the trial reported."""
        return max(self.record.reported, default=None)

    @property
    def last_value(self) -> float | None:
        """The value that the trial reported for its last step."""
        return None if self.last_step is None else self.record.reported[self.last_step]

    @property
    def seconds(self) -> float | None:
        """How long the trial ran, or has been running."""
        if self.record.started is None:
            return None
        return ((self.record.finished or datetime.now(UTC)) - self.record.started).total_seconds()

    @property
    def attributes(self) -> dict[str, Any]:
        """The user attributes that the trial's own code set."""
        hidden = {PRUNE_REASON, *(_FAILURE_FIELDS if self.failure else ())}
        given = from_wire(self.record.user_attrs)
        return {name: value for name, value in given.items() if name not in hidden}

    @property
    def prune_reason(self) -> str | None:
        """Why the pruner asked the trial to stop."""
        reason = self.record.user_attrs.get(PRUNE_REASON)
        return None if reason is None else str(reason)

    @property
    def failure(self) -> Failure | None:
        """Why the trial failed, or was stopped."""
        given = self.record.user_attrs
        fields = {field: str(given[name]) for name, field in _FAILURE_FIELDS.items() if name in given}
        if "message" not in fields or self.record.state not in ("FAIL", "PRUNED"):
            return None
        return Failure(**{"category": "Unknown", **fields})

    @property
    def reason(self) -> str:
        """Why the trial ended without a value, in a few words; empty if there is nothing to say."""
        if self.failure:
            return f"{self.failure.category}: {self.failure.message}"
        return self.prune_reason or ""

    def as_data(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        wire = self.record.model_dump(mode="json", by_alias=True)
        failure = self.failure
        return {
            "number": self.number,
            "state": self.state,
            "values": dict(zip(self._metrics, wire["values"] or (), strict=False)) if self.values else {},
            "parameters": wire["parameters"],
            "reported": wire["reported"],
            "userAttributes": {name: wire["userAttrs"][name] for name in self.attributes},
            "constraints": wire["constraints"],
            "started": wire["started"],
            "finished": wire["finished"],
            "seconds": self.seconds,
            "pod": self.place,
            "pruneReason": self.prune_reason,
            "failure": failure.model_dump(exclude_none=True) if failure else None,
            "copiedFrom": wire["copiedFrom"],
        }


def trials_of(
    study: Mapping[str, Any], record: FinishedStudy, places: Mapping[Run, str] | None = None
) -> list[Trial]:
    """Return the trials of a study's record by number."""
    metrics = metrics_of(study)
    found = [Trial(trial, metrics, (places or {}).get(trial.number, trial.pod)) for trial in record.trials]
    return sorted(found, key=lambda trial: trial.number)


def sorted_by(trials: Sequence[Trial], study: Mapping[str, Any], key: str) -> list[Trial]:
    """Return the trials by a metric (the best first), a parameter or another column; those without it last.

    Raises:
        PluginError: nothing has this name.
    """
    directions = {o["metric"]: o["direction"] for o in study["spec"]["objectives"]}
    metric = next(iter(directions)) if key == "value" else key
    columns: dict[str, Callable[[Trial], Any]] = {
        "number": lambda trial: trial.number,
        "state": lambda trial: list(STATES.values()).index(trial.state),
        "duration": lambda trial: trial.seconds,
        "step": lambda trial: trial.last_step,
        "started": lambda trial: trial.record.started,
    }
    parameters = {name for trial in trials for name in trial.record.parameters}
    if metric in directions:
        column: Callable[[Trial], Any] = partial(
            _value, metric=metric, sign=-1 if directions[metric] == "maximize" else 1
        )
    elif key in columns:
        column = columns[key]
    elif key in parameters:
        column = partial(_parameter, name=key)
    else:
        names = ["value", *directions, *columns, *sorted(parameters)]
        raise PluginError(f"--sort {key}: use one of {', '.join(dict.fromkeys(names))}")
    given = [(column(trial), trial) for trial in trials]
    known = sorted((pair for pair in given if pair[0] is not None), key=lambda pair: pair[0])
    return [trial for _, trial in known] + [trial for value, trial in given if value is None]


def _value(trial: Trial, metric: str, sign: int) -> float | None:
    value = trial.values.get(metric)
    return None if value is None else sign * value


def _parameter(trial: Trial, name: str) -> Any:
    """Return a parameter such that numbers come before texts, since choices may be both."""
    value = trial.record.parameters.get(name)
    if isinstance(value, int | float):
        return (0, value)
    return None if value is None else (1, str(value))
