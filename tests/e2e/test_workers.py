"""Trials that take turns in the same pods: crashes, pruning and lost pods concern single trials only."""

from __future__ import annotations

from tests.e2e.kit import Kubectl, code, optuna_record, phase, study

CODE = """
    import os, signal, time

    def objective(trial):
        x = trial.suggest_float("x", 0, 10)
        print("trial", trial.number, "in a process of", os.getppid())
        trial.set_user_attr("parent", os.getppid())
        if trial.number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if trial.number == 4 and "begun" not in trial.user_attrs:
            trial.set_user_attr("begun", x)
            time.sleep(600)
        trial.set_user_attr("ended", time.time())
        return x
"""
WORKERS = "tuning.dev/study=turns,tuning.dev/role=worker"


def test_trials_take_turns_in_two_pods(kubectl: Kubectl, image: str) -> None:
    trial = {"reusePods": True}
    kubectl.apply(code("turns-code", CODE), study("turns", image, maxTrials=12, parallelism=2, trial=trial))
    kubectl.wait("turns", lambda found: found.get("status", {}).get("progress") == "11/12")
    assert {job["metadata"]["name"] for job in kubectl.items("jobs", WORKERS)} <= {"turns-w0", "turns-w1"}
    with optuna_record(kubectl, "turns") as record:
        (held,) = [t for t in record.trials if t.state.name == "RUNNING"]
    assert held.number == 4, "the others are done"
    pod = held.system_attrs["tuning:pods"][-1]
    assert "[trial 4] trial 4 in a process of" in kubectl.run("logs", pod)
    kubectl.run("delete", "pod", pod)

    done = kubectl.wait("turns", phase("Completed", "Failed"))
    counts = done["status"]["trials"]
    assert (counts["complete"], counts["failed"]) == (11, 1), kubectl.diagnostics("turns")
    with optuna_record(kubectl, "turns") as record:
        trials = record.trials
    assert [t.number for t in trials] == list(range(12))
    assert trials[2].user_attrs["failure_category"] == "ExitCode"
    assert trials[4].user_attrs["begun"] == trials[4].params["x"] == trials[4].value, "the same trial went on"
    kubectl.wait_for("delete", "pod", "-l", WORKERS)
