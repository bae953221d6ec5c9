"""`init`: describes a script's study, so that a manifest can be written from it.

Runs the script with the user's own Python up to its first `optimize` or `ask`, and writes a JSON document.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import Failure, TrialFailure, failure_of, is_argument_error
from tuning_trainer.log import calling_frame
from tuning_trainer.modes.init_document import RecordedStudy, study_document
from tuning_trainer.modes.lookahead import check_only_call
from tuning_trainer.modes.script import execute, find_script
from tuning_trainer.optuna_api import hook
from tuning_trainer.optuna_api.bridge import STUDY_ARGUMENTS, Inside

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = "usage: trainer.zip init --output FILE SCRIPT [ARGUMENT...]"
USAGE_ERROR = 2
REQUIRED_ARGUMENTS = 3  # the option, its file, the script


class Recorded(SystemExit):
    """Raised by `optimize` and `ask`; ends the script, whose study is recorded."""


def init(arguments: list[str]) -> int:
    """Run `init`; return the exit code: 0 for a study, 1 for a failure, 2 for invalid arguments."""
    if len(arguments) < REQUIRED_ARGUMENTS or arguments[0] != "--output":
        sys.stderr.write(f"{USAGE}\n")
        return USAGE_ERROR
    output, script = Path(arguments[1]), arguments[2:]
    document: dict[str, Any] = {
        "script": script[0],
        "python": platform.python_version(),
        "optuna": None,
        "failure": None,
        "study": None,
    }
    try:
        document["study"] = record(script)
    except TrialFailure as failure:
        document["failure"] = failure.failure.to_wire()
    document["optuna"] = _optuna_version()
    output.write_text(json.dumps(document) + "\n")
    return 0 if document["failure"] is None else 1


def record(script: list[str]) -> dict[str, Any]:
    """Return the study of a script (its file and arguments), as in the document.

    Raises:
        TrialFailure: it raises before it calls optimize, or doesn't call it exactly once.
    """
    bridge = RecordingBridge()
    file = find_script(script[0], None)
    try:
        execute(file, script, bridge)
    except BaseException as error:
        if bridge.study is None and not (isinstance(error, SystemExit) and not error.code):
            raise TrialFailure(_before_optimize(file.name, error)) from error
    if bridge.study is None:
        raise TrialFailure(
            Failure(
                "Script",
                f"{file.name} ended without calling study.optimize.",
                "Call it at module level or under `if __name__ == '__main__':`. "
                "To run an objective without a script, set spec.trial.objective.",
            )
        )
    return bridge.study


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

    def __init__(self) -> None:
        self.inside = Inside()
        self.study: dict[str, Any] | None = None
        self._made: list[RecordedStudy] = []

    def owns(self, study: Any) -> bool:
        """Return False: enqueue_trial and the like work as usual."""
        del study
        return False

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return a study in memory."""
        loaded = original.__name__ == "load_study"
        kept = {name: arguments[name] for name in STUDY_ARGUMENTS if arguments.get(name)}
        with self.inside:
            study = sys.modules["optuna"].create_study(**kept)
        self._made.append(RecordedStudy(study, arguments, study.sampler, study.pruner, loaded))
        return study

    def optimize(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Record the study and end the script."""
        check_only_call(calling_frame())
        self._record("optimize", study, arguments)

    def ask(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Record the study and end the script."""
        self._record("ask", study, arguments)

    def tell(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Record the study and end the script, which reports a trial without asking for it."""
        self._record("ask", study, arguments)

    def _record(self, call: str, study: Any, arguments: dict[str, Any]) -> NoReturn:
        made = next((one for one in self._made if one.study is study), None)
        if made is None:  # created by optuna.study.Study(...)
            made = RecordedStudy(study, {}, study.sampler, study.pruner, loaded=True)
        self.study = self.study or study_document(made, call, arguments, others=len(self._made) - 1)
        raise Recorded(0)


def _optuna_version() -> str | None:
    optuna = sys.modules.get("optuna")
    if optuna is None or (optuna.__file__ or "").startswith(hook.STAND_IN):
        return None
    version: str = optuna.__version__
    return version
