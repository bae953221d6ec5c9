"""How many trials of a study run at the same time.

Above its minimum (minParallelism), an elastic study takes GPUs that are idle, and gives them back when pods
of others wait for them. What is idle shows in the study's own pods: another trial starts once all pods of the
study have a node, so at most one of them waits. GPUs are given back as trials end; no trial is stopped.
"""

from tuning_operator.kube.plan.observation import Observation, Run
from tuning_operator.kube.plan.verdict import finished
from tuning_operator.kube.plan.work import Trial
from tuning_operator.protocol import StudySummary
from tuning_operator.resource.study import TuningStudy

WAITING = frozenset({"Capacity", "Queued"})
"""Categories of pods that no node, or no queue, has room for."""


def allowed_trials(study: TuningStudy, seen: Observation) -> int:
    """Return how many trials may run now, whatever limit the namespace has."""
    most, least = study.spec.parallelism, study.spec.min_parallelism
    if least is None:
        return most
    if seen.others_wait:
        return least
    runs = _runs(seen)
    placed, waiting = sum(map(_is_placed, runs)), sum(map(_waits, runs))
    before = min(max(study.status.parallelism or 0, least, len(runs)), most)
    if waiting:
        return max(least, min(before, placed + 1))
    return min(before + 1, most) if placed == len(runs) == before else before


def wanted_trials(study: TuningStudy, seen: Observation, allowed: int) -> int:
    """Return how many trials should run while the study goes on: those that run, and more if it needs them.

    Args:
        study: the study.
        seen: what is seen of it.
        allowed: how many may run now.
    """
    spec, summary = study.spec, seen.summary or StudySummary()
    running = summary.counts.running
    exhausted = summary.exhausted and not summary.counts.waiting
    if spec.suspend or seen.problems or exhausted:
        return running
    return max(running, min(allowed, spec.max_trials - finished(summary)))


def has_minimum(study: TuningStudy, seen: Observation) -> bool:
    """Return whether as many pods as the minimum have a node, so that the others are beyond it."""
    least = study.spec.min_parallelism
    return least is not None and sum(map(_is_placed, _runs(seen))) >= least


def _runs(seen: Observation) -> list[Run | None]:
    running = seen.summary.running if seen.summary else []
    return [seen.runs.get(Trial.numbered(trial.number)) for trial in running]


def _is_placed(run: Run | None) -> bool:
    return run is not None and (run.state != "starting" or run.has_node)


def _waits(run: Run | None) -> bool:
    diagnosis = run.diagnosis if run and run.state == "starting" else None
    return diagnosis is not None and diagnosis.failure.category in WAITING
