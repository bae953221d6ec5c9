"""The trial that an objective gets: behaves like optuna.trial.Trial of Optuna 5.0, over HTTP."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import sys
import threading
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import warn
from tuning_trainer.optuna_api import distributions as dists
from tuning_trainer.optuna_api.study import TrialStudy
from tuning_trainer.optuna_api.trial_storage import SYSTEM, TrialStorage, split
from tuning_trainer.wire.client import Refused
from tuning_trainer.wire.codec import from_wire, numbers_from_wire, parameters_from_wire
from tuning_trainer.wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuning_trainer.wire.client import Client

CHOOSE_BY_NAME = (
    "Choose by name, for example "
    '`{"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("activation", ["relu", "tanh"])]`.'
)
PATIENCE = 1800.0
"""Seconds to wait for the server where the trial cannot continue without its answer."""


class Trial:
    """One trial. Signatures, checks and messages are those of optuna.trial.Trial. Threads can share it."""

    def __init__(self, client: Client, outbox: Outbox, study: str, view: dict[str, Any]) -> None:
        """Create the trial from the server's TrialView."""
        record = view["trial"]
        self._client = client
        self._outbox = outbox
        self._suggesting = threading.Lock()
        self.storage = TrialStorage(self)
        directions = [objective["direction"] for objective in view["objectives"]]
        self.study = TrialStudy(study, directions, self.storage, self.set_study_attr)
        self._number: int = record["number"]
        self._trial_id = self._number  # used by Optuna's artifacts and integrations
        self._started: str | None = record.get("started")
        self._declared: bool = view["fixed"]
        forms = view.get("distributions") or {}
        self._params = parameters_from_wire(record.get("parameters") or {}, forms)
        self._distributions = {name: dists.from_wire(form) for name, form in forms.items()}
        self._reported = {int(step): value for step, value in numbers_from_wire(view.get("reported")).items()}
        self._restored_steps = set(self._reported)  # reported by an earlier pod of this trial
        self._user_attrs, self._system_attrs = split(from_wire(view.get("userAttrs") or {}))
        self._constraints = numbers_from_wire(view.get("constraints"))
        self._asked_to_prune = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Optuna's Trial where the user's code has loaded it: `isinstance(trial, optuna.Trial)` holds."""
        optuna = sys.modules.get("optuna.trial")
        return getattr(optuna, "Trial", Trial)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trial:
        """Return the trial itself: frameworks deep-copy their arguments, but there is only one trial."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a process that the user's code spawns have the trial, with a connection of its own."""
        return _from_other_process, (self._client, self.study.study_name)

    def refresh(self) -> None:
        """Fetch the attributes that other processes of the pod have set."""
        view = self._client.call("GET", "", patience=PATIENCE)
        self._user_attrs, self._system_attrs = split(from_wire(view.get("userAttrs") or {}))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a float in [low, high].

        Raises:
            ValueError: the range is invalid, or its kind differs from an earlier one of the same name.
        """
        distribution = dists.FloatDistribution(low, high, log=log, step=step)
        value: float = self._suggest(name, distribution)
        self._warn_if_inconsistent(name, distribution)
        return value

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """Deprecated by Optuna: suggest_float(name, low, high)."""
        _warn_of_deprecation("suggest_uniform", "")
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """Deprecated by Optuna: suggest_float(name, low, high, log=True)."""
        _warn_of_deprecation("suggest_loguniform", "(..., log=True)")
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """Deprecated by Optuna: suggest_float(name, low, high, step=q)."""
        _warn_of_deprecation("suggest_discrete_uniform", "(..., step=...)")
        return self.suggest_float(name, low, high, step=q)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggest an integer in [low, high].

        Raises:
            ValueError: the range is invalid, or its kind differs from an earlier one of the same name.
        """
        distribution = dists.IntDistribution(low, high, log=log, step=step)
        value: int = self._suggest(name, distribution)
        self._warn_if_inconsistent(name, distribution)
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of the choices.

        Raises:
            ValueError: there are no choices, or they differ from earlier ones of the same name.
        """
        return self._suggest(name, dists.CategoricalDistribution(choices))

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value; only the first one of each step counts.

        Waits for the server no longer than `outbox.PATIENCE`: what cannot be sent then is sent later.

        Raises:
            TypeError: value or step is not a number.
            ValueError: step is negative.
            NotImplementedError: the study has several objectives.
        """
        self._refuse_several_objectives("report")
        number = _as_float(value)
        try:
            step = int(step)
        except (TypeError, ValueError):
            raise TypeError(
                f"The `step` argument is of type '{type(step)}' but supposed to be an int."
            ) from None
        if step < 0:
            raise ValueError(f"`{step=}` must be non-negative.")
        if step in self._reported and step not in self._restored_steps:
            warn(f"The reported value is ignored because this `{step=}` is already reported.")
            return
        self._restored_steps.discard(step)
        self._reported.setdefault(step, number)
        self._asked_to_prune = True
        self._outbox.put("report", step, number)

    def report_all(self, values: Iterable[tuple[int, float]]) -> None:
        """Report values with their steps in as few requests as possible."""
        with self._outbox.gathering():
            for step, value in values:
                self.report(value, step)

    def should_prune(self) -> bool:
        """Return whether the trial should stop, according to the server's reply to the last report.

        False if the server can't be reached within `outbox.PATIENCE`: training continues. A replacement pod
        asks the server again about the values that the earlier pod reported.

        Raises:
            NotImplementedError: the study has several objectives.
        """
        self._refuse_several_objectives("should_prune")
        if not self._reported:
            return False
        if not self._asked_to_prune:
            last = max(self._reported)
            self._asked_to_prune = True
            self._outbox.put("report", last, self._reported[last])
        return self._outbox.prune()

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set an attribute of the trial.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        self._set_attr("user_attrs", key, key, value)
        self._user_attrs[key] = value

    def set_study_attr(self, key: str, value: Any) -> None:
        """Set a user attribute of the study.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        self._set_attr("study_attrs", key, key, value)

    def set_system_attr(self, key: str, value: Any) -> None:
        """Deprecated by Optuna 3.1 and gone from 5.0: use set_user_attr."""
        warn("set_system_attr has been deprecated in v3.1.0. Use set_user_attr instead.", FutureWarning)
        self.store_system_attr(key, value)

    def store_system_attr(self, key: str, value: Any) -> None:
        """Set a system attribute without a warning, as Optuna's own modules do.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        self._set_attr("user_attrs", SYSTEM + key, key, value)
        self._system_attrs[key] = value

    def set_constraint(self, key: str, value: float) -> None:
        """Set a constraint's value (feasible: zero or less); only the first one of each key counts.

        Raises:
            TypeError: the value is not a number.
            ValueError: the value is NaN.
        """
        number = _as_float(value)
        if math.isnan(number):
            raise ValueError(f"Attempted to set a constraint for {key!r}, but NaN is not allowed.")
        if key in self._constraints:
            warn(f"The constraint value is ignored because this constraint `{key=}` is already set.")
            return
        self._constraints[key] = number
        self._outbox.put("constraints", key, number)

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self._number

    @property
    def params(self) -> dict[str, Any]:
        """The parameters suggested so far; all parameters if the manifest has a searchSpace."""
        return copy.deepcopy(self._params)

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that were sampled together: all if the manifest has a searchSpace, else none."""
        return self.params if self._declared else {}

    @property
    def distributions(self) -> dict[str, Any]:
        """The parameters' distributions: Optuna's own objects where Optuna is loaded."""
        return {name: dists.to_optuna(distribution) for name, distribution in self._distributions.items()}

    @property
    def declared(self) -> dict[str, dists.Distribution]:
        """The search space of the manifest, as far as this trial has it; empty if there is none."""
        return dict(self._distributions) if self._declared else {}

    @property
    def user_attrs(self) -> dict[str, Any]:
        """A copy of the user attributes."""
        return copy.deepcopy(self._user_attrs)

    @property
    def system_attrs(self) -> dict[str, Any]:
        """A copy of the system attributes."""
        return copy.deepcopy(self._system_attrs)

    @property
    def constraints(self) -> dict[str, float]:
        """A copy of the constraint values, by name."""
        return dict(self._constraints)

    @property
    def reported(self) -> dict[int, float]:
        """A copy of the intermediate values, by step."""
        return dict(self._reported)

    @property
    def datetime_start(self) -> dt.datetime | None:
        """When the trial started, in local time without a zone, as in Optuna."""
        if self._started is None:
            return None
        started = dt.datetime.fromisoformat(self._started.replace("Z", "+00:00"))
        return started.astimezone().replace(tzinfo=None)

    def _suggest(self, name: str, distribution: Any) -> Any:
        """Return a parameter's value. Optuna's integrations call this too, with Optuna's distributions."""
        distribution = dists.from_optuna(distribution)
        with self._suggesting:
            return self._suggest_once(name, distribution)

    def _suggest_once(self, name: str, distribution: dists.Distribution) -> Any:
        if name in self._distributions:
            self._check_compatible(name, distribution)
            old = self._distributions[name]
            same = (
                distribution if old == distribution else old
            )  # a choice is returned as the caller's own object
            return same.external(self._params[name])
        try:
            request = {"name": name, "distribution": dists.to_wire(distribution)}
        except TypeError as error:
            message = f"The parameter {name!r} can't be recorded: its choice {error}."
            raise TrialFailure(Failure("Parameters", message, CHOOSE_BY_NAME)) from None
        try:
            reply = self._client.call("POST", "/suggest", request, patience=PATIENCE)
        except Refused as refusal:
            raise ValueError(str(refusal)) from None
        value = distribution.external(reply["value"])
        self._distributions[name] = distribution
        self._params[name] = value
        return value

    def _check_compatible(self, name: str, distribution: dists.Distribution) -> None:
        old = self._distributions[name]
        try:
            dists.check_compatible(old, distribution)
        except ValueError as error:
            if not self._declared:
                raise
            raise ValueError(f"{error} spec.searchSpace declares {name} as {old}.") from None

    def _warn_if_inconsistent(self, name: str, distribution: dists.Distribution) -> None:
        """Warn about a different range, as Optuna does; reject one that excludes the trial's value."""
        old = self._distributions[name]
        asked = distribution.__dict__
        if self._declared and not asked["low"] <= self._params[name] <= asked["high"]:
            raise ValueError(
                f"The code suggests {name} from {distribution}, but spec.searchSpace declares it as {old}, "
                f"and this trial's value is {self._params[name]}. Change one of the two ranges."
            )
        if old != distribution:
            warn(
                f'Inconsistent parameter values for distribution with name "{name}"! '
                "This might be a configuration mistake. "
                "Optuna allows to call the same distribution with the same name more than once in a trial. "
                "When the parameter values are inconsistent optuna only "
                "uses the values of the first call and ignores all following. "
                f"Using these values: {old.__dict__}",
                RuntimeWarning,
            )

    def _set_attr(self, kind: str, wire_key: str, key: str, value: Any) -> None:
        try:
            # a copy, because it may be sent later than the caller changes it
            value = json.loads(json.dumps(value, default=_as_plain))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The attribute {key!r} can't be stored: {error}. Save it to a file and store the path."
            ) from None
        self._outbox.put(kind, wire_key, value)

    def _refuse_several_objectives(self, method: str) -> None:
        if len(self.study.directions) > 1:
            raise NotImplementedError(f"Trial.{method} is not supported for multi-objective optimization.")


def _from_other_process(client: Client, study: str) -> Trial:
    """Create the trial in another process."""
    return Trial(client, Outbox(client), study, client.call("GET", "", patience=PATIENCE))


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"The `value` argument is of type '{type(value)}' but supposed to be a float."
        ) from None


def _as_plain(value: Any) -> Any:
    """Return a NumPy number or array, or a tensor, as plain numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _warn_of_deprecation(name: str, arguments: str) -> None:
    warn(
        f"{name} has been deprecated in v3.0.0. This feature will be removed in v6.0.0. "
        "See https://github.com/optuna/optuna/releases/tag/v3.0.0. "
        f"Use suggest_float{arguments} instead.",
        FutureWarning,
    )
