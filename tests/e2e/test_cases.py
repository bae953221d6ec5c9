"""What people really apply: manifests and scripts in tests/e2e/cases, each with what its user expects."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.demo.system import TRAINER
from tests.e2e.examples import ENDED, completed, refitted
from tests.e2e.kit import LIMIT, PRUNE_GRACE, Kubectl, condition, holds, optuna_record, stalled_for

CASES = Path(__file__).parent / "cases"
REQUESTS = {"cpu": "20m", "memory": "64Mi"}


def objects(name: str, image: str) -> list[dict[str, Any]]:
    """Return the objects of a file; its studies get what all of them share."""
    text = (CASES / f"{name}.yaml").read_text().replace("IMAGE", image).replace("TRAINER", TRAINER)
    found = list(yaml.safe_load_all(text))
    for study in [one for one in found if "spec" in one]:
        study |= {"apiVersion": "tuning.dev/v1alpha1", "kind": "TuningStudy"}
        study["spec"]["trial"].setdefault("pruneGrace", PRUNE_GRACE)
        template = study["spec"]["trial"].setdefault(
            "template", {"spec": {"containers": [{"name": "trainer"}]}}
        )
        for container in template["spec"]["containers"]:
            container.setdefault("image", image)
            container.setdefault("imagePullPolicy", "IfNotPresent")
            container.setdefault("resources", {}).setdefault("requests", REQUESTS)
    return found


def failed(kubectl: Kubectl, name: str, reason: str) -> str:
    """Wait until a study has failed for a reason; return the message."""
    found = condition(kubectl.wait(name, ENDED), "Failed")
    assert found.get("reason") == reason, kubectl.diagnostics(name)
    return found["message"]


def follow(kubectl: Kubectl, message: str) -> str:
    """Run the log command that a message recommends; return the log."""
    command = re.search(r"kubectl logs [^`']+", message)
    assert command, message
    return kubectl.run(*shlex.split(command[0])[1:])


def a_killed_trainer_is_out_of_memory_though_the_proxy_lives_on(kubectl: Kubectl, _: str) -> None:
    message = failed(kubectl, "proxy-outlives-trainer", "AllTrialsFailed")
    # Of both trials: under load, the container runtime may report an exit before it knows the reason.
    assert re.search(r"All 2 trials failed\. Trial \d .*\bOutOfMemory\b", message), message


def the_host_network_reaches_the_study_server(kubectl: Kubectl, _: str) -> None:
    completed(kubectl, "host-network")


def another_range_under_the_same_name_is_refused_or_starts_from_scratch(kubectl: Kubectl, image: str) -> None:
    completed(kubectl, "same-name")
    kubectl.run("delete", "tuningstudy", "same-name")
    [changed] = objects("same-name", image)
    changed["spec"]["searchSpace"][0]["high"] = 1
    kubectl.apply(changed)
    refused = condition(kubectl.wait("same-name", holds("Accepted", "False")), "Accepted")["message"]
    assert "existingRecord" in refused
    kubectl.patch("same-name", existingRecord="Replace")
    assert completed(kubectl, "same-name")["best"]["parameters"]["x"] <= 1


def init_containers_are_named_with_a_command_that_works(kubectl: Kubectl, _: str) -> None:
    message = failed(kubectl, "init-fails", "AllTrialsFailed")
    assert "Init container git-clone exited with code 128" in message
    assert follow(kubectl, message) == "fatal: Could not resolve host\n"
    reported = kubectl.wait("init-never-ends", stalled_for("InitContainer"))
    message = condition(reported, "Stalled")["message"]
    assert "init container git-sync" in message
    assert follow(kubectl, message) == "synchronized\n"


def a_crash_is_one_failure_whatever_the_time_to_live(kubectl: Kubectl, _: str) -> None:
    failed(kubectl, "ttl-zero", "AllTrialsFailed")
    # Pods are gone after a minute; the Events that they were created stay for an hour.
    jobs = [event["involvedObject"]["name"] for event in kubectl.items("events")
            if (event["involvedObject"]["kind"], event["reason"]) == ("Job", "SuccessfulCreate")]  # fmt: skip
    assert sorted(job for job in jobs if job.startswith("ttl-zero")) == [f"ttl-zero-{n}" for n in range(3)]


def a_replaced_study_goes_on(kubectl: Kubectl, image: str) -> None:
    kubectl.wait("replaced", lambda study: study.get("status", {}).get("trials", {}).get("running") == 2)
    [study] = objects("replaced", image)
    study["spec"]["trial"]["command"] = ["sh", "-c", "echo loss={{x}}"]
    kubectl.run("replace", "--force", "-f", "-", stdin=yaml.safe_dump(study))
    status = completed(kubectl, "replaced")
    assert (status["trials"]["complete"], status["trials"]["pruned"]) == (2, 2)


def a_sidecar_that_cannot_start_is_reported_and_the_trial_completes(kubectl: Kubectl, _: str) -> None:
    reported = kubectl.wait(
        "sidecar-image-missing",
        lambda study: condition(study, "Stalled").get("reason") == "SidecarNotRunning",
    )
    assert condition(reported, "Stalled")["status"] == "False"
    assert "log-shipper" in condition(reported, "Stalled")["message"]
    completed(kubectl, "sidecar-image-missing")


def workers_of_a_pod_run_its_trial_once(kubectl: Kubectl, _: str) -> None:
    for name in ("worker-processes", "worker-threads"):
        assert completed(kubectl, name)["trials"]["complete"] == 2
        for number in range(2):
            assert kubectl.logs_of_trial(name, number).count("a worker runs trial") == 1


def each_point_of_a_grid_is_tried_once(kubectl: Kubectl, _: str) -> None:
    status = completed(kubectl, "grid")
    assert (status["trials"]["complete"], status["best"]["values"]) == (6, [10])
    refitted(kubectl, "grid")
    with optuna_record(kubectl, "grid") as record:
        assert len({tuple(trial.params.values()) for trial in record.trials}) == 6


def an_assigned_sampler_is_compared_with_the_manifest(kubectl: Kubectl, _: str) -> None:
    message = failed(kubectl, "assigned-sampler", "AllTrialsFailed")
    assert "the sampler RandomSampler(seed=7), but the manifest has spec.sampler: TPESampler()" in message
    completed(kubectl, "assigned-sampler-in-manifest")


def several_studies_are_refused_or_one_is_chosen(kubectl: Kubectl, _: str) -> None:
    for name in ("study-per-target", "imported-tuner"):
        message = failed(kubectl, name, "AllTrialsFailed")
        assert "calls optimize more than once" in message
        assert "Set trial.study to the study_name" in message
        assert "training" not in kubectl.logs_of_trial(name, 0)
    best = completed(kubectl, "study-per-target-high")["best"]
    assert best["values"] == [pytest.approx((best["parameters"]["x"] - 8) ** 2)]
    refitted(kubectl, "study-per-target-high")
    x = round(best["parameters"]["x"], 2)
    printed = f"best by target: {{'low': <unknown: the study low is skipped>, 'high': {x}}}"
    assert printed in kubectl.logs_of_job("study-per-target-high-refit")
    completed(kubectl, "imported-tuner-regression")


def what_optuna_raises_ends_the_trial(kubectl: Kubectl, _: str) -> None:
    message = failed(kubectl, "cmaes", "TooManyFailedTrials")
    assert "Parameter configuration must contain all distributions" in message


def exceptions_that_a_script_catches_do_not_end_the_study(kubectl: Kubectl, _: str) -> None:
    status = kubectl.wait("many-caught", ENDED)["status"]
    assert status["phase"] == "Completed", kubectl.diagnostics("many-caught")
    assert (status["trials"]["complete"], status["trials"]["failed"]) == (1, 5)
    refitted(kubectl, "many-caught")
    assert "{'COMPLETE': 1, 'FAIL': 5}" in kubectl.logs_of_job("many-caught-refit")
    with optuna_record(kubectl, "many-caught") as record:
        assert record.user_attrs == {"data": "v1"}


Check = Callable[[Kubectl, str], None]

MANIFESTS: dict[str, Check] = {
    "sidecar-image-missing": a_sidecar_that_cannot_start_is_reported_and_the_trial_completes,
    "replaced": a_replaced_study_goes_on,
    "same-name": another_range_under_the_same_name_is_refused_or_starts_from_scratch,
    "host-network": the_host_network_reaches_the_study_server,
    "proxy-outlives-trainer": a_killed_trainer_is_out_of_memory_though_the_proxy_lives_on,
    "ttl-zero": a_crash_is_one_failure_whatever_the_time_to_live,
    "init-containers": init_containers_are_named_with_a_command_that_works,
}
SCRIPTS: dict[str, Check] = {
    "worker-processes": workers_of_a_pod_run_its_trial_once,
    "worker-threads": workers_of_a_pod_run_its_trial_once,
    "grid": each_point_of_a_grid_is_tried_once,
    "assigned-sampler": an_assigned_sampler_is_compared_with_the_manifest,
    "study-per-target": several_studies_are_refused_or_one_is_chosen,
    "imported-tuner": several_studies_are_refused_or_one_is_chosen,
    "cmaes": what_optuna_raises_ends_the_trial,
    "many-caught": exceptions_that_a_script_catches_do_not_end_the_study,
}


@pytest.mark.long
def test_manifests(kubectl: Kubectl, image: str) -> None:
    check(kubectl, image, MANIFESTS)


@pytest.mark.long
def test_scripts(kubectl: Kubectl, image: str, tmp_path: Path) -> None:
    apply_what_init_writes(kubectl, image, tmp_path)
    check(kubectl, image, SCRIPTS)
    completed(kubectl, "known-points")
    with optuna_record(kubectl, "known-points") as record:
        first, second = (trial.params for trial in record.trials)
    assert first == {"x": 5, "y": -2, "n": 1}
    assert (second["x"], second["y"]) == (4.5, -2.5)


def check(kubectl: Kubectl, image: str, cases: dict[str, Check]) -> None:
    """Apply all cases at once, since most of their time is waiting; check each from the beginning.

    Some of what is expected passes: the condition of a trial that runs, pods that are soon deleted.
    """
    kubectl.apply(*(one for name in cases for one in objects(name, image)))
    with ThreadPoolExecutor() as threads:
        for checked in [threads.submit(one, kubectl, image) for one in dict.fromkeys(cases.values())]:
            checked.result()


def apply_what_init_writes(kubectl: Kubectl, image: str, folder: Path) -> None:
    """Points that were enqueued keep their names, though YAML 1.1 has y and n as booleans."""
    (folder / "known-points.py").write_text((CASES / "known-points.py").read_text())
    plugin = Path(sys.executable).with_name("kubectl-tuning")
    command = [plugin, "init", "known-points.py", "--python", sys.executable, "--image", image, "--gpus", "0"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=LIMIT)
    kubectl.run("apply", "-k", str(folder))
