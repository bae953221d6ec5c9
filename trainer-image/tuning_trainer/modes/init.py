"""`init`: describes a script's study, so that a manifest can be written from it.

Runs the script with the user's own Python up to its first `optimize` or `ask`, and writes a JSON document.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.exceptions import failure_of, is_argument_error
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import calling_frame
from tuning_trainer.modes.init_document import Made, study_document
from tuning_trainer.modes.lookahead import check_only_call
from tuning_trainer.modes.script import check_one_trial, execute, find_script, without_study
from tuning_trainer.modes.workers import TrialOverInWorker, Workers, start_workers
from tuning_trainer.optuna_api import hook
from tuning_trainer.optuna_api.bridge import STUDY_ARGUMENTS, Inside
from tuning_trainer.optuna_api.choice import Choice, is_skipped, refuse_ask
from tuning_trainer.runner import TrialOver

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = "usage: trainer.zip init --output FILE [--study NAME] SCRIPT [ARGUMENT...]"
USAGE_ERROR = 2
ENVIRONMENT = "TUNING_INIT"
"""Environment variable for processes that the script spawns: the file to record in, and the chosen study."""
SEVERAL = (
    "Use --study NAME with the study_name of the study to tune (or its position, for example 1, if it has no "
    "name), so that the others are skipped. If this is the only call that will be executed, use --study "
    "as well."
)


class Recorded(SystemExit):
    """Raised by `optimize` and `ask`; ends the script, whose study is recorded."""


def init(arguments: list[str]) -> int:
    """Run `init`; return the exit code: 0 for a study, 1 for a failure, 2 for invalid arguments."""
    options: dict[str, str] = {}
    while arguments[:1] in (["--output"], ["--study"]) and arguments[1:]:
        options[arguments[0]], arguments = arguments[1], arguments[2:]
    if "--output" not in options or not arguments:
        sys.stderr.write(f"{USAGE}\n")
        return USAGE_ERROR
    output = Path(options["--output"])
    document: dict[str, Any] = {
        "script": arguments[0],
        "python": platform.python_version(),
        "optuna": None,
        "failure": None,
        "study": None,
    }
    try:
        document.update(record(arguments, output.absolute().with_suffix(".recorded"), options.get("--study")))
    except TrialFailure as failure:
        document["failure"] = failure.failure.to_wire()
    document["optuna"] = _optuna_version()
    output.write_text(json.dumps(document) + "\n")
    return 0 if document["failure"] is None else 1


def record(script: list[str], file: Path, study: str | None) -> dict[str, Any]:
    """Return the `study` of a script (its file and arguments), or else the `failure`, as in the document.

    Args:
        script: its file and arguments.
        file: where the process that calls optimize records it.
        study: which of the script's studies is chosen.

    Raises:
        TrialFailure: it ends before it calls optimize.
    """
    path = find_script(script[0], None)
    workers = start_workers()
    os.environ[ENVIRONMENT] = json.dumps([str(file), study])
    bridge = RecordingBridge(workers, file, study)
    problem: BaseException | None = None
    try:
        execute(path, script, bridge)
    except BaseException as error:  # noqa: BLE001  a study may be recorded, or will be by another process
        problem = None if isinstance(error, SystemExit) and not error.code else error
    with contextlib.suppress(TrialOver):  # a worker has just recorded the study
        if problem is None:
            workers.wait_for_leftovers()
        workers.wait()
    if file.exists():
        recorded: dict[str, Any] = json.loads(file.read_text())
        file.unlink()
        return recorded
    if problem is not None:
        raise TrialFailure(_before_optimize(path.name, problem)) from problem
    raise without_study(
        path.name,
        bridge.choice,
        "Call it at module level or under `if __name__ == '__main__':`. "
        "To run an objective without a script, set spec.trial.objective.",
    )


def _before_optimize(name: str, error: BaseException) -> Failure:
    failure = failure_of(error)
    if isinstance(error, TrialFailure):
        return failure
    remedy = failure.remedy if is_argument_error(error) else "Fix the script."
    return failure._replace(
        message=f"{name} ended before it called study.optimize: {failure.message}", remedy=remedy
    )


class RecordingBridge:
    """Lets the script create studies in memory, and ends it when it runs one."""

    offline = True

    def __init__(self, workers: Workers, file: Path, study: str | None) -> None:
        self.inside = Inside()
        self.choice = Choice(study)
        self._workers = workers
        self._file = file
        self._named: dict[str, Any] = {}

    def owns(self, study: Any) -> bool:
        """Return False: enqueue_trial and the like work as usual."""
        del study
        return False

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return a study in memory; the same one for the same name."""
        if (other := self.choice.skipped(arguments, self.inside)) is not None:
            return other
        name = arguments.get("study_name")
        if name in self._named:
            return self._named[name]
        kept = {name: arguments[name] for name in STUDY_ARGUMENTS if arguments.get(name)}
        with self.inside:
            study = sys.modules["optuna"].create_study(**kept)
        has_storage, loaded = arguments.get("storage") is not None, original.__name__ == "load_study"
        # kept on the study itself, which may be sent to other processes
        study._tuning_made = Made(kept, study.sampler, study.pruner, has_storage, loaded)  # noqa: SLF001
        if name:
            self._named[name] = study
        return study

    def optimize(self, study: Any, arguments: dict[str, Any]) -> None:
        """Record the study and end the script; return if the study is skipped."""
        if not is_skipped(study):
            self._record("optimize", study, arguments)

    def ask(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Record the study and end the script."""
        if is_skipped(study):
            refuse_ask(study)
        self._record("ask", study, arguments)

    tell = ask  # a script that reports a trial without asking for it

    def _record(self, call: str, study: Any, arguments: dict[str, Any]) -> NoReturn:
        if self._workers.take_trial(""):
            try:
                recorded = {"study": self._document(call, study, arguments)}
                self._file.write_text(json.dumps(recorded))
            except TrialFailure as failure:
                self._file.write_text(json.dumps({"failure": failure.failure.to_wire()}))
            finally:
                self._workers.finish(0)
        if self._workers.in_main_process:
            raise Recorded(0)
        raise TrialOverInWorker("The study is recorded.")

    def _document(self, call: str, study: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        if call == "optimize":
            check_one_trial(arguments)
        if call == "optimize" and self.choice.wanted is None:
            try:
                check_only_call(calling_frame())
            except TrialFailure as failure:
                raise TrialFailure(failure.failure._replace(remedy=SEVERAL)) from None
        others = len(self.choice.created) - 1 if self.choice.wanted is None else 0
        return study_document(study, call, arguments, others)


def _optuna_version() -> str | None:
    optuna = sys.modules.get("optuna")
    if optuna is None or (optuna.__file__ or "").startswith(hook.STAND_IN):
        return None
    version: str = optuna.__version__
    return version
