"""The rules of workers: how many there are, and which leave (trial.reusePods).

Trials are asked for and end by the same rules as without workers. The study server hands each running trial
to a worker, so only workers are started and stopped here.
"""

from collections.abc import Iterator
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


def worker_steps(
    study: TuningStudy, seen: Observation, verdict: Verdict | None, parallelism: int, now: datetime
) -> Iterator[Step]:
    """Yield what to do about the workers.

    Args:
        study: the study.
        seen: what is seen of it.
        verdict: why it is over.
        parallelism: how many trials may run now.
        now: the time.
    """
    summary, workers = seen.summary or StudySummary(), workers_in(seen.runs)
    busy = {trial.worker for trial in summary.running if trial.worker is not None} if not verdict else set()
    staying: list[int] = []
    for slot, run in workers.items():
        replaced = _replaced(slot, run, now, is_busy=slot in busy)
        yield from replaced
        if run.active and Stop(Worker(slot)) not in replaced:
            staying.append(slot)
    wanted = 0 if verdict else -(-wanted_trials(study, seen, parallelism) // seen.per_worker)
    staying.sort(key=lambda slot: (slot not in busy, TAKES_FIRST.index(workers[slot].state), slot))
    surplus = staying[max(wanted, len(busy.intersection(staying))) :]
    yield from (Stop(Worker(slot)) for slot in surplus)
    away = busy.difference(staying)
    unused = (slot for slot in count() if slot not in workers and slot not in busy)
    new = [next(unused) for _ in range(wanted - len(staying) - len(away))]
    incomplete = (slot for slot in staying if slot not in surplus and needs_start(workers[slot]))
    yield from (Start(Worker(slot)) for slot in [*sorted(away - workers.keys()), *new, *incomplete])


def _replaced(slot: int, run: Run, now: datetime, *, is_busy: bool) -> tuple[Step, ...]:
    """Return how a worker makes room for another: it has ended, was lost, can't start, runs an earlier
    program, or takes trials from another study server.

    One that has a trial may finish that with the earlier program.
    """
    stop = Stop(Worker(slot))
    outdated = run.active and run.outdated and not (is_busy and run.state == "running")
    return (stop,) if run.state == "ended" or run.lost or outdated else give_up(run, now, stop)
