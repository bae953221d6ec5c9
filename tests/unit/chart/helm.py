"""Renders the chart with Helm."""

import functools
import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import programs

ROOT = Path(__file__).parents[3]

Json = dict[str, Any]

EVERYTHING: Json = {
    "watchNamespaces": ["ml", "vision"],
    "imagePullSecrets": [{"name": "registry"}],
    "grafana": {"dashboard": True},
    "dashboard": {"enabled": True, "tolerations": [{"key": "spot", "operator": "Exists"}]},
    "operator": {"replicas": 2, "nodeSelector": {"kubernetes.io/arch": "amd64"}},
    "studyServer": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
                }
            }
        }
    },
    "postgres": {
        "persistence": {"storageClassName": "fast", "keep": False},
        "backup": {"enabled": True, "existingClaim": "dumps"},
    },
}
POD: Json = {
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "podLabels": {"team": "ml"},
    "podAnnotations": {"prometheus.io/scrape": "true"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "priorityClassName": "important",
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "podDisruptionBudget": {"maxUnavailable": 0},
}
"""What the values of each component may have; the user IDs are left to the cluster, as on OpenShift."""
PROXY: Json = {
    "name": "proxy",
    "image": "oauth2-proxy",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
PLATFORM: Json = {
    "image": {"digest": f"sha256:{'1' * 64}"},
    "logLevel": "DEBUG",
    "clusterDomain": "corp.example",
    "operator": {**POD, "serviceAccount": {"annotations": {"owner": "ml"}}},
    "studyServer": {**POD, "serviceAccount": {"annotations": {"owner": "ml"}}},
    "postgres": {
        **POD,
        "auth": {"existingSecret": "vault", "key": "pg"},
        "backup": {"enabled": True, "existingClaim": "dumps"},
    },
    "dashboard": {**POD, "enabled": True, "extraContainers": [PROXY]},
    "networkPolicy": {
        "allow": {
            who: [{"namespaceSelector": {"matchLabels": {"name": who}}}]
            for who in ("studyServer", "postgres", "dashboard")
        }
    },
}
EXTERNAL: Json = {
    "postgres": {"external": {"existingSecret": "db", "key": "uri", "caSecret": "db-ca"}},
    "studyServer": {"tls": {"source": "secret", "secretName": "mine"}},
    "crds": {"install": False},
    "dashboard": {"enabled": True},
}
TRYOUT: Json = {
    "postgres": {"persistence": {"enabled": False}},
    "crds": {"keep": False},
    "fullnameOverride": "true",
    "networkPolicy": {"enabled": False},
}
OF_ONE_NAMESPACE: Json = {
    "watchNamespaces": ["ml"],
    "crds": {"install": False},
    "userRoles": {"create": False},
    "admissionPolicy": {"enabled": False},
}
"""What someone can install who has permissions only in namespaces."""
VALUE_SETS = {
    "defaults": {},
    "everything": EVERYTHING,
    "platform": PLATFORM,
    "external": EXTERNAL,
    "tryout": TRYOUT,
    "ofOneNamespace": OF_ONE_NAMESPACE,
}
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

    def pod_templates(self) -> list[Json]:
        """Return the templates of all pods, those of CronJobs included."""
        jobs = [cron["spec"]["jobTemplate"] for cron in self.kind("CronJob")]
        return [owner["spec"]["template"] for owner in [*self.workloads(), *jobs]]

    def containers(self) -> Iterator[Json]:
        for workload in self.workloads():
            yield from pod(workload)["containers"]


@dataclass(frozen=True)
class Chart:
    """The chart and the Helm executable."""

    helm: Path
    folder: Path

    def render(
        self,
        values: Json | None = None,
        *,
        release: str = "tuning-operator",
        namespace: str = "tuning-system",
    ) -> Objects:
        text = _rendered(self, release, namespace, json.dumps(values or {}))
        return Objects([found for found in yaml.load_all(text, yaml.CSafeLoader) if found])

    def run(self, *arguments: str | Path, values: Json | None = None) -> str:
        command = [str(self.helm), *map(str, arguments), *(["--values=-"] if values is not None else [])]
        done = subprocess.run(
            command, input=yaml.safe_dump(values), capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode:
            raise RefusedError(done.stdout + done.stderr)
        return done.stdout


@functools.cache
def _rendered(chart: Chart, release: str, namespace: str, values: str) -> str:
    """Return what Helm renders; cached, since many tests look at the same."""
    arguments = ("template", release, chart.folder, f"--namespace={namespace}")
    return chart.run(*arguments, values=json.loads(values))


def labels(found: Json) -> dict[str, str]:
    return found["metadata"]["labels"]


def pod(workload: Json) -> Json:
    return workload["spec"]["template"]["spec"]


def environment(container: Json) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def shaken_hands(authority: str, certificate: Path, host: str) -> None:
    """Do a TLS handshake with the strict verification that is the default in Python 3.13."""
    theirs = ssl.create_default_context(cadata=authority)
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=host)
    server = ours.wrap_bio(up, down, server_side=True)
    unfinished = [client, server]
    while unfinished:
        try:
            unfinished[0].do_handshake()
            unfinished.pop(0)
        except ssl.SSLWantReadError:
            unfinished.reverse()


def our_chart() -> Chart:
    """Return the chart of this repository."""
    return Chart(programs.helm(), ROOT / "charts" / "tuning-operator")


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart of this repository."""
    return our_chart()
