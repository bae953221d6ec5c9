"""The commands `list`, `trials` and `trial` on a real study server."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from tuning_operator.cli.text.curve import curve
from tuning_operator.cli.trials import Trial
from tuning_operator.protocol import FinishedTrial

from tests.unit.cli.cluster import Cluster
from tests.unit.cli.conftest import Ran

if TYPE_CHECKING:
    from tests.support.study_server import RunningServer


def table(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


def numbers(*options: str) -> list[int]:
    return [trial["number"] for trial in json.loads(Ran("trials", "mnist", "-o", "json", *options).out)]


def test_trials(mnist: Cluster) -> None:
    ran = Ran("trials", "mnist", "-n", "ml")
    rows = table(ran.out)
    assert rows[0] == ["TRIAL", "STATE", "loss", "lr", "kind", "DURATION", "LAST", "STEP", "POD"]
    states = ["complete", "pruned", "failed", "complete", "complete", "complete", "running"]
    assert [row[:2] for row in rows[1:]] == [[str(number), state] for number, state in enumerate(states)]
    assert rows[1][2:5] == ["0.0769231", "0.1", "a"]
    assert rows[2][2:5] == ["-", "0.9", "null"]
    assert rows[1][-3:] == ["11", "(0.0769231)", "-"]
    assert [row[-1] for row in rows[6:]] == ["mnist-5-b", "mnist-6-b"]  # the newest pods
    assert "\x1b" not in ran.out
    assert ran.err == ""


def test_wide_says_why(mnist: Cluster) -> None:
    out = Ran("trials", "mnist", "-o", "wide").out
    assert "At step 0, its best value so far (0.9) is worse than 0.5, the median" in out
    assert "Exception: CUDA out of memory" in out
    assert "epochs=12" in out


def test_sorting_and_states(mnist: Cluster) -> None:
    assert numbers("--sort", "value") == [5, 4, 3, 0, 1, 2, 6]
    assert numbers("--sort", "loss", "--state", "complete", "--reverse") == [0, 3, 4, 5]
    assert numbers("--state", "failed", "--state", "pruned") == [1, 2]
    by_lr = numbers("--sort", "lr")
    assert (by_lr[-1], {*by_lr}) == (1, {*range(7)})
    assert "use one of value, loss, number" in (Ran("trials", "mnist", "--sort", "size").error or "")


def test_the_best_come_first_when_maximizing(mnist: Cluster) -> None:
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    study["spec"]["objectives"][0]["direction"] = "maximize"
    mnist.answer("get-tuningstudies", study)
    assert numbers("--sort", "value", "--state", "complete") == [0, 3, 4, 5]


def test_no_trial_in_a_state(mnist: Cluster) -> None:
    ran = Ran("trials", "mnist", "--state", "waiting")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("No waiting trials.\nmnist: Running, 6/10 trials finished")


def test_csv(mnist: Cluster) -> None:
    rows = list(csv.DictReader(io.StringIO(Ran("trials", "mnist", "-o", "csv").out)))
    assert [row["number"] for row in rows] == list("0123456")
    assert float(rows[5]["loss"]) == 1 / 28
    assert rows[1]["params_kind"] == "null"
    assert (rows[0]["user_attrs_epochs"], rows[1]["user_attrs_epochs"]) == ("12", "")
    assert rows[2]["reason"] == "Exception: CUDA out of memory"
    assert rows[6]["finished"] == ""


@pytest.mark.parametrize("metric", ["seconds", "params_lr"])
def test_a_metric_with_the_name_of_another_column(mnist: Cluster, metric: str) -> None:
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    study["spec"]["objectives"][0]["metric"] = metric
    mnist.answer("get-tuningstudies", study)
    rows = list(csv.DictReader(io.StringIO(Ran("trials", "mnist", "-o", "csv").out)))
    assert float(rows[5][f"values_{metric}"]) == 1 / 28
    assert float(rows[0]["seconds"]) < 1000
    assert rows[0]["params_lr"] == "0.1"
    assert rows[2]["reason"] == "Exception: CUDA out of memory"


def test_json_and_yaml_are_the_same(mnist: Cluster) -> None:
    found = json.loads(Ran("trial", "mnist", "1", "-o", "json").out)
    assert found["pruneReason"].startswith("At step 0")
    assert found["reported"] == {"0": 0.9}
    assert found["values"] == {}
    assert yaml.safe_load(Ran("trial", "mnist", "1", "-o", "yaml").out) == found
    failed = json.loads(Ran("trial", "mnist", "2", "-o", "json").out)
    assert failed["failure"] == {"category": "Exception", "message": "CUDA out of memory"}
    assert failed["userAttributes"] == {}


def test_a_complete_trial(mnist: Cluster) -> None:
    out = Ran("trial", "mnist", "5").out
    assert out.startswith("Trial 5 of mnist: complete")
    assert re.search(r"loss +0\.0357143", out)
    assert re.search(r"^  pod +mnist-5-b\n  log +kubectl tuning logs mnist 5$", out, re.MULTILINE)
    assert "Reports (12)" in out
    assert re.search(r"0\.0588235 ┤[\u2801-\u28ff]", out)
    assert re.search(r"step 0 +11", out)
    assert re.search(r"User attributes\n +epochs +12", out)


def test_a_pruned_and_a_failed_trial(mnist: Cluster) -> None:
    pruned = Ran("trial", "mnist", "1").out
    assert "At step 0, its best value so far (0.9) is worse than 0.5, the median of 1 completed" in pruned
    assert re.search(r"Reports \(1\)\n +step 0 +0\.9", pruned)
    failed = Ran("trial", "mnist", "2").out
    assert "Failure\n  Exception: CUDA out of memory" in failed
    assert "Reports" not in failed


def test_a_failure_with_its_fix_and_traceback(mnist: Cluster, mnist_server: RunningServer) -> None:
    failure = {
        "category": "OutOfMemory",
        "message": "Killed.",
        "remedy": "Raise limits.",
        "traceback": "a\nb",
    }
    result = {"state": "FAIL", "failure": failure}
    done = mnist_server.operator().post("/v1/studies/ml/mnist/trials/6/result", json=result)
    assert done.status_code == 200
    out = Ran("trial", "mnist", "6").out
    assert "OutOfMemory: Killed.\n  How to fix it: Raise limits.\n  a\n  b\n" in out


@pytest.mark.parametrize("state", ["COMPLETE", "FAIL"])
def test_attributes_whose_names_begin_like_those_of_a_failure(state: str) -> None:
    """The message of a failure is shown as such; in a trial that did not fail, it is the code's own."""
    attributes = {"failure_rate": 0.02, "failure_message": "none", "prune_reason": "x"}
    record = FinishedTrial.model_validate(
        {"number": 0, "state": state, "values": [1] if state == "COMPLETE" else None}
        | {"userAttrs": attributes}
    )
    expected = {"failure_rate": 0.02} | ({"failure_message": "none"} if state == "COMPLETE" else {})
    assert Trial(record, ["loss"]).as_data()["userAttributes"] == expected


def test_a_copied_trial(mnist: Cluster, mnist_server: RunningServer) -> None:
    operator = mnist_server.operator()
    definition = {"objectives": [{"metric": "loss", "direction": "minimize"}], "warmStart": "mnist"}
    assert operator.put("/v1/studies/ml/next", json=definition).status_code == 200
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    study["metadata"]["name"] = "next"
    config = json.loads((mnist.folder / "get-configmaps").read_text())
    config["items"][0]["metadata"]["name"] = "next-trainer-0123456789"
    mnist.answer("get-tuningstudies", study)
    mnist.answer("get-configmaps", config)
    mnist.answer("get-pods", {"items": []})
    assert table(Ran("trials", "next").out)[1][-4:] == ["copy", "of", "mnist", "0"]
    assert "copied from    trial 0 of ml/mnist (warmStart)" in Ran("trial", "next", "0").out


def test_a_trial_that_does_not_exist(mnist: Cluster) -> None:
    ran = Ran("trial", "mnist", "7")
    assert ran.code == 3
    assert (ran.error or "").startswith("there is no trial 7\nmnist: Running")


def test_users_who_may_not_list_pods_see_the_rest(mnist: Cluster) -> None:
    mnist.refuse("get-pods", "Error from server (Forbidden): pods is forbidden")
    ran = Ran("trials", "mnist")
    assert (ran.code, len(table(ran.out))) == (0, 8)
    assert "no permission to list them" in ran.err


def test_list(mnist: Cluster) -> None:
    study = json.loads((mnist.folder / "get-tuningstudies").read_text())
    front = {"number": 0, "parameters": {}, "values": [1, 2]}
    two = [{"metric": metric, "direction": "minimize"} for metric in "ab"]
    other = {
        "metadata": study["metadata"] | {"name": "other", "namespace": "nlp"},
        "spec": {"objectives": two, "maxTrials": 5},
        "status": {
            "paretoFront": [front] * 3,
            "bestValue": "front of 80",
            "refit": {"phase": "Failed", "job": "other-refit"},
            "conditions": [{"type": "Stalled", "status": "True", "reason": "ImagePull", "message": "m"}],
        },
    }
    mnist.answer("get-tuningstudies", {"items": [study, other]})
    rows = table(Ran("list", "-A", "-o", "wide").out)
    assert rows[0][:4] == ["NAMESPACE", "NAME", "PHASE", "FINISHED"]
    assert rows[1][:8] == ["ml", "mnist", "Running", "6/10", "1", "1", "1", "0.0357143"]
    assert rows[2][:10] == ["nlp", "other", "-", "0/5", "0", "0", "0", "front", "of", "80"]
    assert rows[2][-3:] == ["Failed", "Stalled=True", "(ImagePull)"]
    assert "--all-namespaces" in mnist.asked("get-tuningstudies")
    assert [found["metadata"]["name"] for found in json.loads(Ran("list", "-o", "json").out)] == [
        "mnist",
        "other",
    ]


def test_an_empty_list(cluster: Cluster) -> None:
    cluster.answer("get-tuningstudies", {"items": []})
    ran = Ran("list")
    assert (ran.code, ran.out, ran.err) == (0, "", "No studies found.\n")


@pytest.mark.parametrize("high", [1.0, 1e308])
def test_a_curve_reaches_from_corner_to_corner(high: float) -> None:
    lines = curve({0: -high, 5: math.nan, 10: high}, width=10, height=3)
    assert [line.partition("┤")[2] for line in lines[:3]] == [
        "⠀⠀⠀⠀⠀⠀⢀⡠⠔⠊",
        "⠀⠀⠀⢀⠤⠒⠁",
        "⡠⠔⠊⠁",
    ]


def test_a_flat_curve_and_no_curve() -> None:
    assert [line.partition("┤")[::2] for line in curve({1: 2.0, 2: 2.0}, width=10, height=3)[:3]] == [
        ("  ", ""),
        ("2 ", "⠤" * 10),
        ("  ", ""),
    ]
    assert curve({1: 2.0, 2: math.inf}) == []
