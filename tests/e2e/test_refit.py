"""The refit, in all modes, from its specification to the model in the status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.e2e.kit import Kubectl, code, condition, phase, study

SCRIPT = """
    import optuna

    def objective(trial):
        x = trial.suggest_float("x", -10, 10)
        return (x - 2) ** 2

    study = optuna.create_study(direction="minimize")
    study.optimize(objective, n_trials=100)

    best = study.best_trial
    print(f"the final training, with {study.best_params}")
    study.set_user_attr("model", f"/models/{best.number}.pt")
    study.set_user_attr("trained_with", study.best_params)
    study.set_user_attr("trials", len(study.trials))
"""

OBJECTIVE = """
    import os

    def objective(trial):
        return trial.params["x"]

    def both(trial):
        trial.set_user_attr("role", os.environ["TUNING_ROLE"])
        return trial.params["x"], 10 - trial.params["x"]

    def final(trial):
        trial.set_user_attr("model", f"/models/{trial.number}.pt")
        return trial.params["x"] / 2

    def broken(trial):
        raise ValueError("no such folder: /data/full")
"""


def refit_phase(*names: str, trial: int | None = None) -> Callable[[dict[str, Any]], bool]:
    """Return a predicate for the phase of the refit, and optionally its trial."""

    def holds(found: dict[str, Any]) -> bool:
        refit = found.get("status", {}).get("refit", {})
        return refit.get("phase") in names and trial in (None, refit.get("trial"))

    return holds


def refit_says(words: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: words in found.get("status", {}).get("refit", {}).get("message", "")


def events(kubectl: Kubectl, name: str) -> dict[str, str]:
    about = f"involvedObject.kind=TuningStudy,involvedObject.name={name}"
    found = kubectl.json("get", "events", f"--field-selector={about}")["items"]
    return {event["reason"]: event["message"] for event in found}


def test_code_after_optimize_trains_the_final_model(kubectl: Kubectl, image: str) -> None:
    manifest = study("script", image, maxTrials=3, trial={"script": "train.py"}, refit={})
    del manifest["spec"]["searchSpace"], manifest["spec"]["trial"]["objective"]
    kubectl.apply(code("script-code", SCRIPT), manifest)
    status = kubectl.wait("script", refit_phase("Completed", "Failed"))["status"]
    best = status["best"]
    assert status["phase"] == "Completed"
    assert status["refit"] == {
        "phase": "Completed",
        "job": "script-refit",
        "trial": best["number"],
        "model": f"/models/{best['number']}.pt",
        "attributes": {"trained_with": best["parameters"], "trials": 3},
    }, kubectl.diagnostics("script")
    assert "the final training, with" in kubectl.logs_of_job("script-refit")
    messages = events(kubectl, "script")
    assert f"the parameters of trial {best['number']}" in messages["RefitCompleted"]
    assert f"/models/{best['number']}.pt" in messages["RefitCompleted"]


def test_more_trials_start_a_new_refit_only_if_there_is_a_new_best_trial(
    kubectl: Kubectl, image: str
) -> None:
    points = [{"x": 5}, {"x": 7}, {"x": 1}]
    refit = {"objective": "train:final"}
    spec = {"maxTrials": 1, "parallelism": 1, "initialTrials": points, "refit": refit}
    kubectl.apply(code("more-code", OBJECTIVE), study("more", image, **spec))
    first = kubectl.wait("more", refit_phase("Completed", "Failed"))["status"]["refit"]
    assert first == {
        "phase": "Completed", "job": "more-refit", "trial": 0, "values": [2.5], "model": "/models/0.pt",
    }, kubectl.diagnostics("more")  # fmt: skip
    job = kubectl.json("get", "job", "more-refit")["metadata"]["uid"]

    kubectl.patch("more", maxTrials=2)
    more = kubectl.wait("more", lambda s: s["status"]["progress"] == "2/2" and phase("Completed")(s))
    assert more["status"]["refit"] == first
    kubectl.patch("more", maxTrials=3)
    last = kubectl.wait("more", refit_phase("Completed", "Failed", trial=2))["status"]["refit"]
    assert (last["values"], last["model"]) == ([0.5], "/models/2.pt")
    jobs = [item["metadata"] for item in kubectl.items("jobs", "tuning.dev/role=final")]
    assert [found["name"] for found in jobs] == ["more-refit"]
    assert jobs[0]["uid"] != job
    assert jobs[0]["labels"]["tuning.dev/trial"] == "2"


def test_refit_of_the_best_trial_in_one_of_several_objectives(kubectl: Kubectl, image: str) -> None:
    objectives = [{"metric": metric, "direction": "minimize"} for metric in ("loss", "latency")]
    spec: dict[str, Any] = {"maxTrials": 2, "initialTrials": [{"x": 2}, {"x": 8}], "objectives": objectives}
    manifest = study("pareto", image, **spec, trial={"objective": "train:both"}, refit={"metric": "latency"})
    kubectl.apply(code("pareto-code", OBJECTIVE), manifest)
    refit = kubectl.wait("pareto", refit_phase("Completed", "Failed"))["status"]["refit"]
    assert (refit["trial"], refit["values"]) == (1, [8, 2]), kubectl.diagnostics("pareto")
    assert refit["attributes"] == {"role": "final"}


def test_failed_refit_is_retried_reported_and_can_be_fixed(kubectl: Kubectl, image: str) -> None:
    refit = {"objective": "train:broken", "retries": 3}
    kubectl.apply(code("broken-code", OBJECTIVE), study("broken", image, maxTrials=1, refit=refit))
    tried = kubectl.wait("broken", refit_says("Attempt failed, retrying: ValueError: no such folder"))
    assert tried["status"]["refit"]["phase"] in ("Pending", "Running")
    found = kubectl.wait("broken", refit_phase("Completed", "Failed"))
    refit = found["status"]["refit"]
    assert refit["phase"] == "Failed"
    assert "ValueError: no such folder: /data/full" in refit["message"]
    assert "spec.refit" in refit["message"]
    assert len(kubectl.items("pods", "tuning.dev/role=final")) == 4
    assert found["status"]["phase"] == "Completed", "the study is still completed"
    assert condition(found, "Complete")["status"] == "True"
    assert "/data/full" in events(kubectl, "broken")["RefitFailed"]

    kubectl.patch("broken", refit={"objective": "train:final"})
    fixed = kubectl.wait("broken", refit_phase("Completed"))["status"]["refit"]
    assert fixed["model"] == "/models/0.pt"


def test_program_reports_the_location_of_the_model(kubectl: Kubectl, image: str) -> None:
    result = """echo '{"model": "/models/{{x}}", "epochs": 3}' > "$TUNING_RESULT_FILE" """
    manifest = study(
        "shell", image, maxTrials=1, initialTrials=[{"x": 4}],
        trial={"command": ["sh", "-c", "echo loss={{x}}"]}, refit={"command": ["sh", "-c", result]},
    )  # fmt: skip
    del manifest["spec"]["trial"]["objective"], manifest["spec"]["trial"]["source"]
    kubectl.apply(manifest)
    refit = kubectl.wait("shell", refit_phase("Completed", "Failed"))["status"]["refit"]
    assert refit["model"].startswith("/models/4"), kubectl.diagnostics("shell")
    assert refit["attributes"] == {"epochs": 3}


def test_refit_that_cannot_start_is_reported(kubectl: Kubectl, image: str) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "image": "no-such-registry.test/train:1"}]}}
    refit = {"objective": "train:final", "template": template}
    kubectl.apply(code("stuck-code", OBJECTIVE), study("stuck", image, maxTrials=1, refit=refit))
    found = kubectl.wait("stuck", refit_says("cannot be pulled"))
    assert "spec.refit.template" in found["status"]["refit"]["message"]
    stalled = condition(found, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ImagePull")
    assert found["status"]["phase"] == "Completed"
    kubectl.patch("stuck", refit={"template": None})
    done = kubectl.wait("stuck", refit_phase("Completed", "Failed"))
    assert done["status"]["refit"]["phase"] == "Completed", kubectl.diagnostics("stuck")
    assert condition(done, "Stalled")["status"] == "False"
