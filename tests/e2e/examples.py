"""Runs the examples in real pods: their own code, and their manifests reduced in size by an overlay."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dev.demo.system import TRAINER
from tests.e2e.kit import LIMIT, PRUNE_GRACE, REQUESTS, Kubectl, phase

EXAMPLES = Path(__file__).parents[2] / "examples"
ENDED = phase("Completed", "Failed")


def load(name: str, overlay: dict[str, Any] | None = None, manifest: str = "study.yaml") -> dict[str, Any]:
    """Return an example's study with the overlay merged into its spec; slow pods keep their logs."""
    study = yaml.safe_load((EXAMPLES / name / manifest).read_text())
    study["spec"]["trial"].setdefault("pruneGrace", PRUNE_GRACE)
    return study | {"spec": merged(study["spec"], overlay or {})}


def code(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """Return the other objects of the example's kustomization: ConfigMaps with the code, volume claims."""
    objects = yaml.safe_load_all(kubectl.run("kustomize", str(EXAMPLES / name)))
    return [found for found in objects if found["kind"] != "TuningStudy"]


def apply(
    kubectl: Kubectl, name: str, overlay: dict[str, Any] | None = None, manifest: str = "study.yaml"
) -> str:
    """Apply an example, or another manifest of its folder, with an overlay; return the study's name."""
    study = load(name, overlay, manifest)
    kubectl.apply(*code(kubectl, name), study)
    return study["metadata"]["name"]


def completed(kubectl: Kubectl, study: str) -> dict[str, Any]:
    """Wait until the study has completed without failed trials; return its status."""
    status = kubectl.wait(study, ENDED)["status"]
    good = status["phase"] == "Completed" and not status["trials"]["failed"]
    assert good, f"{kubectl.diagnostics(study)}\n{logs(kubectl, study)}"
    return status


def refitted(kubectl: Kubectl, study: str) -> dict[str, Any]:
    """Wait until the refit has completed; return status.refit."""
    refit = kubectl.wait(study, refit_phase("Completed", "Failed"))["status"]["refit"]
    assert refit["phase"] == "Completed", f"{refit}\n{kubectl.run('logs', f'job/{study}-refit', check=False)}"
    return refit


def refit_phase(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda study: study.get("status", {}).get("refit", {}).get("phase") in names


def plots(kubectl: Kubectl, study: str, folder: Path, *names: str) -> set[str]:
    """Run `kubectl tuning plot`; return the names of the HTML files that contain a plot."""
    (programs := folder / "programs").mkdir()
    (programs / "kubectl").symlink_to(kubectl.kubectl)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["kubectl", "tuning", "plot", study, "--namespace", kubectl.namespace]
    command += ["--kubeconfig", kubectl.kubeconfig, "--out", str(folder), "--format", "html"]
    command += [f"--plot={name}" for name in names]
    environ = os.environ | {"PATH": path}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {page.stem for page in folder.glob("*.html") if "Plotly.newPlot" in page.read_text()}


def logs(kubectl: Kubectl, study: str) -> str:
    """Return the last log lines of all trials."""
    selector = f"tuning.dev/study={study}"
    return kubectl.run("logs", "-l", selector, "--prefix", "--tail=20", "--max-log-requests=50", check=False)


def run_python(kubectl: Kubectl, pod_name: str, code: str, volumes: dict[str, dict[str, Any]]) -> str:
    """Run code in a pod with the trainer image and volumes; return its output."""
    container = {
        "name": "main",
        "image": TRAINER,
        "command": ["python3", "-c", code],
        "resources": REQUESTS,
        "volumeMounts": [{"name": volume["name"], "mountPath": path} for path, volume in volumes.items()],
    }
    spec = {
        "restartPolicy": "Never",
        "securityContext": {"fsGroup": 65532},
        "containers": [container],
        "volumes": [*volumes.values()],
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name}, "spec": spec})
    return kubectl.output_of(pod_name)


def claimed(name: str, claim: str) -> dict[str, Any]:
    """Return a pod's volume for a PersistentVolumeClaim."""
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def trainer(env: dict[str, str] | None = None, **container: Any) -> dict[str, Any]:
    """Return an overlay for the trial's container."""
    variables = [{"name": name, "value": value} for name, value in (env or {}).items()]
    return pod(containers=[{"name": "trainer", "env": variables} | container])


def pod(**fields: Any) -> dict[str, Any]:
    """Return an overlay for the trial's pod."""
    return {"trial": {"template": {"spec": fields}}}


def merged(base: Any, patch: Any) -> Any:
    """Merge mappings by key (None removes a key) and lists of named objects by name; replace other values."""
    if isinstance(base, dict) and isinstance(patch, dict):
        kept = {key: value for key, value in base.items() if key not in patch}
        new = {key: merged(base.get(key), value) for key, value in patch.items() if value is not None}
        return kept | new
    if _named(base) and _named(patch):
        by_name = {entry["name"]: entry for entry in base}
        return list((by_name | {e["name"]: merged(by_name.get(e["name"]), e) for e in patch}).values())
    return copy.deepcopy(patch)


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value)
