"""`init`: what a script asks of Optuna, so that a manifest can be written from it.

Runs the script up to its first `optimize` (or `ask`) with the user's own Python and writes one JSON document.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import Failure, TrialFailure, failure_of
from tuning_trainer.modes.asked import Asked, study_document
from tuning_trainer.modes.script import execute, find_script
from tuning_trainer.optuna_api import optuna_hook

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = "usage: trainer.zip init --output FILE SCRIPT [ARGUMENT...]"
USAGE_ERROR = 2
EXPECTED = 3
"""The option, its file, the script."""


class Recorded(SystemExit):
    """Raised by `optimize` and `ask`: all that there is to know is known."""


def init(arguments: list[str]) -> int:
    """Run `init`; return the exit code: 0 with a study, 1 with a failure, 2 for wrong arguments."""
    if len(arguments) < EXPECTED or arguments[0] != "--output":
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
    """Return what a script (its file and arguments) asks for, as the document's `study`.

    Raises:
        TrialFailure: it raises before it optimizes, never does, or does so more than once.
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
                "Call it at module level or under `if __name__ == '__main__'`; an objective without a script "
                "around it is spec.trial.objective.",
            )
        )
    return bridge.study


def _before_optimize(name: str, error: BaseException) -> Failure:
    failure = failure_of(error)
    if isinstance(error, TrialFailure):
        return failure
    remedy = "Mend it, or give the arguments that it needs behind its name."
    return failure._replace(
        message=f"{name} ended before it called study.optimize: {failure.message}", remedy=remedy
    )


class RecordingBridge:
    """Lets the script make its studies, in memory, and ends it when one is to run."""

    offline = True

    def __init__(self) -> None:
        self.inside = False
        self.study: dict[str, Any] | None = None
        self._made: list[Asked] = []

    def owns(self, study: Any) -> bool:
        """Return that no study is the manifest's yet: enqueue_trial and the like do what they do."""
        del study
        return False

    def create(self, original: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """Return a study in memory, as asked."""
        kept = ("sampler", "pruner", "study_name", "direction", "directions")
        loaded = original.__name__ == "load_study"
        self.inside = True
        try:
            study = sys.modules["optuna"].create_study(
                **{name: asked[name] for name in kept if asked.get(name)}
            )
        finally:
            self.inside = False
        self._made.append(Asked(study, asked, study.sampler, study.pruner, loaded))
        return study

    def optimize(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """Record the study, end the script."""
        self._record("optimize", study, asked)

    def ask(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """Likewise."""
        self._record("ask", study, asked)

    def tell(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """Likewise: a trial that was not asked for is told."""
        self._record("ask", study, asked)

    def _record(self, call: str, study: Any, asked: dict[str, Any]) -> NoReturn:
        made = next((one for one in self._made if one.study is study), None)
        if made is None:  # optuna.study.Study(...), by hand
            made = Asked(study, {}, study.sampler, study.pruner, loaded=True)
        self.study = self.study or study_document(made, call, asked, others=len(self._made) - 1)
        raise Recorded(0)


def _optuna_version() -> str | None:
    optuna = sys.modules.get("optuna")
    if optuna is None or (optuna.__file__ or "").startswith(optuna_hook.STAND_IN):
        return None
    version: str = optuna.__version__
    return version
