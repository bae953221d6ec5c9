"""What `decide` sees: the record's trials and their runs. A run is a Job, or a local process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tuning_operator.protocol import Failure, Problem, StudySummary


@dataclass(frozen=True)
class Trouble:
    """Why a run cannot start, or why it ended without a result."""

    failure: Failure
    since: datetime | None = None
    """When it began, where that is known."""


@dataclass(frozen=True)
class Run:
    """A trial's run.

    starting: no container runs yet · running · ended: nothing of it will run again · stopping: it is being
    deleted · foreign: the name belongs to something else.
    """

    trial: int
    state: Literal["starting", "running", "ended", "stopping", "foreign"]
    trouble: Trouble | None = None
    lingering_since: datetime | None = None
    """When the run was first seen going on after its trial had finished."""
    digest: str | None = None
    """Of the refit's run: which refit it is."""


@dataclass(frozen=True)
class Observation:
    """A study as it stands: `summary` is None while the study server has no such study."""

    summary: StudySummary | None
    runs: Mapping[int, Run] = field(default_factory=dict)
    refit: Run | None = None
    problems: tuple[Problem, ...] = ()
    """Why this generation of the spec is refused; empty: it is accepted."""
