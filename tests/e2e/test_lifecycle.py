"""The lifecycle of a study: suspend, resume, more trials, deletion."""

from __future__ import annotations

from tests.e2e.kit import Kubectl, code, optuna_record, phase, study

QUICK = "def objective(trial):\n    return trial.params['x']\n"
SLOW = """
    import time

    def objective(trial):
        time.sleep(3)
        return trial.params["x"]
"""


def test_raising_max_trials_resumes_a_finished_study(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(code("more-code", QUICK), study("more", image, maxTrials=3))
    assert kubectl.wait("more", phase("Completed"))["status"]["progress"] == "3/3"
    kubectl.patch("more", maxTrials=5)
    done = kubectl.wait("more", lambda s: s["status"]["progress"] == "5/5" and phase("Completed")(s))
    assert done["status"]["trials"]["complete"] == 5
    with optuna_record(kubectl, "more") as record:
        assert [t.number for t in record.trials] == list(range(5))


def test_suspend_stops_new_trials_and_resumes(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(code("nap-code", SLOW), study("nap", image, maxTrials=100, parallelism=2))
    kubectl.wait("nap", lambda s: s.get("status", {}).get("trials", {}).get("complete", 0) >= 1)
    kubectl.patch("nap", suspend=True)
    idle = kubectl.wait(
        "nap",
        lambda s: (
            phase("Suspended")(s)
            and not (s["status"]["trials"]["running"] or s["status"]["trials"]["pending"])
        ),
    )
    at_rest = idle["status"]["trials"]["total"]
    assert at_rest < 100
    trials = at_rest + 2
    kubectl.patch("nap", suspend=False, maxTrials=trials)
    done = kubectl.wait("nap", phase("Completed"))
    assert done["status"]["progress"] == f"{trials}/{trials}"
    assert done["status"]["trials"]["complete"] == trials


def test_deleting_a_study_removes_its_jobs_and_keeps_the_record(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(code("gone-code", SLOW), study("gone", image, maxTrials=50, parallelism=2))
    kubectl.wait("gone", lambda s: s.get("status", {}).get("trials", {}).get("complete", 0) >= 2)
    kubectl.run("delete", "tuningstudy", "gone", "--timeout=900s")
    kubectl.wait_for("delete", "jobs,pods", "-l", "tuning.dev/study=gone")
    assert kubectl.items("jobs", "tuning.dev/study=gone") == []
    with optuna_record(kubectl, "gone") as record:
        assert sum(t.state.name == "COMPLETE" for t in record.trials) >= 2
        assert not [t for t in record.trials if t.state.name == "RUNNING"], "no trial is left running"
