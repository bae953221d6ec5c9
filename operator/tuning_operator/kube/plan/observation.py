"""What `decide` sees: the record's trials and their runs. A run is a Job, or a local process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from tuning_operator.kube.plan.work import Refit, Trial, Work
from tuning_operator.protocol import Failure, Problem, StudySummary, TellRequest


@dataclass(frozen=True)
class Diagnosis:
    """Why a run cannot start, why it ended without a result, or what is missing while it runs."""

    failure: Failure
    since: datetime | None = None
    """When it began, where that is known."""


@dataclass(frozen=True)
class Run:
    """The run of a trial or a refit.

    starting: no container runs yet · running · ended: nothing of it will run again · stopping: it is being
    deleted.
    """

    state: Literal["starting", "running", "ended", "stopping"]
    diagnosis: Diagnosis | None = None
    exited: datetime | None = None
    """When its program exited, if something else keeps the run alive, such as a service mesh's proxy."""
    lingering_since: datetime | None = None
    """When the run was first seen to go on after its work had a result."""
    outdated: bool = False
    """Whether the spec has changed what the run should execute."""
    stop_requested: bool = False
    """Whether a user wants the trial to end."""
    result: TellRequest | None = None
    """The result that one of its pods could not send to the study server."""
    lost: bool = False
    """Whether it ended or can't start through no fault of the study, so that another run may do better."""
    check_at: datetime | None = None
    """When to look at the run again, though nothing may have been reported of it."""

    @property
    def active(self) -> bool:
        """Whether it holds resources and nothing ends it yet."""
        return self.state in ("starting", "running")


@dataclass(frozen=True)
class Observation:
    """A study as it is now: `summary` is None while the study server has no such study."""

    summary: StudySummary | None
    runs: Mapping[Work, Run] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    """Why this generation of the spec is refused; empty: it is accepted."""

    @property
    def refit_run(self) -> tuple[Refit, Run] | None:
        """The refit that has a run: one at a time, since all share a name."""
        return next(((work, run) for work, run in self.runs.items() if isinstance(work, Refit)), None)

    def after(self, summary: StudySummary, started: Iterable[Work]) -> "Observation":
        """Return the observation once work was started and the record has changed to `summary`."""
        runs = {**self.runs, **{work: Run("starting") for work in started}}
        return replace(self, summary=summary, runs=runs)


def unfinished(summary: StudySummary | None) -> frozenset[Work]:
    """Return the work that has begun in the record and has no result yet."""
    if summary is None:
        return frozenset()
    refit = summary.refit
    running: list[Work] = [Trial(trial.number) for trial in summary.running]
    if refit and refit.state == "RUNNING":
        running.append(Refit(refit.trial, refit.digest))
    return frozenset(running)
