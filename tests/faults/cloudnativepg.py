"""The faults of a database that CloudNativePG runs, as docs/production.md describes it.

Its manifests are applied and its commands are run as they are, except for the address of the object store.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import trustme
import yaml
from optuna.trial import TrialState

from dev.cluster import images, programs
from dev.cluster.kind import DEVELOPMENT
from dev.cluster.run import run, wait
from dev.demo import system
from dev.demo.record import record
from tests.e2e.kit import SYSTEM, Kubectl
from tests.faults.fault import Faults
from tests.faults.running import RunningStudy

PAGE = system.ROOT / "docs" / "production.md"
RECIPE, RESTORE = "## CloudNativePG", "### Restore from a backup of CloudNativePG"
DATABASE, RESTORED = "tuning-db", "tuning-db-restored"
CLUSTERS, BACKUPS, SCHEDULES = (
    f"{kind}.postgresql.cnpg.io" for kind in ("clusters", "backups", "scheduledbackups")
)

VERSIONS = {
    name: programs.MODULES[name][1] for name in ("cloudnative-pg", "plugin-barman-cloud", "versitygw")
}
REGISTRY = "ghcr.io/cloudnative-pg"
OPERATOR_IMAGE = f"{REGISTRY}/cloudnative-pg:{VERSIONS['cloudnative-pg'].removeprefix('v')}"
PLUGIN_IMAGE = f"{REGISTRY}/plugin-barman-cloud:{VERSIONS['plugin-barman-cloud']}"
SIDECAR_IMAGE = f"{REGISTRY}/plugin-barman-cloud-sidecar:{VERSIONS['plugin-barman-cloud']}"
STORE_IMAGE = f"ghcr.io/versity/versitygw:{VERSIONS['versitygw']}"

OPERATOR = "cnpg-system"
"""The namespace of CloudNativePG's operator."""
STORE, PORT, BUCKET = "object-store", 7070, "tuning-backups"

FAULTS = Faults()
fault = FAULTS.add


@fault(
    "The primary of CloudNativePG is killed",
    "A standby takes over. The study server waits and continues; nothing that was acknowledged is lost.",
    trials=16,
)
def primary_killed(study: RunningStudy) -> None:
    former = _primary(study.system)
    study.system.run("delete", "pod", former, "--grace-period=0", "--force", "--wait=false")
    wait("another primary", lambda: _primary(study.system) != former, 120)


@fault("CloudNativePG switches over to a standby", "As if the primary were killed.", trials=16)
def switched_over(study: RunningStudy) -> None:
    former = _primary(study.system)
    standby = next(name for name in _instances(study.system) if name != former)
    # As `kubectl cnpg promote` does.
    status = {"targetPrimary": standby, "phase": "Switchover in progress"}
    study.system.run(
        "patch", CLUSTERS, DATABASE, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip
    wait("the standby to be the primary", lambda: _primary(study.system) == standby, 120)


@fault(
    "The database of CloudNativePG is deleted, and restored from a backup, as documented",
    "The record is back. Trials that ran when the backup was made, and those after it, run again.",
    trials=60,
)
def restored(study: RunningStudy) -> None:
    before = _completed(study)
    study.system.apply(_backup())
    study.system.run(
        "wait", "--for=jsonpath={.status.phase}=completed", "backup/by-hand", "--timeout=300s", timeout=310
    )
    study.system.run("delete", f"{CLUSTERS}/{DATABASE}", "--wait", timeout=300)
    [commands], [manifest] = _blocks(RESTORE, "sh"), _blocks(RESTORE, "yaml")
    follow(commands, restored=manifest)
    assert before.items() <= _completed(study).items()


def wait_until_healthy(release: Kubectl) -> None:
    """Wait until all instances are ready again after the fault before."""
    release.run("wait", f"{CLUSTERS}/{DATABASE}", "--for=condition=Ready", "--timeout=300s", timeout=310)


def _primary(release: Kubectl) -> str:
    """Return the name of the instance that accepts writes."""
    name: str = release.json("get", CLUSTERS, DATABASE)["status"]["currentPrimary"]
    return name


def _instances(release: Kubectl) -> list[str]:
    pods = release.items("pods", f"cnpg.io/cluster={DATABASE},cnpg.io/podRole=instance")
    return sorted(pod["metadata"]["name"] for pod in pods)


def _backup() -> dict[str, Any]:
    """Return a backup like those of the schedule."""
    [schedule] = [manifest for manifest in manifests(RECIPE) if manifest["kind"] == "ScheduledBackup"]
    spec = {key: value for key, value in schedule["spec"].items() if key not in ("schedule", "immediate")}
    return {**schedule, "kind": "Backup", "metadata": {"name": "by-hand"}, "spec": spec}


def _completed(study: RunningStudy) -> dict[int, datetime | None]:
    """Return when each of the COMPLETE trials ended."""
    with record(study.kubectl.kubeconfig) as database:
        trials = database.trials(f"{study.kubectl.namespace}/{study.name}")
        return {t.number: t.datetime_complete for t in trials if t.state is TrialState.COMPLETE}


# --- what the page says


def manifests(heading: str) -> list[dict[str, Any]]:
    """Return the manifests below a heading, with the address of our object store."""
    [text] = _blocks(heading, "yaml")
    return list(
        yaml.safe_load_all(text.replace("https://s3.example.com", f"http://{STORE}.{OPERATOR}.svc:{PORT}"))
    )


def follow(commands: str, **files: str) -> None:
    """Run commands of the page in a folder with the chart and these files."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "charts").symlink_to(system.CHART.parent)
        (place / "bin").mkdir()
        (place / "bin" / "kubectl").symlink_to(programs.kubectl())
        (place / "bin" / "helm").symlink_to(programs.helm())
        for name, text in files.items():
            (place / f"{name}.yaml").write_text(text)
        environment = {
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "KUBECONFIG": str(DEVELOPMENT.kubeconfig),
        }
        run("bash", "-euc", commands, cwd=place, env=environment)


def _blocks(heading: str, language: str) -> list[str]:
    """Return the blocks of code below a heading."""
    section = PAGE.read_text().partition(f"\n{heading}\n")[2].partition("\n##")[0]
    return [block.partition("```")[0] for block in section.split(f"```{language}\n")[1:]]


# --- what the page takes for granted


@contextmanager
def in_use(cluster: Kubectl) -> Iterator[None]:
    """Install CloudNativePG and an object store, and let the release use a database as the page describes."""
    for image in (OPERATOR_IMAGE, PLUGIN_IMAGE, SIDECAR_IMAGE, STORE_IMAGE, _image_of_postgres()):
        images.ensure(image)
        DEVELOPMENT.load(image)
    release, operator = cluster.within(SYSTEM), cluster.within(OPERATOR)
    _remove(release)
    operator.run("apply", "--server-side", "-f", "-", stdin=_operator())
    operator.run(
        "apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all([*_plugin(), *_object_store()])
    )
    operator.run("wait", "--for=condition=Available", "deployments", "--all", "--timeout=300s", timeout=310)
    operator.run("wait", "--for=condition=Ready", f"pod/{STORE}", "--timeout=120s")
    try:
        keys, use = _blocks(RECIPE, "sh")
        follow(keys)
        release.apply(*manifests(RECIPE))
        follow(use)
        yield
    finally:
        system.install()
        _remove(release)


def _remove(release: Kubectl) -> None:
    """Remove what there is of the database and of CloudNativePG."""
    if release.run("get", "crd", CLUSTERS, "--ignore-not-found"):
        release.run("delete", f"{SCHEDULES},{BACKUPS},{CLUSTERS}", "--all", "--wait", timeout=300)
    release.run("delete", "secret", "tuning-backups", "--ignore-not-found")
    for text in (yaml.safe_dump_all(_plugin()), _operator()):
        release.within(OPERATOR).run("delete", "--ignore-not-found", "-f", "-", stdin=text, timeout=300)


def _image_of_postgres() -> str:
    [image] = {
        m["spec"]["imageName"] for h in (RECIPE, RESTORE) for m in manifests(h) if m["kind"] == "Cluster"
    }
    return str(image)


def _operator() -> str:
    """Return the manifests of CloudNativePG's release. Its image is in the node already."""
    version = VERSIONS["cloudnative-pg"].removeprefix("v")
    release = programs.source("cloudnative-pg") / "releases" / f"cnpg-{version}.yaml"
    return release.read_text().replace("imagePullPolicy: Always", "imagePullPolicy: IfNotPresent")


def _plugin() -> list[dict[str, Any]]:
    """Return the plugin's manifests, with the images of its release, and certificates of our own."""
    text = (programs.source("plugin-barman-cloud") / "manifest.yaml").read_text()
    text = text.replace(f"{REGISTRY}/plugin-barman-cloud-testing:main", PLUGIN_IMAGE)
    found = [m for m in yaml.safe_load_all(text) if not m["apiVersion"].startswith("cert-manager.io/")]
    [sidecar] = [m for m in found if m["kind"] == "Secret"]
    sidecar["data"] = {"SIDECAR_IMAGE": base64.b64encode(SIDECAR_IMAGE.encode()).decode()}
    authority = trustme.CA()
    certificates = []
    for name in ("barman-cloud-server-tls", "barman-cloud-client-tls"):
        issued = authority.issue_cert("barman-cloud")
        data = {
            "tls.crt": (issued.cert_chain_pems[0].bytes() + authority.cert_pem.bytes()).decode(),
            "tls.key": issued.private_key_pem.bytes().decode(),
        }
        metadata = {"name": name, "namespace": OPERATOR}
        certificates.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": metadata,
                "type": "kubernetes.io/tls",
                "stringData": data,
            }
        )
    return [*found, *certificates]


def _object_store() -> list[dict[str, Any]]:
    """Return an S3 server with an empty bucket, and the keys that the page has."""
    metadata = {"name": STORE, "namespace": OPERATOR, "labels": {"app": STORE}}
    mounts = [{"name": "data", "mountPath": "/data"}]
    keys = {"ROOT_ACCESS_KEY": "KEY_ID", "ROOT_SECRET_KEY": "SECRET_KEY"}
    spec = {
        "initContainers": [
            {
                "name": "bucket",
                "image": images.PYTHON,
                "command": ["mkdir", f"/data/{BUCKET}"],
                "volumeMounts": mounts,
            }
        ],
        "containers": [
            {
                "name": "server",
                "image": STORE_IMAGE,
                "args": [f"--port=:{PORT}", "posix", "/data"],
                "env": [{"name": name, "value": value} for name, value in keys.items()],
                "readinessProbe": {"tcpSocket": {"port": PORT}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    ports = {"selector": {"app": STORE}, "ports": [{"port": PORT}]}
    return [pod, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": ports}]
