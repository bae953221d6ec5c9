"""What happens to the studies that user code creates and runs; each mode of the runtime differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

NO_STOP = "study.stop is ignored: spec.objectives[].target or spec.maxTrials ends the study"


class Bridge(Protocol):
    """Called in place of Optuna's functions."""

    inside: bool
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
