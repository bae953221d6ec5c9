"""Renders the chart with Helm."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

EVERYTHING: Json = {
    "watchNamespaces": ["ml", "vision"],
    "imagePullSecrets": [{"name": "registry"}],
    "dashboard": {"enabled": True, "tolerations": [{"key": "spot", "operator": "Exists"}]},
    "networkPolicy": {"enabled": True},
    "operator": {"nodeSelector": {"kubernetes.io/arch": "amd64"}},
    "studyServer": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
                }
            }
        }
    },
    "postgres": {"persistence": {"storageClassName": "fast", "keep": False}},
}
EXTERNAL: Json = {
    "postgres": {"external": {"existingSecret": "db", "key": "uri"}},
    "studyServer": {"tls": {"source": "secret", "secretName": "mine"}},
    "crds": {"install": False},
    "networkPolicy": {"enabled": True},
    "dashboard": {"enabled": True},
}
TRYOUT: Json = {
    "postgres": {"persistence": {"enabled": False}},
    "crds": {"keep": False},
    "fullnameOverride": "tune",
}
VALUE_SETS = {"defaults": {}, "everything": EVERYTHING, "external": EXTERNAL, "tryout": TRYOUT}
"""Values that together cover all branches of the templates except cert-manager's."""

CERT_MANAGER: Json = {"studyServer": {"tls": {"source": "certManager", "issuerRef": {"name": "ca"}}}}


class RefusedError(Exception):
    """Helm failed; the message is Helm's."""


@dataclass(frozen=True)
class Objects:
    """The rendered objects."""

    all: list[Json]

    def kind(self, kind: str) -> list[Json]:
        return [found for found in self.all if found["kind"] == kind]

    def one(self, kind: str, component: str) -> Json:
        (found,) = [
            found for found in self.kind(kind) if labels(found)["app.kubernetes.io/component"] == component
        ]
        return found

    def workloads(self) -> list[Json]:
        return [*self.kind("Deployment"), *self.kind("StatefulSet")]

    def containers(self) -> Iterator[Json]:
        for workload in self.workloads():
            yield from pod(workload)["containers"]


@dataclass(frozen=True)
class Chart:
    """The chart and the Helm executable."""

    helm: Path
    folder: Path

    def render(self, values: Json | None = None, *, release: str = "tuning-operator") -> Objects:
        text = self.run("template", release, self.folder, "--namespace=tuning-system", values=values or {})
        return Objects([found for found in yaml.safe_load_all(text) if found])

    def run(self, *arguments: str | Path, values: Json | None = None) -> str:
        command = [str(self.helm), *map(str, arguments), *(["--values=-"] if values is not None else [])]
        done = subprocess.run(
            command, input=yaml.safe_dump(values), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RefusedError(done.stdout + done.stderr)
        return done.stdout


def labels(found: Json) -> dict[str, str]:
    return found["metadata"]["labels"]


def pod(workload: Json) -> Json:
    return workload["spec"]["template"]["spec"]


def environment(container: Json) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
