"""The rules of workers: how many there are, and which leave (trial.reusePods).

Trials are asked for and end by the same rules as without workers. The study server hands each running trial
to a worker that does not leave, so workers are only started and stopped here.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from tuning_operator.kube.plan.actions import Start, Step, Stop
from tuning_operator.kube.plan.observation import TAKES_FIRST, Observation, Run, workers_in
from tuning_operator.kube.plan.parallelism import wanted_trials
from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.plan.waiting import give_up, needs_start
from tuning_operator.kube.plan.work import Worker
from tuning_operator.protocol import StudySummary
from tuning_operator.resource.study import TuningStudy


@dataclass(frozen=True)
class WorkerPlan:
    """What to do about the workers of a study."""

    steps: tuple[Step, ...] = ()
    leaving: tuple[int, ...] = ()
    """The workers that get no further trials: they are stopped, those with trials once these have ended."""


def plan_workers(
    study: TuningStudy, seen: Observation, verdict: Verdict | None, parallelism: int, now: datetime
) -> WorkerPlan:
    """Return what to do about the workers: the fullest ones stay.

    Args:
        study: the study.
        seen: what is seen of it.
        verdict: why it is over.
        parallelism: how many trials may run now.
        now: the time.
    """
    summary, workers = seen.summary or StudySummary(), workers_in(seen.runs)
    held = Counter[int]() if verdict else Counter(t.worker for t in summary.running if t.worker is not None)
    steps = [
        step for slot, run in workers.items() for step in _replaced(slot, run, now, is_busy=slot in held)
    ]
    active = {slot for slot, run in workers.items() if run.active and Stop(Worker(slot)) not in steps}
    finishing = {slot for slot in active if workers[slot].outdated}
    if summary.leaving is None:  # older study servers give trials to all workers
        finishing.clear()
    trials = 0 if verdict else wanted_trials(study, seen, parallelism) - sum(held[slot] for slot in finishing)
    wanted = -(-trials // seen.per_worker)

    def turn(slot: int) -> tuple[bool, bool, int, int, int]:
        left = slot in (summary.leaving or ())  # it has only earlier trials, so it is idle first
        state = workers[slot].state if slot in workers else "ended"
        return not held[slot], left, -held[slot], TAKES_FIRST.index(state), slot

    usable = sorted((active | held.keys()) - finishing, key=turn)  # those that are gone come back
    surplus = [slot for slot in usable[wanted:] if not held[slot]]
    steps += (Stop(Worker(slot)) for slot in surplus)
    again = sorted(held.keys() - workers.keys())
    unused = (slot for slot in count() if slot not in workers and slot not in held)
    new = [next(unused) for _ in range(wanted - len(usable))]
    incomplete = sorted(slot for slot in active.difference(surplus) if needs_start(workers[slot]))
    steps += (Start(Worker(slot)) for slot in [*again, *new, *incomplete])
    staying = active.intersection(usable[:wanted])
    pods = {slot for slot, run in workers.items() if run.state != "ended"}
    return WorkerPlan(tuple(steps), tuple(sorted(pods - staying)))


def _replaced(slot: int, run: Run, now: datetime, *, is_busy: bool) -> tuple[Step, ...]:
    """Return how a worker makes room for another: it has ended, was lost, can't start, runs an earlier
    program, or takes trials from another study server.

    One that has a trial may finish that with the earlier program.
    """
    stop = Stop(Worker(slot))
    outdated = run.active and run.outdated and not (is_busy and run.state == "running")
    return (stop,) if run.state == "ended" or run.lost or outdated else give_up(run, now, stop)
