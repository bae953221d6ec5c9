"""Finished trials: Optuna's FrozenTrial where Optuna is loaded, else the stand-in's."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Any

from tuning_trainer.optuna_api import distributions as dists
from tuning_trainer.optuna_api.trial_storage import split
from tuning_trainer.wire.codec import from_wire, number_from_wire, numbers_from_wire, parameters_from_wire

if TYPE_CHECKING:
    from tuning_trainer.optuna_api.trial import Trial


def trial_of_record(record: dict[str, Any]) -> Any:
    """Return the trial for the protocol's FinishedTrial."""
    forms = record.get("distributions") or {}
    user_attrs, system_attrs = split(from_wire(record.get("userAttrs") or {}))
    return _finished(
        record,
        params=parameters_from_wire(record.get("parameters") or {}, forms),
        distributions={name: _distribution(form) for name, form in forms.items()},
        user_attrs=user_attrs,
        system_attrs={**system_attrs, **_constraints(numbers_from_wire(record.get("constraints")))},
        intermediate_values={
            int(step): value for step, value in numbers_from_wire(record.get("reported")).items()
        },
    )


def ended_trial(trial: Trial, record: dict[str, Any]) -> Any:
    """Return the pod's trial after its end, for the server's TrialRecord."""
    return _finished(
        record,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs={**trial.system_attrs, **_constraints(trial.constraints)},
        intermediate_values=trial.reported,
    )


def _finished(record: dict[str, Any], **details: Any) -> Any:
    optuna = sys.modules["optuna.trial"]
    values = record.get("values")
    return optuna.FrozenTrial(
        number=record["number"],
        trial_id=record["number"],
        state=optuna.TrialState[record["state"]],
        value=None,
        values=None if values is None else [float(number_from_wire(value)) for value in values],
        datetime_start=_local(record.get("started")),
        datetime_complete=_local(record.get("finished")),
        **details,
    )


def _distribution(form: dict[str, Any]) -> Any:
    read = getattr(sys.modules["optuna.distributions"], "json_to_distribution", None)
    return read(json.dumps(form)) if read else dists.from_wire(form)


def _constraints(named: dict[str, float]) -> dict[str, Any]:
    """Return constraint values as Optuna stores them: those of a sampler's constraints_func as one list."""
    if list(named) == [str(position) for position in range(len(named))]:
        return {"constraints": list(named.values())} if named else {}
    return {f"constraints:{name}": value for name, value in named.items()}


def _local(time: str | None) -> dt.datetime | None:
    if time is None:
        return None
    return dt.datetime.fromisoformat(time.replace("Z", "+00:00")).astimezone().replace(tzinfo=None)
