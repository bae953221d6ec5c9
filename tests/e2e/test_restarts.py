"""If the operator or the study server is killed during a study, no trial is lost or duplicated."""

from __future__ import annotations

import pytest

from tests.e2e.kit import SYSTEM, Kubectl, code, optuna_record, phase, study
from tests.e2e.test_main_path import JobWatch, running_at_once

STEADY = """
    import time

    def objective(trial):
        for step in range(20):
            trial.report(trial.params["x"] + step, step)
            time.sleep(0.15)
        return trial.params["x"]
"""


@pytest.mark.disruptive
def test_no_trial_is_lost_or_duplicated_by_restarts(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        code("tough-code", STEADY),
        study("tough", image, maxTrials=16, parallelism=4, pruner={"name": "NopPruner"}),
    )
    watch = JobWatch(kubectl, "tough")
    watch.start()
    system = kubectl.within(SYSTEM)
    kill = ("delete", "pod", "--grace-period=0", "--force", "--wait=false", "-l")
    kubectl.wait("tough", lambda s: s.get("status", {}).get("trials", {}).get("complete", 0) >= 2)
    system.run(*kill, "app.kubernetes.io/component=operator")
    kubectl.wait("tough", lambda s: s["status"]["trials"]["complete"] >= 6)
    system.run(*kill, "app.kubernetes.io/component=study-server")
    status = kubectl.wait("tough", phase("Completed", "Failed"), timeout=300)["status"]
    assert status["phase"] == "Completed"
    assert status["trials"] == {
        "total": 16,
        "pending": 0,
        "running": 0,
        "complete": 16,
        "pruned": 0,
        "failed": 0,
    }
    with optuna_record(kubectl, "tough") as record:
        assert [t.number for t in record.trials] == list(range(16))
        assert running_at_once(record.trials) <= 4
        for trial in record.trials:  # values reported while the server was down are not lost
            assert sorted(trial.intermediate_values) == list(range(20))
    assert len(watch.names) == 16, "a trial had two Jobs"
