"""Script mode: a whole Optuna script, unmodified. Its `optimize` runs the pod's trial and ends the process.

In the refit, `optimize` returns at once with the finished study, and the code after it runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tuning_trainer.exceptions import format_traceback
from tuning_trainer.failure import BAD_VALUE, CAUGHT, Failure, TrialFailure
from tuning_trainer.log import calling_frame, log, write
from tuning_trainer.modes.lookahead import check_only_call
from tuning_trainer.modes.manifest_check import (
    check_arguments,
    check_components,
    constraints_function,
    with_grid,
)
from tuning_trainer.modes.workers import (
    IN_OBJECTIVE,
    TrialOverInWorker,
    Workers,
    end_executors,
    start_workers,
)
from tuning_trainer.optuna_api import hook
from tuning_trainer.optuna_api.bridge import Inside
from tuning_trainer.optuna_api.callbacks import chosen, run_callbacks
from tuning_trainer.optuna_api.choice import Choice, is_skipped, refuse_ask
from tuning_trainer.outcome import Outcome, exceptions, outcome_of_exception, outcome_of_value
from tuning_trainer.runner import TrialOver
from tuning_trainer.stopping import Stopped
from tuning_trainer.wire.client import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tuning_trainer.optuna_api.bridge import Bridge
    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.runner import Run

IGNORED = {
    "n_trials": "spec.maxTrials",
    "timeout": "spec.timeout",
}
"""Arguments of `optimize` that concern the whole study, and the fields to use instead."""
INTEGRATIONS = "optuna_integration."
STEPWISE = "optuna_integration.lightgbm"
"""LightGBMTuner optimizes a few parameters at a time, and each step uses the result of the one before."""


TRIAL_IS_OVER = "The pod's trial is over."


class TrialBridge:
    """Lets the script's study run the pod's one trial, in the first worker that asks for it."""

    offline = True

    def __init__(self, run: Run, workers: Workers) -> None:
        self.inside = Inside()
        self.over: TrialOver | None = None
        self.choice = Choice(run.settings.config.get("study"))
        self._run = run
        self._workers = workers
        self._opening = threading.Lock()
        self._opened: tuple[Trial, list[str]] | None = None
        self._constraints: Callable[[Trial], Any] | None = None

    def use_trial(self, trial: Trial, metrics: list[str]) -> None:
        """Use a trial that is open already."""
        self._opened = trial, metrics

    def owns(self, study: Any) -> bool:
        """Return whether the script created the study outside the objective."""
        return "_tuning_key" in vars(study)

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return an empty study in memory with the manifest's directions and the script's name.

        Between ask and tell, as in an objective, another study is plain Optuna.

        Raises:
            TrialFailure: the script contradicts the manifest.
            TrialOver, TrialOverInWorker: the trial is over.
        """
        if (code := self._workers.exit_code()) is not None:
            self._stop_script(code)
        elif self._workers.in_owning_thread and (owner := self._workers.owner()) is not None:
            if arguments.get("study_name") != owner.study:
                return self._nested(original, arguments)
            return self._empty(arguments)
        if (other := self.choice.skipped(arguments, self.inside)) is not None:
            return other
        return self._empty(arguments)

    def _empty(self, arguments: dict[str, Any]) -> Any:
        if calling_module().startswith(INTEGRATIONS):  # OptunaSearchCV's sampler has a new seed each time
            arguments.pop("sampler", None)
        trial, _ = self._open()
        directions = [direction.name.lower() for direction in trial.study.directions]
        with self._rejecting():
            check_arguments(arguments, directions, self._config)
        if arguments.get("storage") is not None:
            log("the script's storage is ignored: the study server keeps the study")
        kept = {name: arguments[name] for name in ("sampler", "pruner", "study_name") if arguments.get(name)}
        with self.inside:
            study = sys.modules["optuna"].create_study(directions=directions, **kept)
        # kept on the study itself, which may be sent to other processes
        study._tuning_key = study.study_name  # noqa: SLF001
        study._tuning_created = {"sampler": study.sampler, "pruner": study.pruner}  # noqa: SLF001
        return study

    def _nested(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        with self.inside:
            study = original(**arguments)
        setattr(study, hook.NESTED, True)
        return study

    def optimize(self, study: Any, arguments: dict[str, Any]) -> None:
        """Run the pod's trial, deliver its result and end the script; return if another worker has run it.

        Does nothing for a study that is skipped.

        Raises:
            TrialFailure: the script needs something that a pod can't do.
            TrialOver: the trial is over, and this is the script's process.
        """
        if is_skipped(study):
            return
        with self._rejecting():
            check_one_trial(arguments)
            if self.choice.wanted is None:
                check_only_call(calling_frame())
        for name in [name for name in IGNORED if arguments.get(name)]:
            log(f"the argument {name} of optimize is ignored: use {IGNORED[name]}")
        callbacks = chosen(arguments.get("callbacks"))
        trial = self._take(study)
        if trial is not None:
            func, metrics = arguments["func"], self._open()[1]
            outcome = self._run_user_code(
                lambda: outcome_of_value(func(trial), metrics), arguments.get("catch")
            )
            self._end(study, trial, outcome, callbacks)

    def ask(self, study: Any, arguments: dict[str, Any]) -> Trial:
        """Return the pod's trial, with the parameters that the call names.

        Raises:
            TrialOver, TrialOverInWorker: the trial is over.
        """
        if is_skipped(study):
            refuse_ask(study)
        trial = self._take(study, asked=True)
        if trial is None:
            raise TrialOverInWorker(TRIAL_IS_OVER)
        for name, distribution in (arguments.get("fixed_distributions") or {}).items():
            trial._suggest(name, distribution)  # noqa: SLF001  as Optuna's integrations do
        return trial

    def tell(self, study: Any, arguments: dict[str, Any]) -> None:
        """End the trial as `study.tell` does, and the script with it; once it has ended, do nothing."""
        if is_skipped(study):
            refuse_ask(study)
        if self.over is not None or self._workers.exit_code() is not None:
            return
        trial, metrics = self._open()
        self._check_same(study, trial)
        state = arguments.get("state")
        if state is not None and state.name in ("PRUNED", "FAIL"):
            failure = Failure("Exception", "The script reported its trial as failed (study.tell).")
            self._end(study, trial, Outcome(state.name, failure=failure if state.name == "FAIL" else None))
        else:
            self._end(study, trial, outcome_of_value(arguments.get("values"), metrics))

    @property
    def _config(self) -> dict[str, Any]:
        return with_grid(self._run.settings.config, self._open()[0].declared)

    def _open(self) -> tuple[Trial, list[str]]:
        with self._opening:
            try:
                self._opened = self._opened or self._run.open_trial()
            except TrialOver as over:
                raise (over if self._workers.in_main_process else TrialOverInWorker(TRIAL_IS_OVER)) from None
            return self._opened

    def _take(self, study: Any, asked: bool = False) -> Trial | None:
        """Return the trial; None in a process of the script's once another worker has run the trial.

        Raises:
            TrialOver: another worker has run it, and this is the script's process.
            TrialFailure: another worker ended without a result, or the study contradicts the manifest.
        """
        key = getattr(study, "_tuning_key", "")
        trial, _ = self._open()
        if not self._workers.in_owning_thread:
            self._check_study(study)
            if not self._workers.take_trial(key, asked):
                self._leave(study, key)
                return None
        elif (code := self._workers.exit_code()) is not None:
            self._stop_script(code)
            return None
        self._check_same(study, trial)
        self._describe(study, trial)
        return trial

    def _check_same(self, study: Any, trial: Trial) -> None:
        """Reject a study other than the one that asked for the trial."""
        owner = self._workers.owner()
        if owner is not None and owner.study != getattr(study, "_tuning_key", ""):
            with self._rejecting():
                raise _other_study(trial.study.study_name, study.study_name)

    def _describe(self, study: Any, trial: Trial) -> None:
        with self._rejecting():
            trial.study.describe(study.study_name, study.user_attrs)

    def _check_study(self, study: Any) -> None:
        created = getattr(study, "_tuning_created", None) or {}
        assigned = {kind: getattr(study, kind) for kind, old in created.items()}
        with self._rejecting():
            check_components(
                {kind: thing for kind, thing in assigned.items() if thing is not created[kind]},
                len(study.directions),
                self._config,
            )
        self._constraints = constraints_function(study.sampler)

    def _leave(self, study: Any, key: str) -> None:
        """Wait for the worker that runs the trial, and end the script with it."""
        owner = self._workers.owner()
        if owner is not None and owner.study != key and self._workers.exit_code() is None:
            failure = _several_studies(study.study_name)
            self._finish(self._run.deliver(Outcome("FAIL", failure=failure)))
            return
        code = self._workers.wait()
        if code is None:
            raise _unfinished(self._workers)
        self._stop_script(code)

    @contextlib.contextmanager
    def _rejecting(self) -> Iterator[None]:
        """End the trial if the script is rejected, so that it can't catch the exception and go on."""
        try:
            yield
        except (TrialFailure, Refused) as rejection:
            if self._workers.in_owning_thread or self._workers.take_trial(""):
                self.end_with(rejection)
            raise

    def end_with(self, problem: BaseException) -> None:
        """End the trial with an exception, unless it has ended.

        Raises:
            TrialOver: it has ended now, and this is the script's process.
        """
        if self._workers.exit_code() is None:
            self._finish(self._run.deliver(outcome_of_exception(problem)))

    def _run_user_code(self, code: Callable[[], Outcome], catch: Any = None) -> Outcome:
        os.environ[IN_OBJECTIVE] = "1"
        try:
            with self.inside:
                return code()
        except BaseException as error:  # noqa: BLE001  whatever ends the objective ends the trial
            outcome = outcome_of_exception(error)
            if outcome.failure is not None and isinstance(error, exceptions(catch)):
                outcome = outcome._replace(failure=outcome.failure._replace(category=CAUGHT))
            return outcome
        finally:
            os.environ.pop(IN_OBJECTIVE, None)

    def _constrained(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Call the sampler's constraints_func, as its after_trial does."""
        for position, value in enumerate(self._constraints(trial) if self._constraints else ()):
            trial.set_constraint(str(position), value)
        return outcome

    def _end(self, study: Any, trial: Trial, outcome: Outcome, callbacks: Iterable[Any] = ()) -> None:
        self._describe(study, trial)
        ended = outcome
        if outcome.state != "FAIL":
            ended = self._run_user_code(lambda: self._constrained(trial, outcome))
        exit_code = self._run.deliver(ended)
        raised = ended.failure is not None and ended.failure.category not in (CAUGHT, BAD_VALUE)
        if self._run.recorded is not None and not raised:  # an exception ends Optuna's loop before callbacks
            with self.inside:
                run_callbacks(callbacks, trial, self._run.recorded)
        self._finish(exit_code)

    def _finish(self, exit_code: int) -> None:
        self._stop_script(self._workers.finish(exit_code))

    def _stop_script(self, exit_code: int) -> None:
        """End the script's process; others return to their code, since a pool would wait for them forever."""
        if self._workers.in_main_process:
            self.over = TrialOver(exit_code)
            raise self.over


def run_script(arguments: list[str], run: Run, trial: Trial, metrics: list[str]) -> Outcome:
    """Run the script until its trial has ended.

    Raises:
        TrialOver: the trial's result is delivered.
        TrialFailure: the script needs something that a pod can't do, or ended without a trial.
        SystemExit: this is a process that the script has forked.
        BaseException: whatever the script raises before its trial.
    """
    file = find_script(arguments[0], run.settings.source)
    workers = start_workers()
    bridge = TrialBridge(run, workers)
    bridge.use_trial(trial, metrics)
    problem: BaseException | None = None
    try:
        execute(file, arguments, bridge)
    except Stopped:
        raise
    except BaseException as error:  # noqa: BLE001  its trial may have ended, or may run in another worker
        problem = None if isinstance(error, SystemExit) and not error.code else error
    if not workers.in_main_process:  # the script has forked it
        raise problem or SystemExit
    if problem is None:
        workers.wait_for_leftovers()
    _raise_end(bridge, workers, problem)
    remedy = "Call it at module level or under `if __name__ == '__main__':`."
    raise problem or without_study(file.name, bridge.choice, remedy)


def without_study(script: str, choice: Choice, remedy: str) -> TrialFailure:
    """Return the failure of a script that ended without optimizing the study; the remedy is for any study."""
    if choice.wanted is None:
        return _script_failure(f"{script} ended without calling study.optimize.", remedy)
    created = f"created the studies {', '.join(choice.created)}" if choice.created else "created no study"
    return _script_failure(
        f"{script} ended without optimizing the study {choice.wanted} (trial.study): it {created}.",
        "Set trial.study to the study_name of one of them or, for a study without a name, to its position.",
    )


def check_one_trial(arguments: dict[str, Any]) -> None:
    """Reject a call of optimize that needs more than one trial in its process.

    Raises:
        TrialFailure: it does; the message says what to do instead.
    """
    if calling_module().startswith(STEPWISE):
        raise _script_failure(
            "LightGBMTuner optimizes in several steps, but each process runs only one trial.",
            "Write an objective that suggests LightGBM's parameters, or run the tuner without a study.",
        )
    jobs = arguments.get("n_jobs", 1)
    if jobs != 1:
        raise _script_failure(
            f"The script calls optimize with n_jobs={jobs}, but each process runs only one trial.",
            "Remove n_jobs from the script, and set spec.parallelism to run trials in parallel.",
        )


def _raise_end(bridge: TrialBridge, workers: Workers, problem: BaseException | None) -> None:
    """Raise TrialOver if a worker has run the trial or still does, even if the script caught it."""
    if bridge.over is not None:
        raise bridge.over
    if workers.owner() is None:
        return
    if workers.exit_code() is not None:
        problem = None  # code that needs all trials, such as study.best_value
    elif problem is not None and not workers.in_owning_thread:
        write(format_traceback(problem))
        log("the script ended with the exception above, but a worker runs the trial: its result counts")
        end_executors()
    code = workers.wait()
    if code is not None:
        raise TrialOver(code)
    bridge.end_with(problem or _unfinished(workers))


def _unfinished(workers: Workers) -> TrialFailure:
    """Return the failure of a trial whose worker has ended, without a result."""
    if workers.in_owning_thread:
        return _script_failure(
            "The script asked for its trial (study.ask), but ended without reporting a result (study.tell).",
            "Call study.tell with the trial and its value.",
        )
    return _script_failure(
        "The worker that ran the trial ended without a result.",
        "See its log: it may have raised an exception, or may have been killed for lack of memory.",
    )


def execute(file: Path, arguments: list[str], bridge: Bridge) -> None:
    """Run a script as `python script.py arguments` does, with its folder first on the module path."""
    source = file.read_bytes()
    hook.install(bridge)
    module = ModuleType("__main__")
    module.__file__ = str(file)
    sys.modules["__main__"] = module
    sys.argv = [str(file), *arguments[1:]]
    sys.path.insert(0, str(file.parent))
    # dont_inherit: not the __future__ imports of this module
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
    raise _script_failure(
        f"Script '{name}' not found in {searched}.", "Correct trial.script or trial.source."
    )


def calling_module() -> str:
    """Return the name of the module that called the runtime: `__main__` for the script, or a library's."""
    frame = calling_frame()
    return str(frame.f_globals.get("__name__", "")) if frame is not None else ""


def _several_studies(name: str) -> Failure:
    return Failure(
        "Script",
        f"The script's workers optimize several studies, {name} and another, but a TuningStudy tunes one.",
        "Set trial.study to the study_name of the one to tune, give each study its own script and "
        "TuningStudy, or give the workers the same study_name.",
    )


def _other_study(asked: str, other: str) -> TrialFailure:
    return _script_failure(
        f"The script uses the study {other} between ask and tell of the study {asked}, but a TuningStudy "
        "tunes one.",
        f"Create the study {other} between ask and tell, so that it belongs to the trial, or give each study "
        "its own script and TuningStudy.",
    )


def _script_failure(message: str, remedy: str) -> TrialFailure:
    return TrialFailure(Failure("Script", message, remedy))
