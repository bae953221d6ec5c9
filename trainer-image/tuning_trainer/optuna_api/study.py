"""The study as a trial sees it, `trial.study`: its name and its directions."""

from __future__ import annotations

import copy
import enum
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tuning_trainer.log import log
from tuning_trainer.optuna_api.bridge import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuning_trainer.optuna_api.trial_storage import TrialStorage


D = TypeVar("D")


class StudyDirection(enum.IntEnum):
    """Optuna's StudyDirection, for images without Optuna."""

    NOT_SET = 0
    MINIMIZE = 1
    MAXIMIZE = 2


def only_direction(directions: Sequence[D]) -> D:
    """Return the direction of the only objective; raise Optuna's error if there are several."""
    if len(directions) > 1:
        raise RuntimeError(
            "A single direction cannot be retrieved from a multi-objective study. Consider using "
            "Study.directions to retrieve a list containing all directions."
        )
    return directions[0]


class TrialStudy:
    """What `trial.study` returns."""

    def __init__(
        self,
        name: str,
        directions: Sequence[str],
        storage: TrialStorage,
        send_user_attr: Callable[[str, Any], None],
    ) -> None:
        self.study_name = name
        self._storage = storage
        self._send_user_attr = send_user_attr
        self._directions = [direction.upper() for direction in directions]
        self._user_attrs: dict[str, Any] = {}

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Optuna's Study where it is loaded, so that isinstance holds."""
        optuna = sys.modules.get("optuna.study")
        return getattr(optuna, "Study", TrialStudy)

    @property
    def directions(self) -> list[Any]:
        """One direction for each objective, as Optuna's enumeration where Optuna is loaded."""
        optuna = sys.modules.get("optuna.study")
        kind = getattr(optuna, "StudyDirection", StudyDirection)
        return [kind[direction] for direction in self._directions]

    @property
    def direction(self) -> Any:
        """The direction of the only objective."""
        return only_direction(self.directions)

    def describe(self, name: str, user_attrs: dict[str, Any]) -> None:
        """Take over the name and the attributes of the script's study, and send what is new to the record."""
        self.study_name = name
        for key, value in user_attrs.items():
            if key not in self._user_attrs or repr(self._user_attrs[key]) != repr(value):
                self._user_attrs[key] = copy.deepcopy(value)
                try:
                    self._send_user_attr(key, value)
                except TypeError as error:  # the script's own study, in memory, may hold any object
                    log(f"Not recorded with the study: {error}")

    @property
    def user_attrs(self) -> dict[str, Any]:
        """A copy of the attributes set in this process."""
        return copy.deepcopy(self._user_attrs)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set an attribute of the study; other trials' pods do not see it.

        Raises:
            TypeError: the value cannot be written as JSON.
        """
        self._send_user_attr(key, value)
        self._user_attrs[key] = value

    def _is_multi_objective(self) -> bool:
        """Return whether there are several objectives: Hugging Face's hyperparameter_search asks this way."""
        return len(self._directions) > 1

    def stop(self) -> None:
        """Log that a trial does not end its study."""
        log(IGNORED["stop"])

    def __getattr__(self, name: str) -> NoReturn:
        """Explain why the rest of Optuna's Study is missing; an AttributeError, so that `hasattr` works."""
        raise AttributeError(
            f"study.{name} is not available in a trial, which can't read other trials. "
            "To read the whole study, use `optuna.load_study` with the study's database, or the dashboard."
        )
