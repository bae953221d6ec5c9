"""What happens to the studies that user code creates and runs; each mode of the runtime differs."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

IGNORED = {
    "enqueue_trial": "study.enqueue_trial is ignored: put known good points into spec.initialTrials",
    "add_trial": "study.add_trial is ignored: spec.warmStart continues from another study",
    "add_trials": "study.add_trials is ignored: spec.warmStart continues from another study",
    "stop": "study.stop is ignored: spec.objectives[].target, spec.maxTrialsWithoutImprovement or "
    "spec.maxTrials ends the study",
}
"""Methods of a study that concern more than one trial, and the fields to use instead."""
STUDY_ARGUMENTS = ("sampler", "pruner", "study_name", "direction", "directions")
"""Arguments of create_study for a study in memory."""


class Inside:
    """Whether the current thread runs the objective, or was started by a thread that does."""

    everywhere = False
    """Whether all threads count as inside."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __bool__(self) -> bool:
        return self.everywhere or getattr(self._local, "depth", 0) > 0

    def __enter__(self) -> None:
        self._local.depth = getattr(self._local, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._local.depth -= 1

    def pass_on_to_threads(self) -> None:
        """Let threads that are started inside be inside as well."""
        original = threading.Thread.start

        @functools.wraps(original)
        def start(thread: threading.Thread) -> None:
            if self:
                run = thread.run

                def run_inside() -> None:
                    with self:
                        run()

                thread.run = run_inside  # type: ignore[method-assign]
            original(thread)

        threading.Thread.start = start  # type: ignore[method-assign, assignment]


class Bridge(Protocol):
    """Called in place of Optuna's functions."""

    inside: Inside
    """Whether the objective is running: studies that it creates are plain Optuna."""
    offline: bool
    """Whether storages that the code opens are replaced, because the study server keeps the study."""

    def owns(self, study: Any) -> bool:
        """Return whether the study is the one that the manifest describes."""

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return the study for a call of create_study or load_study with these arguments."""

    def optimize(self, study: Any, arguments: dict[str, Any]) -> None:
        """Handle a call of `study.optimize` with these arguments."""

    def ask(self, study: Any, arguments: dict[str, Any]) -> Any:
        """Return the trial for a call of `study.ask` with these arguments."""

    def tell(self, study: Any, arguments: dict[str, Any]) -> Any:
        """Handle a call of `study.tell` with these arguments."""
