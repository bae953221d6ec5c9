"""`trial.study`: which of a script's studies is tuned. The others are skipped, their results unknown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.optuna_api.bridge import STUDY_ARGUMENTS

if TYPE_CHECKING:
    from tuning_trainer.optuna_api.bridge import Inside

SKIPPED = "_tuning_skipped"
"""An attribute of the studies that are skipped: the name of the chosen one."""


class Choice:
    """The study that a TuningStudy tunes, by its study_name or, if it has none, its position from 1 on."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.created: list[str] = []
        """The names of the script's studies, or else their positions, in the order of their creation."""

    def skipped(self, arguments: dict[str, Any], inside: Inside) -> Any:
        """Return a study that is skipped; None if create_study or load_study gets the chosen one."""
        name = arguments.get("study_name") or str(len(self.created) + 1)
        if name not in self.created:
            self.created.append(name)
        if self.wanted in (None, name):
            return None
        kept = {key: arguments[key] for key in STUDY_ARGUMENTS if arguments.get(key)}
        with inside:
            study = sys.modules["optuna"].create_study(**kept)
        setattr(study, SKIPPED, self.wanted)
        log(f"the study {name} is skipped, since trial.study is {self.wanted}")
        return study


def is_skipped(study: Any) -> bool:
    """Return whether a study is not the one that trial.study names."""
    return SKIPPED in vars(study)


def refuse_ask(study: Any) -> NoReturn:
    """Refuse ask and tell, whose code can't be left out as a call of optimize can.

    Raises:
        TrialFailure: always.
    """
    raise TrialFailure(
        Failure(
            "Script",
            f"The script uses ask and tell with the study {study.study_name}, but trial.study is "
            f"{vars(study)[SKIPPED]}.",
            "Only studies that use optimize can be skipped: give each study its own script.",
        )
    )


class Unknown:
    """A result of a study that is skipped: it can be passed on and printed, but not used."""

    def __init__(self, what: str, study: str, chosen: str) -> None:
        self._what = what
        self._study = study
        self._chosen = chosen

    def __repr__(self) -> str:
        return f"<unknown: the study {self._study} is skipped>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("_"):
            raise AttributeError(name)
        return Unknown(f"{self._what}.{name}", self._study, self._chosen)

    def __getitem__(self, key: object) -> Unknown:
        return Unknown(f"{self._what}[{key!r}]", self._study, self._chosen)

    def __call__(self, *_args: object, **_kwargs: object) -> Unknown:
        """Return another unknown result, as a method of a result does."""
        return self

    def __round__(self, digits: int | None = None) -> Unknown:
        return self

    def _use(self, *_: object) -> NoReturn:
        raise TrialFailure(
            Failure(
                "Script",
                f"The script uses {self._what} of the study {self._study}, which is skipped because "
                f"trial.study is {self._chosen}.",
                "Use only the results of the chosen study, or give each study its own script.",
            )
        )

    __bool__ = __len__ = __iter__ = __contains__ = __float__ = __int__ = __index__ = __neg__ = __abs__ = _use
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _use
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _use
    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _use
    __hash__ = object.__hash__


def unknown(study: Any, what: str) -> Unknown:
    """Return a result of a study that is skipped."""
    return Unknown(what, study.study_name, vars(study)[SKIPPED])
