"""Script mode: a whole Optuna script, unmodified; its `optimize` runs the pod's trial and ends the process.

In the refit Job `optimize` returns at once, and the study is the finished one: the code below it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.console import say
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.modes.manifest_check import check_asked, constraints_function
from tuning_trainer.modes.script_source import INTEGRATIONS, caller_outside, check_caller, check_source
from tuning_trainer.optuna_api import optuna_hook
from tuning_trainer.outcome import Outcome, outcome_of_exception, outcome_of_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.settings import Settings

IGNORED = {
    "n_trials": "spec.maxTrials",
    "timeout": "spec.timeout",
    "callbacks": "spec.maxTrialsWithoutImprovement and spec.objectives[].target",
}
"""Arguments of `optimize` that concern the whole study, and the fields that take their place."""


class TrialOver(SystemExit):
    """Raised by `optimize` when the trial's result is delivered: ends the script."""


class TrialBridge:
    """In a trial's pod: the script's study runs one trial."""

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
        """Return whether the script made the study outside the objective."""
        return any(study is one for one in self._studies)

    def create(self, original: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """Return an empty study in memory with the manifest's directions, the script's name and attributes.

        Raises:
            TrialFailure: script and manifest contradict one another.
        """
        del original
        if caller_outside().startswith(
            INTEGRATIONS
        ):  # OptunaSearchCV, whose sampler has a new seed each time
            asked.pop("sampler", None)
        directions = [direction.name.lower() for direction in self._trial.study.directions]
        check_asked(asked, directions, self._config)
        if asked.get("storage") is not None:
            say("the script's storage is not used: the study server keeps the study")
        kept = {name: asked[name] for name in ("sampler", "pruner", "study_name") if asked.get(name)}
        create = sys.modules["optuna"].create_study
        self._constraints = constraints_function(asked.get("sampler"))
        self.inside = True
        try:
            self._studies.append(create(directions=directions, **kept))
        finally:
            self.inside = False
        return self._studies[-1]

    def optimize(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """Run the pod's trial, tell its result, end the script.

        Raises:
            TrialFailure: the script asks for what a pod cannot do.
            TrialOver: the trial is over.
        """
        check_caller(caller_outside())
        jobs = asked.get("n_jobs", 1)
        if jobs != 1:
            raise TrialFailure(
                Failure(
                    "Script",
                    f"The script calls optimize with n_jobs={jobs}, but a pod runs one trial.",
                    "Remove n_jobs; spec.parallelism says how many trials run at the same time.",
                )
            )
        for name in [name for name in IGNORED if asked.get(name)]:
            say(f"{name} of optimize is not used: the manifest decides ({IGNORED[name]})")
        trial = self.ask(study, {})
        self._end(self._run(lambda: outcome_of_value(asked["func"](trial), self._metrics)))

    def ask(self, study: Any, asked: dict[str, Any]) -> Trial:
        """Return the pod's trial, with the parameters that the call asks for."""
        del study
        if self.over is not None:
            raise self.over
        for name, distribution in (asked.get("fixed_distributions") or {}).items():
            self._trial._suggest(name, distribution)  # noqa: SLF001  as Optuna's integrations do
        return self._trial

    def tell(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """End the trial as `study.tell` would, and the script with it."""
        del study
        state = asked.get("state")
        if state is not None and state.name in ("PRUNED", "FAIL"):
            failure = Failure("Exception", "The script told its trial as failed.")
            self._end(Outcome(state.name, failure=failure if state.name == "FAIL" else None))
        self._end(outcome_of_value(asked.get("values"), self._metrics))

    def _run(self, objective: Callable[[], Outcome]) -> Outcome:
        self.inside = True
        try:
            return objective()
        except BaseException as error:  # noqa: BLE001  whatever ends the objective ends the trial, and is told
            return outcome_of_exception(error)
        finally:
            self.inside = False

    def _constrained(self, outcome: Outcome) -> Outcome:
        """Call the sampler's constraints_func, as its after_trial would."""
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
    """Run the script up to its trial's end.

    Raises:
        TrialOver: the trial's result is delivered.
        TrialFailure: the script asks for what a pod cannot do, or ended without a trial.
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
        raise bridge.over  # also if the script's own code has caught it the first time
    raise TrialFailure(
        Failure(
            "Script",
            f"{file.name} ended without calling study.optimize.",
            "Call it at module level or under `if __name__ == '__main__'`.",
        )
    )


def execute(file: Path, arguments: list[str], bridge: optuna_hook.Bridge) -> None:
    """Run a script as `python script.py arguments` would, its folder first on the module path."""
    source = file.read_bytes()
    check_source(file.name, source)
    optuna_hook.install(bridge)
    module = ModuleType("__main__")
    module.__file__ = str(file)
    sys.modules["__main__"] = module
    sys.argv = [str(file), *arguments[1:]]
    sys.path.insert(0, str(file.parent))
    exec(compile(source, str(file), "exec"), module.__dict__)  # noqa: S102  to run it is what this is for


def find_script(name: str, source: str | None) -> Path:
    """Return the script's path: in the trial's source, else in the working directory.

    Raises:
        TrialFailure: it is in neither.
    """
    places = [Path(folder).resolve() for folder in (source, ".") if folder]
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = " or ".join(map(str, places))
    arguments = " trial.script is a file's name; it takes no arguments." if " " in name else ""
    raise TrialFailure(
        Failure(
            "Script",
            f"There is no script '{name}' in {looked}.",
            f"Mend trial.script or trial.source.{arguments}",
        )
    )
