"""The callbacks of `study.optimize`: those whose effect belongs to the trial run in its pod, after its end.

The others concern the whole study, which a pod doesn't know: the manifest has fields for what they do.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tuning_trainer.exceptions import format_traceback
from tuning_trainer.log import log, write
from tuning_trainer.optuna_api.bridge import IGNORED
from tuning_trainer.optuna_api.finished import ended_trial
from tuning_trainer.stopping import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tuning_trainer.optuna_api.trial import Trial

OF_THE_STUDY = {
    "MaxTrialsCallback": "spec.maxTrials",
    "TerminatorCallback": "spec.maxTrialsWithoutImprovement",
}
"""Optuna's callbacks that only end the study, and the fields to use instead."""
ENDS = "spec.maxTrialsWithoutImprovement and spec.objectives[].target end a study early"
BEST = ("best_trial", "best_trials", "best_value", "best_params", "trials_dataframe")


class NeedsOtherTrials(Exception):  # noqa: N818
    """Raised where a callback asks for what only the whole study has."""


class CallbackStudy:
    """The study that a callback gets: its name, directions and attributes, and the pod's trial alone."""

    def __init__(self, trial: Trial, frozen: Any) -> None:
        self._study = trial.study
        self._frozen = frozen

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Optuna's Study where it is loaded, so that isinstance holds."""
        return self._study.__class__

    @property
    def trials(self) -> list[Any]:
        """The pod's trial."""
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Iterable[Any] | None = None) -> list[Any]:
        """Return the pod's trial, if it is in one of the states."""
        found = [self._frozen] if states is None or self._frozen.state in states else []
        return copy.deepcopy(found) if deepcopy else found

    def set_user_attr(self, key: str, value: Any) -> None:
        """Log that the trial's record is complete."""
        del value
        log(f"study.set_user_attr({key!r}) is ignored in a callback: call it in the objective")

    def __getattr__(self, name: str) -> Any:
        """Return what trial.study has; ignore what concerns other trials.

        Raises:
            NeedsOtherTrials: it would be wrong without the other trials.
            AttributeError: a pod doesn't have it.
        """
        if name in IGNORED:
            return lambda *_args, **_kwargs: log(IGNORED[name])
        if name in BEST:
            raise NeedsOtherTrials(name)
        return getattr(self._study, name)


def chosen(callbacks: Iterable[Callable[[Any, Any], None]] | None) -> list[Callable[[Any, Any], None]]:
    """Return the callbacks to run after the trial, and log which are not run and what to use instead."""
    kept = []
    for callback in callbacks or ():
        if (field := OF_THE_STUDY.get(type(callback).__name__)) is not None:
            log(f"the callback {name_of(callback)} is not run, since it ends the study: use {field}")
        else:
            kept.append(callback)
    return kept


def run_callbacks(
    callbacks: Iterable[Callable[[Any, Any], None]], trial: Trial, record: dict[str, Any]
) -> None:
    """Call each as Optuna does after a trial; the trial has its result, so an error is only logged."""
    for callback in callbacks:
        name, frozen = name_of(callback), ended_trial(trial, record)
        try:
            callback(CallbackStudy(trial, frozen), frozen)
        except Stopped:
            raise
        except NeedsOtherTrials as needs:
            log(f"the callback {name} stopped at study.{needs}: a trial can't read other trials; {ENDS}")
        except BaseException as error:  # noqa: BLE001  whatever it raises, the result stays
            write(format_traceback(error))
            log(f"the callback {name} failed with the exception above; the trial's result is kept")


def name_of(callback: Any) -> str:
    """Return the name of a callback: a function's, or that of an object's class."""
    return str(getattr(callback, "__name__", type(callback).__name__))
