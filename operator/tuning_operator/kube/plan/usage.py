"""What a study's trials use: time, and GPUs for that time."""

from datetime import datetime

from tuning_operator.protocol import StudySummary
from tuning_operator.resource.gpus import gpus_of
from tuning_operator.resource.study import TuningStudy, Usage


def gpus(study: TuningStudy) -> float:
    """Return the GPUs of a trial."""
    trial = study.spec.trial
    return gpus_of(trial.gpus, trial.template, trial.trials_per_pod)


def gpu_seconds(study: TuningStudy, summary: StudySummary, now: datetime) -> float:
    """Return the GPU time that all trials have used until now, running ones included."""
    running = ((now - trial.started).total_seconds() for trial in summary.running if trial.started)
    return gpus(study) * (_ended(summary) + sum(running))


def usage(study: TuningStudy, summary: StudySummary) -> Usage:
    """Return what the trials that have ended have used, so that it only changes when one ends."""
    counts, seconds = summary.counts, summary.durations
    mean = seconds.complete / counts.complete if counts.complete else 0.0
    saved = max(0.0, counts.pruned * mean - seconds.pruned)
    return Usage(
        trial_seconds=round(_ended(summary)),
        gpu_seconds=round(gpus(study) * _ended(summary)),
        saved_gpu_seconds=round(gpus(study) * saved),
    )


def _ended(summary: StudySummary) -> float:
    seconds = summary.durations
    return seconds.complete + seconds.pruned + seconds.fail
