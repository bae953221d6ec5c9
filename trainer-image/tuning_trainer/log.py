"""Messages from the pod: lines in its log, its termination message, and warnings at the user's own code."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = str(Path(__file__).parent)


def log(text: str) -> None:
    """Write one line to the pod's log."""
    write(f"tuning: {text}\n")


def write(text: str) -> None:
    """Write to the pod's log; without a cluster, that is a file, whose disk may be full.

    The user's code may have closed sys.stderr, or replaced it by any object.
    """
    with contextlib.suppress(OSError):
        for stream in filter(None, (sys.stderr, sys.__stderr__)):
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                stream.write(text)
                stream.flush()
                return


def pass_on(output: bytes, sink: IO[bytes]) -> None:
    """Write a program's output to the pod's log; where that is impossible, the program goes on without."""
    with contextlib.suppress(OSError):
        sink.write(output)
        sink.flush()


def write_termination_message(path: str, content: bytes) -> None:
    """Write to where the kubelet reads how the container ended; outside a pod there is no such file."""
    target = Path(path)
    try:
        if target.exists():
            target.write_bytes(content)
    except OSError as error:  # the result must be reported all the same
        log(f"cannot write the termination message: {error}")


def log_prefix(trial: int) -> str:
    """Return what precedes each line of a trial in a worker's log."""
    return f"[trial {trial}] "


def log_end(trial: int) -> str:
    """Return the line of a worker's log after which no line of the trial follows."""
    return f"tuning: end of the log of trial {trial}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as Optuna does, at the line of the user's code that called the runtime."""
    level, frame = 1, sys._getframe()  # noqa: SLF001  what the warnings module itself does
    while frame.f_back is not None and is_own(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def calling_frame() -> FrameType | None:
    """Return the frame of the code, the script's or a library's, that called the runtime."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None and is_own(frame):
        frame = frame.f_back
    return frame


def is_own(frame: FrameType) -> bool:
    """Return whether a frame runs the runtime's code."""
    return frame.f_code.co_filename.startswith(PACKAGE)
