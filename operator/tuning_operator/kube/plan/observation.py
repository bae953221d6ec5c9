"""What `decide` sees: the record's trials and their runs. A run is a Job, or a local process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Literal

from tuning_operator.kube.plan.actions import Action, Finish, Start, Stop
from tuning_operator.kube.plan.work import POD_RETRIES, Refit, Trial, Work, Worker
from tuning_operator.protocol import Failure, Problem, StudySummary, TellRequest, TrialRecord

TAKES_FIRST = ("running", "starting", "stopping", "ended")
"""States of workers in the order in which they are expected to take trials."""

LOST = frozenset({"PodDeleted", "PodFailed", "Lost"})
"""Categories of Jobs whose pods were taken away: another worker gets the trial, up to POD_RETRIES times."""


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
    """Whether the spec has changed what the run should execute, or a worker has another study server."""
    stop_requested: bool = False
    """Whether a user wants the trial to end."""
    trials_to_stop: frozenset[int] = frozenset()
    """The trials of a worker that a user wants to end; they may be another worker's."""
    trial_started: datetime | None = None
    """When the trial started for which it was made, if that is known."""
    result: TellRequest | None = None
    """The result that one of its pods could not send to the study server."""
    has_node: bool = False
    """Whether it is known that a pod of it has a node, though no container runs yet."""
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
    per_worker: int = 0
    """How many trials a worker takes at a time; 0 if each trial has a run of its own. With workers, the run
    of a trial is that of the worker that has it, or will."""
    limit: int | None = None
    """How many trials the operator's limit for the namespace allows; None: as many as the study wants."""
    others_wait: str | None = None
    """A pod of others that waits for GPUs which the study should give back, as NAMESPACE/NAME."""

    @property
    def refit_run(self) -> tuple[Refit, Run] | None:
        """The refit that has a run: one at a time, since all share a name."""
        return next(((work, run) for work, run in self.runs.items() if isinstance(work, Refit)), None)

    @cached_property
    def unfinished(self) -> frozenset[Work]:
        """The work that has begun in the record and has no result yet."""
        return unfinished(self.summary)

    def after(self, summary: StudySummary, actions: Iterable[Action]) -> "Observation":
        """Return the observation once actions were carried out and the record has changed to `summary`."""
        runs = dict(self.runs)
        for action in actions:
            match action:
                case Start(work):
                    runs[work] = Run("starting")
                case Stop(work) if work in runs:
                    runs[work] = replace(runs[work], state="stopping")
                case Finish(work) if work in runs:
                    runs[work] = replace(runs[work], exited=None)
        return with_trials(replace(self, summary=summary, runs=runs))


def unfinished(summary: StudySummary | None) -> frozenset[Work]:
    """Return the work that has begun in the record and has no result yet."""
    if summary is None:
        return frozenset()
    refit = summary.refit
    running: list[Work] = [Trial.numbered(trial.number) for trial in summary.running]
    if refit and refit.state == "RUNNING":
        running.append(Refit(refit.trial, refit.digest))
    return frozenset(running)


def workers_in(runs: Mapping[Work, Run]) -> dict[int, Run]:
    """Return the runs of workers, by slot."""
    return {work.slot: run for work, run in runs.items() if isinstance(work, Worker)}


def with_trials(seen: Observation) -> Observation:
    """Return the observation with a run for each running trial, in a study with workers.

    It is the run of the worker that has the trial, or that is expected to take it: not one that leaves.
    """
    if not seen.per_worker or seen.summary is None:
        return seen
    workers, running = workers_in(seen.runs), seen.summary.running
    to_stop = frozenset[int]().union(*(run.trials_to_stop for run in workers.values()))
    taken = [trial.worker for trial in running]
    staying = ((slot, run) for slot, run in workers.items() if slot not in (seen.summary.leaving or ()))
    by_turn = sorted(staying, key=lambda worker: (TAKES_FIRST.index(worker[1].state), worker[0]))
    idle = (run for slot, run in by_turn for _ in range(seen.per_worker - taken.count(slot)))
    runs: dict[Work, Run] = {w: run for w, run in seen.runs.items() if not isinstance(w, Trial)}
    for trial in running:
        run = next(idle, None) if trial.worker is None else workers.get(trial.worker)
        if run is not None:
            found = _of_trial(run, trial)
            runs[Trial.numbered(trial.number)] = replace(found, stop_requested=trial.number in to_stop)
    return replace(seen, runs=runs)


def _of_trial(run: Run, trial: TrialRecord) -> Run:
    """Return what the run of a worker is for a trial. What replaces the worker does not concern the trial."""
    taken_away = run.state == "ended" and run.diagnosis and run.diagnosis.failure.category in LOST
    if taken_away and not run.lost and trial.pods <= POD_RETRIES:
        return Run("starting")
    return Run(run.state, run.diagnosis, has_node=run.has_node, lost=run.lost)
