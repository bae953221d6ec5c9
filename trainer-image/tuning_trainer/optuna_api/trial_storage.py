"""`trial.storage`: Optuna's artifacts and integrations store attributes of a trial through it."""

from __future__ import annotations

import sys
from typing import Any, NoReturn, Protocol

SYSTEM = "system_attrs:"
"""The protocol has no system attributes: they are user attributes with this prefix."""


class Attributes(Protocol):
    """The attributes of the pod's trial."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """A copy of the user attributes."""

    @property
    def system_attrs(self) -> dict[str, Any]:
        """A copy of the system attributes."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute."""

    def store_system_attr(self, key: str, value: Any) -> None:
        """Set a system attribute."""

    def refresh(self) -> None:
        """Fetch the attributes from the server."""


class TrialStorage:
    """The part of Optuna's BaseStorage that concerns one trial: the pod's own, whatever number is given."""

    def __init__(self, trial: Attributes) -> None:
        self._trial = trial

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Optuna's database storage where Optuna is loaded: Lightning's callback accepts no other."""
        return _optunas("_cached_storage", "_CachedStorage", TrialStorage)

    @property
    def _backend(self) -> SharedStorage:
        """The same storage, including what other processes of the pod have written."""
        return SharedStorage(self._trial)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of the trial.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        del trial_id
        self._trial.store_system_attr(key, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of the trial.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        del trial_id
        self._trial.set_user_attr(key, value)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a copy of the trial's system attributes."""
        del trial_id
        return self._trial.system_attrs

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a copy of the trial's user attributes."""
        del trial_id
        return self._trial.user_attrs

    def __getattr__(self, name: str) -> NoReturn:
        """Explain why the rest of Optuna's storage is missing; an AttributeError, so that `hasattr` works."""
        raise AttributeError(
            f"storage.{name} is not available in a trial, which can't read other trials: "
            "the study server keeps the study"
        )


class SharedStorage(TrialStorage):
    """The same storage, read from the server each time."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Optuna's database storage where Optuna is loaded."""
        return _optunas("_rdb.storage", "RDBStorage", SharedStorage)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return the trial's system attributes."""
        self._trial.refresh()
        return super().get_trial_system_attrs(trial_id)


def _optunas(module: str, name: str, otherwise: type) -> type:
    found: type = getattr(sys.modules.get(f"optuna.storages.{module}"), name, otherwise)
    return found


def split(attrs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user attributes and the system attributes of a record's attributes."""
    system = {key[len(SYSTEM) :]: value for key, value in attrs.items() if key.startswith(SYSTEM)}
    return {key: value for key, value in attrs.items() if not key.startswith(SYSTEM)}, system
