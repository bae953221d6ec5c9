"""When to decide again about a study if nothing happens before."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from tuning_operator.kube.plan.actions import Wait
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.usage import gpu_seconds, gpus, trials_with_gpus
from tuning_operator.kube.plan.verdict import Verdict, elapsed
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy

ELASTIC_CHECK = timedelta(seconds=10)
"""How soon an elastic study looks again whether others wait for GPUs: their pods are not watched."""
LIMIT_CHECK = timedelta(seconds=5)
"""How soon a study that its namespace's limit holds back looks again whether others run fewer trials."""
LONGEST_WAIT = 365 * 86_400.0
"""Seconds: dates that are too far away can't be computed."""
REFUSED_RETRY = timedelta(seconds=30)
"""How soon a refused spec is checked again: for example, the study of warmStart may exist by then."""


def waits(study: TuningStudy, seen: Observation, verdict: Verdict | None, now: datetime) -> Iterator[Wait]:
    """Yield the moments at which there may be something to do because of the time alone."""
    if verdict is None:
        yield from _timeout(study, now)
        yield from _gpu_hours(study, seen, now)
        yield from _shared(study, seen, now)
    if seen.problems:
        yield Wait(now + REFUSED_RETRY)
    for run in seen.runs.values():
        if run.check_at:
            yield Wait(run.check_at)


def _timeout(study: TuningStudy, now: datetime) -> Iterator[Wait]:
    spec = study.spec
    if spec.timeout and not spec.suspend:
        left = timedelta(seconds=seconds(spec.timeout)) - elapsed(study.status, now)
        yield Wait(now + left)


def _gpu_hours(study: TuningStudy, seen: Observation, now: datetime) -> Iterator[Wait]:
    """Decide again when the running trials will have used the rest of maxGpuHours."""
    allowed = study.spec.max_gpu_hours
    rate = gpus(study) * len(trials_with_gpus(seen))
    if allowed is not None and rate:
        left = allowed * 3600 - gpu_seconds(study, seen, now)
        yield Wait(now + timedelta(seconds=min(left / rate, LONGEST_WAIT)))


def _shared(study: TuningStudy, seen: Observation, now: datetime) -> Iterator[Wait]:
    """Look again whether others need less or more of what the study shares with them."""
    if study.spec.suspend:
        return
    if study.spec.min_parallelism is not None:
        yield Wait(now + ELASTIC_CHECK)
    if seen.limit is not None:
        yield Wait(now + LIMIT_CHECK)
