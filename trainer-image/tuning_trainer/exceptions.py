"""Why a trial ended, as an exception of the user's code shows it."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from tuning_trainer.failure import IN_POD, LOCAL, ON_THIS_MACHINE, Advice, Failure, TrialFailure
from tuning_trainer.log import PACKAGE

if TYPE_CHECKING:
    from types import TracebackType

ARGUMENTS = (
    "argparse ended the process (see its message in the log). Give the script its arguments in the manifest, "
    "for example `script: train.py --epochs 3`, or give each a default."
)
OUT_OF_GPU_MEMORY = (
    "Use less GPU memory (for example, a smaller batch size), lower spec.trial.trialsPerPod if it is more "
    "than 1, or use a GPU with more memory."
)


def failure_of(error: BaseException) -> Failure:
    """Return the failure for an exception raised by the user's code, with its traceback."""
    if isinstance(error, TrialFailure):
        return error.failure
    described = "".join(traceback.format_exception_only(type(error), error)).strip()
    category, remedy = _classify(error, described)
    return Failure(category, described, remedy, format_traceback(error))


def format_traceback(error: BaseException) -> str:
    """Return the traceback, starting at the user's first frame; without one, only the exception."""
    frames = skip_own_frames(error.__traceback__)
    return "".join(traceback.format_exception(type(error), error, frames))


def skip_own_frames(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the runtime and of the import system at the top."""
    own = (PACKAGE, "<frozen ")
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(own):
        frames = frames.tb_next
    return frames


def _classify(error: BaseException, described: str) -> tuple[str, str | None]:
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in described:
        return "OutOfMemory", OUT_OF_GPU_MEMORY
    if isinstance(error, MemoryError):
        return "OutOfMemory", f"Use less memory (for example, a smaller batch size), or {advice().memory}."
    if isinstance(error, ModuleNotFoundError) and error.name:
        return "ModuleNotFound", advice().package.format(package=error.name, python=sys.executable)
    if is_argument_error(error):
        return "Exception", ARGUMENTS
    if isinstance(error, SystemExit):
        return "Exception", "The objective ended the process: return a value or raise an exception instead."
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", None
    return "Exception", None


def is_argument_error(error: BaseException) -> bool:
    """Return whether argparse ended the process, since required command-line arguments are missing."""
    frames = error.__traceback__ if isinstance(error, SystemExit) else None
    while frames is not None:
        if frames.tb_frame.f_globals.get("__name__") == "argparse":
            return True
        frames = frames.tb_next
    return False


def advice() -> Advice:
    """Return how to fix what depends on where this trial runs."""
    return ON_THIS_MACHINE if LOCAL in os.environ else IN_POD
