"""Why a trial ended without a value: a machine-readable category, a message, and how to fix it."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.log import PACKAGE, log

if TYPE_CHECKING:
    from types import TracebackType

MESSAGE_LIMIT = 1000  # characters
TRACEBACK_LIMIT = 32_000  # characters; the last ones are kept
ARGUMENTS = (
    "argparse ended the process (see its message in the log). Give the script its arguments in the manifest, "
    "for example `script: train.py --epochs 3`, or give each a default."
)
OUT_OF_GPU_MEMORY = (
    "Use less GPU memory (for example, a smaller batch size), lower spec.trial.trialsPerPod if it is more "
    "than 1, or use a GPU with more memory."
)
LOCAL = "TUNING_LOCAL_RUN"
"""The environment variable that `tuning run` marks its processes with."""
CAUGHT = "Caught"
"""The category of a failure that the script expects: an exception in the argument `catch` of optimize."""
WIDEST = 6  # bytes that one character takes in JSON, at most
TERMINATION_LIMIT = 4096  # bytes of a termination message that the kubelet keeps


class Advice(NamedTuple):
    """How to fix what depends on where the trial runs."""

    memory: str
    program: str
    package: str


IN_POD = Advice(
    memory="raise the container's memory limit",
    program="use a program that the image contains",
    package="Use an image that has '{package}', or add its code to trial.source.",
)
ON_THIS_MACHINE = Advice(
    memory="run fewer trials at a time (spec.parallelism)",
    program="use a program on this machine",
    package="Install '{package}' for {python}, or choose an interpreter that has it: tuning run --python.",
)


def advice() -> Advice:
    """Return how to fix what depends on where this trial runs."""
    return ON_THIS_MACHINE if LOCAL in os.environ else IN_POD


class Failure(NamedTuple):
    """A failure as the protocol defines it."""

    category: str
    message: str
    remedy: str | None = None
    traceback: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the protocol's JSON, with long texts shortened."""
        return {
            "category": self.category,
            "message": self.message[:MESSAGE_LIMIT],
            "remedy": self.remedy,
            "traceback": self.traceback and self.traceback[-TRACEBACK_LIMIT:],
        }


class TrialFailure(Exception):  # noqa: N818
    """Ends the trial as FAIL for a reason found by the runtime itself."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


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


def write_termination_message(path: str, content: bytes) -> None:
    """Write to where the kubelet reads how the container ended; outside a pod there is no such file."""
    target = Path(path)
    try:
        if target.exists():
            target.write_bytes(content)
    except OSError as error:  # the result must be reported all the same
        log(f"cannot write the termination message: {error}")


def termination_message(failure: Failure) -> bytes:
    """Return the failure as JSON within the kubelet's limit; of the traceback, the end is kept."""
    wire = failure.to_wire()
    text = wire["traceback"] or ""
    while True:
        encoded = _encoded({**wire, "traceback": text or None})
        excess = len(encoded) - TERMINATION_LIMIT
        if excess <= 0:
            return encoded
        if text:
            text = text[max(excess // WIDEST, 1) :]
        else:
            wire["message"] = wire["message"][: -max(excess // WIDEST, 1)]


def result_message(result: dict[str, Any], attributes: dict[str, Any], reported: list[Any]) -> bytes | None:
    """Return a result as JSON within the kubelet's limit, with what else could not be sent.

    If that is too much, the oldest reports are left out first, then user attributes, the largest ones first.
    Constraints stay, since without them an infeasible trial could become the best.

    Returns:
        None if it does not fit.
    """
    attributes = {kind: dict(values) for kind, values in attributes.items()}
    dispensable = [attributes[kind] for kind in ("userAttrs", "studyAttrs") if kind in attributes]
    while True:
        encoded = _encoded({**result, "attributes": attributes, "reported": reported})
        if len(encoded) <= TERMINATION_LIMIT:
            return encoded
        left = next((values for values in dispensable if values), None)
        if reported:
            reported = reported[len(reported) // 2 + 1 :]
        elif left:
            del left[max(left, key=lambda key: len(_encoded(left[key])))]
        else:
            return None


def _encoded(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode(errors="replace")
