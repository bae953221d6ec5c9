"""What must be true of a study after any fault, compared in the record, the cluster and the status."""

from __future__ import annotations

import math
from collections.abc import Iterator

from optuna.trial import FrozenTrial, TrialState

from tests.e2e.kit import optuna_record
from tests.faults.running import STEPS, RunningStudy


def audit(study: RunningStudy, max_trials: int) -> list[str]:
    """Return what is wrong; empty if nothing was lost, repeated or left behind."""
    status = study.status()
    counts = {
        "total": max_trials,
        "pending": 0,
        "running": 0,
        "complete": max_trials,
        "pruned": 0,
        "failed": 0,
    }
    found = list(study.jobs.violations)
    if len(study.jobs.live) != max_trials:
        found.append(f"{len(study.jobs.live)} Jobs were seen")
    if status["phase"] != "Completed":
        found.append(f"the study is {status['phase']}")
    if status["trials"] != counts:
        found.append(f"the status counts {status['trials']}")
    with optuna_record(study.kubectl, study.name) as record:
        trials = record.get_trials(deepcopy=False)
        if [trial.number for trial in trials] != list(range(max_trials)):
            found.append(f"the record has the trials {[trial.number for trial in trials]}")
        for trial in trials:
            found += [f"trial {trial.number}: {error}" for error in _of(trial)]
        if not found and status["best"]["number"] != record.best_trial.number:
            found.append(f"best is {status['best']['number']}, but {record.best_trial.number} in the record")
    return found


def _of(trial: FrozenTrial) -> Iterator[str]:
    """Yield what is wrong with a trial of the objective `STEADY`."""
    if trial.state is not TrialState.COMPLETE:
        yield f"state {trial.state.name} {trial.system_attrs.get('failure', '')}"
        return
    x = trial.params.get("x", math.nan)
    if trial.values != [x]:
        yield f"values {trial.values} with x = {x}"
    if trial.intermediate_values != {step: x + step for step in range(STEPS)}:
        yield f"reported {trial.intermediate_values} with x = {x}"


def left_behind(study: RunningStudy) -> list[str]:
    """Delete the study; return what of it stays in the cluster."""
    study.kubectl.run("delete", "tuningstudy", study.name, "--timeout=60s")
    selector = f"tuning.dev/study={study.name}"
    study.kubectl.run("wait", "--for=delete", "jobs,pods", "-l", selector, "--timeout=90s", timeout=100)
    return study.kubectl.run("get", "jobs,pods,configmaps,secrets", "-l", selector, "-o", "name").split()
