"""What must be true of a study after any fault, compared in the record, the cluster and the status."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from optuna.trial import FrozenTrial, TrialState

from dev.demo.record import record
from tests.faults.running import STEPS, RunningStudy


def audit(study: RunningStudy, max_trials: int, *, stops_trials: bool = False) -> list[str]:
    """Return what is wrong; empty if nothing was lost, repeated or left behind.

    Args:
        study: the study, which is over.
        max_trials: its number of trials.
        stops_trials: whether the fault ended the trials that ran, so that they are PRUNED.
    """
    status = study.status()
    found = list(study.jobs.violations)
    jobs = len(study.jobs.live)
    if jobs != max_trials and not (jobs and study.reuses_pods):
        found.append(f"{jobs} Jobs were seen")
    if status["phase"] != "Completed":
        found.append(f"the study is {status['phase']}")
    # A connection of its own: the fault may have ended earlier ones.
    with record(study.kubectl.kubeconfig) as database:
        recorded = database.study(f"{study.kubectl.namespace}/{study.name}")
        trials = recorded.get_trials(deepcopy=False)
        states = Counter(trial.state for trial in trials)
        complete, pruned = states[TrialState.COMPLETE], states[TrialState.PRUNED]
        counts = {"total": max_trials, "pending": 0, "running": 0, "failed": 0}
        if status["trials"] != {**counts, "complete": complete, "pruned": pruned}:
            found.append(f"the status counts {status['trials']}")
        if pruned > (study.parallelism if stops_trials else 0):
            found.append(f"{pruned} trials are PRUNED")
        if [trial.number for trial in trials] != list(range(max_trials)):
            found.append(f"the record has the trials {[trial.number for trial in trials]}")
        for trial in trials:
            found += [f"trial {trial.number}: {error}" for error in _of(trial)]
        best = recorded.best_trial.number
        if not found and status["best"]["number"] != best:
            found.append(f"best is {status['best']['number']}, but {best} in the record")
    return found


def _of(trial: FrozenTrial) -> Iterator[str]:
    """Yield what is wrong with a trial of the objective `STEADY`."""
    x = trial.params.get("x", math.nan)
    expected = {step: x + step for step in range(STEPS)}
    match trial.state:
        case TrialState.COMPLETE:
            if trial.values != [x]:
                yield f"values {trial.values} with x = {x}"
            if trial.intermediate_values != expected:
                yield f"reported {trial.intermediate_values} with x = {x}"
        case TrialState.PRUNED:
            if not trial.intermediate_values.items() <= expected.items():
                yield f"reported {trial.intermediate_values} with x = {x}"
        case _:
            yield f"state {trial.state.name}"


def left_behind(study: RunningStudy) -> list[str]:
    """Delete the study; return what of it stays in the cluster."""
    study.kubectl.run("delete", "tuningstudy", study.name, "--timeout=300s")
    ours = ("jobs,pods,configmaps,secrets", "-l", f"tuning.dev/study={study.name}")
    study.kubectl.run("wait", "--for=delete", *ours, "--timeout=300s", check=False)
    return study.kubectl.run("get", *ours, "-o", "name").split()
