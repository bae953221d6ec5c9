"""Runs that cannot start: how long they keep their slot, and when it is reported."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from tuning_operator.kube.plan.actions import Action, Step, Wait, once
from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.work import Trial, Work

START_GRACE = timedelta(minutes=5)
"""How long a run that a user has to fix keeps its slot: time to create a secret or push an image."""

PERMANENT = frozenset({"ImagePull", "ContainerConfig", "Evicted", "Volume"})
"""Categories that do not go away by themselves. Capacity and quota do, so runs wait for them."""

QUEUEING = frozenset({"Capacity", "Queued", "VolumeInUse"})
"""Categories that are ordinary queueing while other trials of the study run."""

REPORT_AFTER = {
    "Capacity": timedelta(seconds=30),
    "Node": timedelta(seconds=30),
    "Queued": timedelta(seconds=30),
    "VolumeInUse": timedelta(seconds=30),
    "InitContainer": timedelta(minutes=1),
}
"""What is not worth reporting before this: the scheduler takes seconds, init containers take a while, and
nodes try again."""


def needs_start(run: Run | None) -> bool:
    """Return whether work needs a start: without a run, or when what a start provides was deleted."""
    return run is None or (run.diagnosis is not None and run.diagnosis.failure.category == "TrainerMissing")


def give_up(run: Run, now: datetime, *actions: Action) -> tuple[Step, ...]:
    """Return the actions once a run has waited too long for its user to fix it; else the wait, if any."""
    diagnosis = run.diagnosis if run.state == "starting" else None
    if diagnosis is None or diagnosis.since is None or diagnosis.failure.category not in PERMANENT:
        return ()
    return once(diagnosis.since + START_GRACE, now, *actions)


@dataclass(frozen=True)
class Waiting:
    """The work whose run has waited for long enough to be reported: trials by number, then the refit."""

    blocked: tuple[Work, ...] = ()
    """Nothing of it will start by itself soon."""
    queued: tuple[Work, ...] = ()
    """It waits its turn, while other trials of the study run."""
    waits: tuple[Wait, ...] = ()
    """When there is more to report."""


def waiting(seen: Observation, now: datetime) -> Waiting:
    """Return what waits for its start."""
    wanted = seen.unfinished
    runs = {work: run for work, run in seen.runs.items() if run.diagnosis and work in wanted}
    trials = sorted((work for work in runs if isinstance(work, Trial)), key=lambda work: work.number)
    order: list[Work] = [*trials, *(work for work in runs if not isinstance(work, Trial))]
    trials_run = any(
        run.state == "running" and isinstance(work, Trial) and work in wanted
        for work, run in seen.runs.items()
    )
    steps = {work: _reported(runs[work], now) for work in order}
    reported = [work for work, step in steps.items() if step is True]
    queued = tuple(work for work in reported if trials_run and _is_queueing(work, runs[work]))
    return Waiting(
        tuple(work for work in reported if work not in queued),
        queued,
        tuple(step for step in steps.values() if isinstance(step, Wait)),
    )


def _is_queueing(work: Work, run: Run) -> bool:
    category = run.diagnosis.failure.category if run.diagnosis else None
    return isinstance(work, Trial) and category in QUEUEING


def _reported(run: Run, now: datetime) -> bool | Wait:
    if run.diagnosis is None or not (run.state == "starting" or run.lost):
        return False
    category, since = run.diagnosis.failure.category, run.diagnosis.since
    if category not in REPORT_AFTER or since is None:
        return True
    moment = since + REPORT_AFTER[category]
    return moment <= now or Wait(moment)
