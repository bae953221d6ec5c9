"""The commands that change a study, on a real study server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli.cluster import Cluster
from tests.unit.cli.conftest import Ran


@pytest.fixture(autouse=True)
def patches(cluster: Cluster) -> None:
    cluster.answer("patch-tuningstudies", "patched")
    cluster.answer("annotate-jobs", "annotated")


def spec(cluster: Cluster, **fields: Any) -> None:
    """Change the study's spec."""
    study = json.loads((cluster.folder / "get-tuningstudies").read_text())
    study["spec"] |= fields
    cluster.answer("get-tuningstudies", study)


def total(cluster: Cluster, trials: int) -> None:
    """Change how many trials of the study have started."""
    study = json.loads((cluster.folder / "get-tuningstudies").read_text())
    study["status"]["trials"] = {"total": trials}
    cluster.answer("get-tuningstudies", study)


def patch(cluster: Cluster) -> Any:
    """Return what was changed in the spec."""
    call = cluster.asked("patch")
    assert {"mnist", "--type=merge", "--namespace=ml"} <= {*call}
    [text] = [argument.partition("=")[2] for argument in call if argument.startswith("--patch=")]
    return json.loads(text)["spec"]


def test_suspend_and_resume(mnist: Cluster) -> None:
    assert Ran("suspend", "mnist").out.startswith("mnist is suspended: no new trials start")
    assert patch(mnist) == {"suspend": True}


def test_resume(mnist: Cluster) -> None:
    refused = Ran("resume", "mnist")
    assert (refused.code, refused.error) == (
        1,
        "mnist is not suspended\nmnist: Running, 6/10 trials finished (4 complete, 1 pruned, 1 failed, "
        "1 running)",
    )
    spec(mnist, suspend=True)
    assert Ran("resume", "mnist").out == "mnist continues.\n"
    assert patch(mnist) == {"suspend": False}


def test_a_study_that_has_ended(cluster: Cluster) -> None:
    cluster.study(phase="Completed", progress="10/10")
    assert "mnist has already ended\nmnist: Completed" in (Ran("suspend", "mnist").error or "")
    assert "mnist has already ended" in (Ran("stop", "mnist").error or "")
    assert "to continue it, use kubectl tuning extend mnist" in (Ran("resume", "mnist").error or "")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--trials", "+5"], {"maxTrials": 15}),
        (["--trials", "50", "--timeout", "2h"], {"maxTrials": 50, "timeout": "2h"}),
        (["--timeout", "+30m"], {"timeout": "5400s"}),
        (["--failed-trials", "+1"], {"maxFailedTrials": 11}),
    ],
)
def test_extend(cluster: Cluster, options: list[str], changes: dict[str, Any]) -> None:
    cluster.study(phase="Completed")
    spec(cluster, timeout="1h")
    assert Ran("extend", "mnist", *options).out.startswith("mnist: ")
    assert patch(cluster) == changes


def test_the_timeout_of_a_study_that_has_ended_counts_from_zero(cluster: Cluster) -> None:
    cluster.study(phase="Running")
    spec(cluster, timeout="12h")
    assert Ran("extend", "mnist", "--timeout", "+1h").out == "mnist: timeout=46800s\n"
    cluster.study(phase="Completed")
    spec(cluster, timeout="12h")
    assert Ran("extend", "mnist", "--timeout", "+1h").out.splitlines() == [
        "mnist: timeout=46800s",
        "mnist has ended. When it continues, its timeout of 46800s counts from then.",
    ]


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (
            ("Complete", "TimeoutReached", "The study's timeout (1h) elapsed."),
            " To continue it, use --timeout.",
        ),
        (("Failed", "TooManyFailedTrials", "2 trials failed."), " To continue it, use --failed-trials."),
        (("Complete", "GpuHoursUsed", "Used."), " To continue it, raise spec.maxGpuHours."),
        (("Complete", "SearchSpaceExhausted", "It has tried all."), ""),
        (("Complete", "MaxTrialsReached", "10 trials finished."), None),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_limit_that_a_study_did_not_reach(
    cluster: Cluster, end: tuple[str, str, str], note: str | None
) -> None:
    kind, reason, message = end
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    cluster.study(phase="Completed", conditions=[condition])
    ran = Ran("extend", "mnist", "--trials", "+5")
    assert ran.out == "mnist: maxTrials=15\n"
    expected = f"note: mnist ended for another reason, so it doesn't continue: {message}{note}\n"
    assert ran.err == (expected if note is not None else "")


def test_the_limit_among_others_that_a_study_reached(cluster: Cluster) -> None:
    condition = {"type": "Complete", "status": "True", "reason": "TimeoutReached", "message": "Elapsed."}
    cluster.study(phase="Completed", conditions=[condition])
    spec(cluster, timeout="1h")
    ran = Ran("extend", "mnist", "--trials", "+5", "--timeout", "2h")
    assert (ran.err, ran.out.splitlines()[1:]) == (
        "",
        ["mnist has ended. When it continues, its timeout of 2h counts from then."],
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--trials", "10"], 1, "the limit is 10"),
        (["--trials", "-5"], 2, ""),
        (["--trials", "many"], 2, ""),
        (["--timeout", "10m"], 1, "the timeout is 1h"),
        (["--timeout", "soon"], 2, ""),
        ([], 2, ""),
    ],
)
def test_limits_are_only_raised(cluster: Cluster, options: list[str], code: int, message: str) -> None:
    cluster.study(phase="Running")
    spec(cluster, timeout="1h")
    ran = Ran("extend", "mnist", *options)
    assert ran.code == code
    assert message in (ran.error or "")
    assert not [call for call in cluster.calls() if call[0] == "patch"]


def test_there_is_no_timeout_to_extend(cluster: Cluster) -> None:
    cluster.study(phase="Running")
    assert "the study has no timeout" in (Ran("extend", "mnist", "--timeout", "2h").error or "")


def test_stop_a_trial(mnist: Cluster) -> None:
    assert Ran("stop", "mnist", "6").out == "Trial 6 of mnist is being stopped.\n"
    call = mnist.asked("annotate")
    assert call[:4] == ["annotate", "jobs", "mnist-6", "tuning.dev/stop=true"]
    assert "--namespace=ml" in call
    assert Ran("stop", "mnist", "5").error == "trial 5 is not running: it is complete"
    assert Ran("stop", "mnist", "9").code == 3


def test_stop_a_trial_whose_pod_has_others(mnist: Cluster) -> None:
    spec(mnist, trial={"reusePods": True})
    assert Ran("stop", "mnist", "6").out == "Trial 6 of mnist is being stopped.\n"
    call = mnist.asked("annotate")
    workers = "--selector=tuning.dev/study=mnist,tuning.dev/role=worker"
    assert call[:4] == ["annotate", "jobs", workers, "tuning.dev/stop=6"]


def test_stop_a_study(mnist: Cluster) -> None:
    out = Ran("stop", "mnist").out
    assert out.splitlines() == [
        "mnist is suspended, and 1 running trial is being stopped.",
        "To continue: kubectl tuning resume mnist",
    ]
    assert patch(mnist) == {"suspend": True}
    assert mnist.asked("annotate")[2] == "mnist-6"


def test_stop_a_study_before_its_first_trial(cluster: Cluster) -> None:
    cluster.study(phase="Pending")
    cluster.answer("get-configmaps", {"items": []})
    assert "0 running trials are being stopped" in Ran("stop", "mnist").out


def test_retry(mnist: Cluster) -> None:
    trial = json.loads(Ran("trial", "mnist", "2", "-o", "json").out)
    spec(mnist, initialTrials=[{"lr": 0.5}])
    assert Ran("retry", "mnist", "2").out == (
        "mnist tries the parameters of trial 2 again, in its next trial.\n"
    )
    assert patch(mnist) == {"initialTrials": [{"lr": 0.5}, trial["parameters"]]}


def test_retry_in_a_study_that_is_over(mnist: Cluster) -> None:
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    study["status"] |= {"phase": "Failed", "trials": {"total": 10}}
    mnist.answer("get-tuningstudies", study)
    ran = Ran("retry", "mnist", "2")
    assert patch(mnist)["maxTrials"] == 11
    assert "maxTrials was raised to 11." in ran.out
    assert "if too many trials failed, raise maxFailedTrials:\nmnist: Failed" in ran.out


def test_several_retries_all_have_room(mnist: Cluster) -> None:
    """One trial is left, and none of them has started."""
    total(mnist, 9)
    for number in ("1", "2", "0"):
        assert Ran("retry", "mnist", number).code == 0
        changed = patch(mnist)
        spec(mnist, **changed)
        (mnist.folder / "asked").unlink()
    assert len(changed["initialTrials"]) == 3
    assert changed["maxTrials"] == 12


def test_a_retry_after_max_trials_were_lowered_has_room(mnist: Cluster) -> None:
    total(mnist, 150)
    assert "maxTrials was raised to 151." in Ran("retry", "mnist", "2").out
    assert patch(mnist)["maxTrials"] == 151


def test_what_can_not_be_retried(mnist: Cluster) -> None:
    assert Ran("retry", "mnist", "6").error == "trial 6 has not finished: it is running"
    spec(mnist, initialTrials=[{"lr": 0.1, "kind": "a"}])
    assert (Ran("retry", "mnist", "0").error or "").endswith("where each entry is tried only once")
    assert Ran("retry", "mnist", "7").code == 3
