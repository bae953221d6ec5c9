"""The refit of a script: `optimize` returns at once, and the study is the finished one, kept in memory."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from tuning_trainer.exceptions import failure_of
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.modes.figures import Figures
from tuning_trainer.modes.lookahead import WAY_OUT
from tuning_trainer.modes.script import execute, find_script
from tuning_trainer.modes.workers import connect_spawned_processes, wait_for_leftovers
from tuning_trainer.optuna_api.bridge import Inside
from tuning_trainer.optuna_api.choice import Choice, is_skipped, refuse_ask
from tuning_trainer.optuna_api.finished import trial_of_record
from tuning_trainer.outcome import Outcome, is_pruned
from tuning_trainer.wire.codec import from_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.settings import Settings


def refit_script(arguments: list[str], settings: Settings, trial: Trial, finished: dict[str, Any]) -> Outcome:
    """Run the whole script with the finished study (the protocol's FinishedStudy).

    User attributes that the script sets on the study, such as the model's path, become the refit's.

    Raises:
        TypeError: such an attribute cannot be written as JSON.
        BaseException: whatever the script raises.
    """
    bridge = FinishedBridge(finished, Choice(settings.config.get("study")))
    figures = Figures()
    figures.install()
    connect_spawned_processes()
    try:
        execute(find_script(arguments[0], settings.source), arguments, bridge)
    except SystemExit as end:
        if end.code:
            raise
    except Exception as error:
        if isinstance(error, TrialFailure) or is_pruned(error):
            raise
        raise TrialFailure(_without_objective(error, bridge.objectives)) from error
    wait_for_leftovers()  # they may train the model
    if bridge.rejection is not None:  # and the script caught it
        raise bridge.rejection
    for key, value in bridge.new_attributes().items():
        trial.set_user_attr(key, value)
    figures.record(trial)
    return Outcome("COMPLETE")


def _without_objective(error: Exception, objectives: list[Any]) -> Failure:
    """Return the failure of a script in the refit; it may need what the objective did not set."""
    failure = failure_of(error)
    names = sorted({name for objective in objectives for name in _assigned_globals(objective)})
    if names:
        remedy = f"The objective sets {', '.join(names)}, but does not run in the refit."
    elif objectives and isinstance(error, (AttributeError, NameError, LookupError, TypeError)):
        remedy = "The objective does not run in the refit, so whatever it sets or collects is missing."
    else:
        return failure
    return failure._replace(remedy=f"{remedy} Train the final model after optimize, with study.best_params.")


def _assigned_globals(function: Any) -> Iterator[str]:
    """Yield the global variables that a function assigns."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    for instruction in dis.get_instructions(code) if code is not None else ():
        if instruction.opname == "STORE_GLOBAL":
            yield str(instruction.argval)


class FinishedBridge:
    """Gives the script the finished study: the same one each time it creates or loads it."""

    offline = True

    def __init__(self, finished: dict[str, Any], choice: Choice) -> None:
        self.inside = Inside()
        self._choice = choice
        self._finished = finished
        self._study: Any = None
        self._key: object = None
        self._optimized: object = None
        self.rejection: TrialFailure | None = None
        """Why the script is rejected."""
        self.objectives: list[Any] = []
        """What the script passes to `optimize`; it does not run."""

    def owns(self, study: Any) -> bool:
        """Return whether it is the finished study."""
        return study is self._study

    def new_attributes(self) -> dict[str, Any]:
        """Return the user attributes that the script has set."""
        known = from_wire(self._finished.get("userAttrs") or {})
        now = self._study.user_attrs if self._study is not None else {}
        return {
            key: value for key, value in now.items() if key not in known or repr(known[key]) != repr(value)
        }

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return the finished study, in the script's storage if that is an object (which is in memory)."""
        del original
        if (other := self._choice.skipped(arguments, self.inside)) is not None:
            return other
        self._key = arguments.get("study_name") or object()
        if self._study is not None:
            return self._study
        kept = {name: arguments[name] for name in ("sampler", "pruner", "study_name") if arguments.get(name)}
        if arguments.get("storage") is not None and not isinstance(arguments["storage"], str):
            kept["storage"] = arguments["storage"]
        with self.inside:
            study = sys.modules["optuna"].create_study(directions=self._finished["directions"], **kept)
            _fill(study, self._finished)
        self._study = study
        return study

    def optimize(self, study: Any, arguments: dict[str, Any]) -> None:
        """Return at once.

        Raises:
            TrialFailure: the script optimizes another study, which this one's result would be wrong for.
        """
        if is_skipped(study):
            return
        if self._optimized not in (None, self._key):
            message = "The script optimizes a second study, but the trials are those of the first."
            self.rejection = TrialFailure(Failure("Script", message, WAY_OUT))
            raise self.rejection
        self._optimized = self._key
        self.objectives.append(arguments.get("func"))
        log("the study is finished: optimize returns at once, and the code after it runs")

    def ask(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Reject ask and tell: a loop of them would not end in a finished study."""
        del arguments
        if is_skipped(study):
            refuse_ask(study)
        raise TrialFailure(
            Failure(
                "Script",
                "The script asks the finished study for another trial (study.ask or study.tell).",
                "For a script that uses ask and tell, set refit.objective or refit.command.",
            )
        )

    tell = ask


def _fill(study: Any, finished: dict[str, Any]) -> None:
    trials = sorted(finished["trials"], key=lambda trial: trial["number"])
    finished_trials = [trial_of_record(trial) for trial in trials]
    if hasattr(study, "add_trials"):
        study.add_trials(finished_trials)
    else:
        study.trials = finished_trials
    for key, value in from_wire(finished.get("userAttrs") or {}).items():
        study.set_user_attr(key, value)
