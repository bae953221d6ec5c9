"""Script mode: a whole Optuna script, unmodified. Its `optimize` runs the pod's trial and ends the process.

In the refit, `optimize` returns at once with the finished study, and the code after it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.modes.manifest_check import check_arguments, constraints_function
from tuning_trainer.modes.script_source import INTEGRATIONS, calling_module, check_caller, check_source
from tuning_trainer.optuna_api import hook
from tuning_trainer.outcome import Outcome, outcome_of_exception, outcome_of_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.bridge import Bridge
    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.settings import Settings

IGNORED = {
    "n_trials": "spec.maxTrials",
    "timeout": "spec.timeout",
    "callbacks": "spec.maxTrialsWithoutImprovement and spec.objectives[].target",
}
"""Arguments of `optimize` that concern the whole study, and the fields to use instead."""


class TrialOver(SystemExit):
    """Raised by `optimize` once the trial's result is delivered; ends the script."""


class TrialBridge:
    """Lets the script's study run the pod's one trial."""

    offline = True

    def __init__(
        self,
        trial: Trial,
        metrics: list[str],
        config: dict[str, Any],
        deliver: Callable[[Outcome], int],
    ) -> None:
        self.inside = False
        self.over: TrialOver | None = None
        self._trial = trial
        self._metrics = metrics
        self._config = config
        self._deliver = deliver
        self._studies: list[Any] = []
        self._constraints: Callable[[Trial], Any] | None = None

    def owns(self, study: Any) -> bool:
        """Return whether the script created the study outside the objective."""
        return any(study is one for one in self._studies)

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return an empty study in memory with the manifest's directions and the script's name.

        Raises:
            TrialFailure: the script contradicts the manifest.
        """
        del original
        if calling_module().startswith(INTEGRATIONS):  # OptunaSearchCV's sampler has a new seed each time
            arguments.pop("sampler", None)
        directions = [direction.name.lower() for direction in self._trial.study.directions]
        check_arguments(arguments, directions, self._config)
        if arguments.get("storage") is not None:
            log("the script's storage is ignored: the study server keeps the study")
        kept = {name: arguments[name] for name in ("sampler", "pruner", "study_name") if arguments.get(name)}
        create = sys.modules["optuna"].create_study
        self._constraints = constraints_function(arguments.get("sampler"))
        self.inside = True
        try:
            self._studies.append(create(directions=directions, **kept))
        finally:
            self.inside = False
        return self._studies[-1]

    def optimize(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Run the pod's trial, deliver its result and end the script.

        Raises:
            TrialFailure: the script needs something that a pod can't do.
            TrialOver: the trial is over.
        """
        check_caller(calling_module())
        jobs = arguments.get("n_jobs", 1)
        if jobs != 1:
            raise TrialFailure(
                Failure(
                    "Script",
                    f"The script calls optimize with n_jobs={jobs}, but a pod runs only one trial.",
                    "Remove n_jobs from the script, and set spec.parallelism to run trials in parallel.",
                )
            )
        for name in [name for name in IGNORED if arguments.get(name)]:
            log(f"the argument {name} of optimize is ignored: use {IGNORED[name]}")
        trial = self.ask(study, {})
        self._end(self._run(lambda: outcome_of_value(arguments["func"](trial), self._metrics)))

    def ask(self, study: Any, arguments: dict[str, Any]) -> Trial:
        """Return the pod's trial, with the parameters that the call names."""
        del study
        if self.over is not None:
            raise self.over
        for name, distribution in (arguments.get("fixed_distributions") or {}).items():
            self._trial._suggest(name, distribution)  # noqa: SLF001  as Optuna's integrations do
        return self._trial

    def tell(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """End the trial as `study.tell` would, and the script with it."""
        del study
        state = arguments.get("state")
        if state is not None and state.name in ("PRUNED", "FAIL"):
            failure = Failure("Exception", "The script reported its trial as failed (study.tell).")
            self._end(Outcome(state.name, failure=failure if state.name == "FAIL" else None))
        self._end(outcome_of_value(arguments.get("values"), self._metrics))

    def _run(self, objective: Callable[[], Outcome]) -> Outcome:
        self.inside = True
        try:
            return objective()
        except BaseException as error:  # noqa: BLE001  whatever ends the objective ends the trial
            return outcome_of_exception(error)
        finally:
            self.inside = False

    def _constrained(self, outcome: Outcome) -> Outcome:
        """Call the sampler's constraints_func, as its after_trial does."""
        for position, value in enumerate(self._constraints(self._trial) if self._constraints else ()):
            self._trial.set_constraint(str(position), value)
        return outcome

    def _end(self, outcome: Outcome) -> NoReturn:
        if outcome.state != "FAIL":
            ended = outcome
            outcome = self._run(lambda: self._constrained(ended))
        self.over = TrialOver(self._deliver(outcome))
        raise self.over


def run_script(
    arguments: list[str],
    settings: Settings,
    trial: Trial,
    metrics: list[str],
    deliver: Callable[[Outcome], int],
) -> NoReturn:
    """Run the script until its trial has ended.

    Raises:
        TrialOver: the trial's result is delivered.
        TrialFailure: the script needs something that a pod can't do, or ended without a trial.
        BaseException: whatever the script raises before its trial.
    """
    bridge = TrialBridge(trial, metrics, settings.config, deliver)
    file = find_script(arguments[0], settings.source)
    try:
        execute(file, arguments, bridge)
    except BaseException as error:
        if bridge.over is None and not (isinstance(error, SystemExit) and not error.code):
            raise
    if bridge.over is not None:
        raise bridge.over  # even if the script caught it
    raise TrialFailure(
        Failure(
            "Script",
            f"{file.name} ended without calling study.optimize.",
            "Call it at module level or under `if __name__ == '__main__':`.",
        )
    )


def execute(file: Path, arguments: list[str], bridge: Bridge) -> None:
    """Run a script as `python script.py arguments` does, with its folder first on the module path."""
    source = file.read_bytes()
    check_source(file.name, source)
    hook.install(bridge)
    module = ModuleType("__main__")
    module.__file__ = str(file)
    sys.modules["__main__"] = module
    sys.argv = [str(file), *arguments[1:]]
    sys.path.insert(0, str(file.parent))
    exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)  # noqa: S102  the user's script


def find_script(name: str, source: str | None) -> Path:
    """Return the script's path, in trial.source or else in the working directory.

    Raises:
        TrialFailure: it is in neither.
    """
    places = [Path(folder).resolve() for folder in (source, ".") if folder]
    for place in places:
        if (place / name).is_file():
            return place / name
    searched = " or ".join(map(str, places))
    arguments = " trial.script is the name of a file, without arguments." if " " in name else ""
    raise TrialFailure(
        Failure(
            "Script",
            f"Script '{name}' not found in {searched}.",
            f"Correct trial.script or trial.source.{arguments}",
        )
    )
