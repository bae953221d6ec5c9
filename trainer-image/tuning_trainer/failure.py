"""Why a trial ended without a value: a category for programs, a sentence and the mend for people."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.console import PACKAGE, say

if TYPE_CHECKING:
    from types import TracebackType

MESSAGE_LIMIT = 1000  # characters
TRACEBACK_LIMIT = 32_000  # characters, the last ones
WIDEST = 6  # bytes of a character in JSON, at most
TERMINATION_LIMIT = 4096  # bytes that the kubelet keeps of a termination message


class Failure(NamedTuple):
    """A failure as the protocol has it."""

    category: str
    message: str
    remedy: str | None = None
    traceback: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the protocol's JSON, its texts cut to what a record should hold."""
        return {
            "category": self.category,
            "message": self.message[:MESSAGE_LIMIT],
            "remedy": self.remedy,
            "traceback": self.traceback and self.traceback[-TRACEBACK_LIMIT:],
        }


class TrialFailure(Exception):  # noqa: N818
    """Ends the trial as FAIL for a reason that the runtime itself found."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an exception of the user's code means, with its traceback."""
    if isinstance(error, TrialFailure):
        return error.failure
    described = "".join(traceback.format_exception_only(type(error), error)).strip()
    category, remedy = _classify(error)
    return Failure(category, described, remedy, format_traceback(error))


def format_traceback(error: BaseException) -> str:
    """Return the traceback from the user's first frame on; without one, the exception alone."""
    frames = skip_own_frames(error.__traceback__)
    return "".join(traceback.format_exception(type(error), error, frames))


def skip_own_frames(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the runtime's and the import system's frames at the top."""
    own = (PACKAGE, "<frozen ")
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(own):
        frames = frames.tb_next
    return frames


def _classify(error: BaseException) -> tuple[str, str | None]:
    out_of_gpu = type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error)
    if out_of_gpu or isinstance(error, MemoryError):
        what = "the GPU's memory" if out_of_gpu else "memory"
        return (
            "OutOfMemory",
            f"The trial needs less of {what} (a smaller batch size, say), or its pod a larger limit.",
        )
    if isinstance(error, SystemExit):
        return "Exception", "The objective ended the process; let it return its value, or raise an exception."
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", None
    return "Exception", None


def write_termination_message(path: str, failure: Failure) -> None:
    """Write the failure where the kubelet reads it; outside a pod there is no such file."""
    target = Path(path)
    try:
        if target.exists():
            target.write_bytes(termination_message(failure))
    except OSError as error:  # the result must be told all the same
        say(f"the termination message cannot be written: {error}")


def termination_message(failure: Failure) -> bytes:
    """Return the failure as JSON that fits the kubelet's limit: of the traceback the end is kept."""
    wire = failure.to_wire()
    text = wire["traceback"] or ""
    while True:
        encoded = json.dumps({**wire, "traceback": text or None}, ensure_ascii=False).encode(errors="replace")
        excess = len(encoded) - TERMINATION_LIMIT
        if excess <= 0:
            return encoded
        if text:
            text = text[max(excess // WIDEST, 1) :]
        else:
            wire["message"] = wire["message"][: -max(excess // WIDEST, 1)]
