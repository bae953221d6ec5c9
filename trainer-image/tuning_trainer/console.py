"""What the runtime says to people: lines on standard error, and warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parent)


def say(text: str) -> None:
    """Write one line to the pod's log."""
    sys.stderr.write(f"tuning: {text}\n")
    sys.stderr.flush()


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as Optuna does, at the line of the user's code that called us."""
    level, frame = 1, sys._getframe()  # noqa: SLF001  what the warnings module itself does
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
