"""Studies as the commands need them, wherever they are: on a cluster, or on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # it takes a while to import, and few commands read a record
    from tuning_operator.protocol import FinishedStudy

Resource = Mapping[str, Any]
"""A TuningStudy as JSON, with its status."""

Run = int | Literal["refit"]
"""The number of a trial, or the refit."""

ENDED = ("Completed", "Failed")
"""The phases of a study, or of its refit, that has ended."""
STOPPED = "Stopped"
"""Shown as the phase of a local study that has not ended, while no command runs it."""


def subject(run: Run) -> str:
    """Return a run as the subject of a sentence."""
    return "The refit" if run == "refit" else f"Trial {run}"


def metrics_of(study: Resource) -> list[str]:
    """Return the objectives' names."""
    return [objective["metric"] for objective in study["spec"]["objectives"]]


@dataclass(frozen=True)
class Place:
    """Where the user looks for studies; the defaults are those of kubectl."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


class Record(Protocol):
    """The record of a study, which may be read several times."""

    def read(self, first: int = 0) -> "FinishedStudy":
        """Return the trials as they are now, from the one with this number on. Raises PluginError."""


class Studies(Protocol):
    """The studies of a place. Every method raises PluginError, with a message that says how to fix it."""

    program: str
    """How messages name this command: `kubectl tuning` or `tuning`."""
    place_of_runs: str
    """What a run has here, and is named in tables: `pod` or `folder`."""

    def list_studies(self, *, everywhere: bool = False) -> Sequence[Resource]:
        """Return the studies of the namespace, or of all namespaces."""

    def get(self, name: str) -> Resource:
        """Return a study. Raises NotFoundError."""

    def record(self, study: Resource) -> AbstractContextManager[Record]:
        """Connect to the record of a study."""

    def runs(self, study: Resource) -> Mapping[Run, str]:
        """Return the name of each run's newest pod, or its folder, as far as it still exists."""

    def log(self, study: Resource, run: Run, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a run's log. Raises NotFoundError.

        Args:
            study: the study.
            run: the run.
            follow: whether to wait for the run to start, and yield lines as they come until it ends.
        """

    def change(self, study: Resource, spec: Mapping[str, Any]) -> None:
        """Replace these fields of the study's spec."""

    def stop(self, study: Resource, trials: Sequence[int]) -> None:
        """Have these running trials end; they are recorded as pruned."""
