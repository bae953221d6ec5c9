"""Errors are reported on the trial and in a condition, with a suggested fix."""

from __future__ import annotations

from tests.e2e.kit import GPU, Kubectl, code, condition, optuna_record, phase, stalled_for, study

GOOD = "def objective(trial):\n    return trial.params['x']\n"


def test_failed_objective_is_recorded_with_its_traceback(kubectl: Kubectl, image: str) -> None:
    source = """
        def objective(trial):
            if trial.number == 1:
                raise RuntimeError("the loss exploded")
            return trial.params["x"]
    """
    kubectl.apply(code("boom-code", source), study("boom", image, maxTrials=3, parallelism=1))
    status = kubectl.wait("boom", phase("Completed", "Failed"))["status"]
    assert status["phase"] == "Completed"
    assert status["trials"] == {
        "total": 3,
        "pending": 0,
        "running": 0,
        "complete": 2,
        "pruned": 0,
        "failed": 1,
    }
    with optuna_record(kubectl, "boom") as record:
        failed = record.trials[1]
        assert failed.state.name == "FAIL"
        attributes = str(failed.user_attrs) + str(failed.system_attrs)
        assert "the loss exploded" in attributes
        assert "train.py" in attributes, "the traceback names the user's file"
    [pod] = kubectl.ended_pods("boom-1")
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == 1
    assert "the loss exploded" in terminated["message"]


def test_too_many_failures_fail_the_study(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        code("broken-code", "def objective(trial):\n    raise ValueError('always')\n"),
        study("broken", image, maxTrials=20, parallelism=1, maxFailedTrials=1),
    )
    status = kubectl.wait("broken", phase("Completed", "Failed"))["status"]
    assert status["phase"] == "Failed"
    assert status["trials"]["failed"] == 2
    message = next(c for c in status["conditions"] if c["type"] == "Failed")["message"]
    assert "maxFailedTrials" in message
    assert "always" in message, "the message includes the last failure"


def test_unpullable_image_is_reported_with_a_fix(kubectl: Kubectl) -> None:
    image = "localhost:1/no-such-image:v1"
    manifest = study("typo", image, maxTrials=1, parallelism=1)
    kubectl.apply(code("typo-code", GOOD), manifest)
    kubectl.wait("typo", stalled_for(image))


def test_unsatisfiable_gpu_request_is_reported_with_a_fix(kubectl: Kubectl, image: str) -> None:
    manifest = study("greedy", image, maxTrials=1, parallelism=1)
    manifest["spec"]["trial"]["template"]["spec"]["containers"][0]["resources"]["limits"][GPU] = 4096
    kubectl.apply(code("greedy-code", GOOD), manifest)
    stalled = condition(kubectl.wait("greedy", stalled_for("Unschedulable")), "Stalled")
    assert GPU in stalled["message"]


def test_image_without_python_is_reported_with_a_fix(kubectl: Kubectl, image: str) -> None:
    manifest = study("nopython", image, maxTrials=1, parallelism=1, maxFailedTrials=0)
    manifest["spec"]["trial"]["python"] = "/no/such/python"
    kubectl.apply(code("nopython-code", GOOD), manifest)
    status = kubectl.wait("nopython", phase("Failed"))["status"]
    message = next(c for c in status["conditions"] if c["type"] == "Failed")["message"]
    assert "/no/such/python" in message
    assert "trial.python" in message


def test_out_of_memory_is_reported(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        code("hungry-code", "def objective(trial):\n    return len(bytearray(2 << 30))\n"),
        study("hungry", image, maxTrials=1, parallelism=1, maxFailedTrials=0),
    )
    kubectl.wait("hungry", phase("Failed"))
    with optuna_record(kubectl, "hungry") as record:
        assert "memory" in str(record.trials[0].user_attrs).lower()


def test_trial_timeout_is_reported(kubectl: Kubectl, image: str) -> None:
    manifest = study("slow", image, maxTrials=1, parallelism=1, maxFailedTrials=0)
    manifest["spec"]["trial"]["timeout"] = "5s"
    kubectl.apply(code("slow-code", "import time\n\ndef objective(trial):\n    time.sleep(600)\n"), manifest)
    status = kubectl.wait("slow", phase("Failed"))["status"]
    assert "timeout" in next(c for c in status["conditions"] if c["type"] == "Failed")["message"]
