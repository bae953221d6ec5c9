"""What a study's trials use: time, and GPUs for that time."""

from datetime import datetime

from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.work import Trial
from tuning_operator.protocol import StudySummary, TrialRecord
from tuning_operator.resource.quantity import gpus_of
from tuning_operator.resource.study import TuningStudy, Usage


def gpus(study: TuningStudy) -> float:
    """Return the GPUs of a trial."""
    trial = study.spec.trial
    return gpus_of(trial.gpus, trial.template, trial.trials_per_pod)


def gpu_seconds(study: TuningStudy, seen: Observation, now: datetime) -> float:
    """Return the GPU time that all trials have used until now, those that have their GPUs included."""
    running = ((now - trial.started).total_seconds() for trial in trials_with_gpus(seen) if trial.started)
    return _ended_gpu_seconds(study, seen.summary or StudySummary()) + gpus(study) * sum(running)


def trials_with_gpus(seen: Observation) -> list[TrialRecord]:
    """Return the running trials whose pods are known to have their GPUs.

    The others wait for them. A run that is being stopped may have waited, too.
    """
    running = seen.summary.running if seen.summary else ()
    runs = ((trial, seen.runs.get(Trial.numbered(trial.number))) for trial in running)
    return [trial for trial, run in runs if run and (run.state == "running" or run.has_node)]


def usage(study: TuningStudy, summary: StudySummary) -> Usage:
    """Return what the trials that have ended have used, so that it only changes when one ends."""
    counts, seconds = summary.counts, summary.durations
    mean = seconds.complete / counts.complete if counts.complete else 0.0
    saved = max(0.0, counts.pruned * mean - seconds.pruned)
    ended, gpu_time = _ended(summary), _ended_gpu_seconds(study, summary)
    return Usage(
        trial_seconds=round(ended),
        gpu_seconds=round(gpu_time),
        saved_gpu_seconds=round(saved * gpu_time / ended) if ended else 0,
    )


def _ended_gpu_seconds(study: TuningStudy, summary: StudySummary) -> float:
    """Return the GPU time of the trials that have ended, each with the GPUs that a trial had then.

    The record has no GPUs. Once their number was changed, the status has the time before; until then, it is
    computed from the record, since the status is rounded.
    """
    old, ended, rate = study.status.usage, _ended(summary), gpus(study)
    rounding = (rate + 1) / 2
    if old is None or abs(old.gpu_seconds - rate * old.trial_seconds) <= rounding:
        return rate * ended
    # Rounded at both ends, so that the remainders of many passes cancel out.
    return (
        old.gpu_seconds + round(rate * max(round(ended), old.trial_seconds)) - round(rate * old.trial_seconds)
    )


def _ended(summary: StudySummary) -> float:
    seconds = summary.durations
    return seconds.complete + seconds.pruned + seconds.fail
