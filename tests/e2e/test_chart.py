"""The chart on a real cluster: install, upgrade, uninstall, install again."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
import yaml
from sqlalchemy import make_url

from dev.cluster.programs import helm
from dev.demo import system
from dev.demo.record import port_forward
from tests.e2e.kit import LIMIT, Kubectl, code, phase, stalled_for, study


@dataclass(frozen=True)
class Release:
    """A second installation, which watches only its own namespace and uses the existing CRD."""

    kubectl: Kubectl
    helm: Path

    @property
    def name(self) -> str:
        """As its namespace: tests that run at the same time see only their own cluster-wide objects."""
        return self.kubectl.namespace

    @property
    def fullname(self) -> str:
        return f"{self.name}-tuning-operator"

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.name}"

    def run(self, *arguments: str | Path, values: dict[str, Any] | None = None) -> str:
        command = [
            self.helm,
            "--kubeconfig",
            self.kubectl.kubeconfig,
            "-n",
            self.kubectl.namespace,
            *arguments,
        ]
        text = yaml.safe_dump(values) if values is not None else None
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=LIMIT + 60, check=False
        )
        assert done.returncode == 0, (
            f"{done.stdout}{done.stderr}{self.kubectl.run('get', 'pods,events', check=False)}"
        )
        return done.stdout

    def upgrade(self, **values: Any) -> str:
        base = {
            "crds": {"install": False},
            "watchNamespaces": [self.kubectl.namespace],
            "image": {"tag": system.operator_tag()},
        }
        command = ("upgrade", "--install", self.name, system.CHART, "--wait", "--timeout=15m", "--values=-")
        return self.run(*command, values=base | values)

    def uninstall(self) -> None:
        self.run("uninstall", self.name, "--wait", "--timeout=15m")
        # Helm does not wait for what the garbage collector and controllers delete.
        self.kubectl.wait_for("delete", "pods,endpointslices,controllerrevisions", "-l", self.selector)

    def job(self, cron_job: str, name: str) -> str:
        """Run a CronJob once; return its output."""
        self.kubectl.run("create", "job", f"--from=cronjob/{self.fullname}-{cron_job}", name)
        try:
            self.kubectl.wait_for("condition=complete", f"job/{name}")
        finally:
            log = self.kubectl.run("logs", f"job/{name}")
        return log

    def secret(self, name: str) -> dict[str, str]:
        return self.kubectl.json("get", "secret", f"{self.fullname}-{name}")["data"]

    def pods(self) -> dict[str, str]:
        """Return the UID of each component's pod."""
        found = self.kubectl.items("pods", self.selector)
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["uid"] for pod in found
        }

    def remains(self) -> set[str]:
        """Return all objects of the release that still exist, namespaced and cluster-wide."""
        kinds = self.kubectl.run("api-resources", "--verbs=list,delete", "-o", "name").split()
        get = ("get", ",".join(kinds), "-l", self.selector, "-o", "name", "--ignore-not-found")
        return set(self.kubectl.run(*get).split())

    @contextlib.contextmanager
    def storage(self) -> Iterator[optuna.storages.RDBStorage]:
        """Open the database with Optuna."""
        url = make_url(base64.b64decode(self.secret("postgres")["url"]).decode())
        with port_forward(self.kubectl.namespace, f"svc/{self.fullname}-postgres", 5432) as port:
            local = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
            storage = optuna.storages.RDBStorage(local)
            try:
                yield storage
            finally:
                storage.remove_session()
                storage.engine.dispose()


@pytest.fixture
def release(kubectl: Kubectl) -> Iterator[Release]:
    release = Release(kubectl, helm())
    yield release
    with contextlib.suppress(AssertionError):  # already uninstalled if the test succeeded
        release.uninstall()


@pytest.mark.restart_proof
@pytest.mark.timeout(1800)
def test_install_upgrade_uninstall_and_install_again(release: Release) -> None:
    notes = release.upgrade()
    assert "kubectl apply -k examples/mnist" in notes
    installed, certificate, password = (
        release.pods(),
        release.secret("study-server-tls"),
        release.secret("postgres"),
    )
    assert set(installed) == {"operator", "study-server", "postgres"}
    with release.storage() as storage:
        optuna.create_study(study_name="precious", storage=storage).enqueue_trial({"x": 1})

    release.upgrade(operator={"workers": 2}, renewCertificates="2026-11-26")
    upgraded = release.pods()
    assert release.secret("postgres") == password
    assert upgraded["operator"] != installed["operator"]
    assert upgraded["study-server"] == installed["study-server"], "it reads its certificate again"
    assert upgraded["postgres"] != installed["postgres"]
    assert certificate != (renewed := release.secret("study-server-tls"))

    release.uninstall()
    kept = {f"persistentvolumeclaim/data-{release.fullname}-postgres-0"} | {
        f"secret/{release.fullname}-{name}" for name in ("postgres", "postgres-tls", "study-server-tls")
    }
    assert release.remains() == kept

    release.upgrade(postgres={"persistence": {"keep": False}})
    assert release.secret("postgres") == password
    assert release.secret("study-server-tls") == renewed
    with release.storage() as storage:
        assert optuna.load_study(study_name="precious", storage=storage).trials[0].system_attrs

    release.uninstall()
    release.kubectl.wait_for("delete", "pvc", "-l", release.selector)
    assert release.remains() == {name for name in kept if name.endswith("-tls")}, "keep: false leaves no data"


@pytest.mark.restart_proof
@pytest.mark.timeout(1800)
def test_a_second_study_server(release: Release, image: str) -> None:
    """A running study stays at the first one; a server that is gone stalls only its own studies."""
    kubectl, server = release.kubectl, f"{release.fullname}-study-server"
    steps = """
        import time

        def objective(trial):
            for step in range(trial.suggest_int("steps", 1, 6000)):
                trial.report(step, step)
                time.sleep(0.2)
            return 1.0
        """

    def start(name: str, steps_: int) -> None:
        fields = {"searchSpace": None, "initialTrials": [{"steps": steps_}], "maxTrials": 1, "parallelism": 1}
        ours = study(name, image, installation=f"{kubectl.namespace}/{release.fullname}", **fields)
        kubectl.apply(code(f"{name}-code", steps), ours)
        kubectl.wait(name, lambda found: found.get("status", {}).get("trials", {}).get("running") == 1)

    def address(name: str) -> str:
        [config] = kubectl.items("configmaps", f"tuning.dev/study={name}")
        return config["data"]["server-url"].removeprefix("https://").partition(".")[0]

    def uid(pod: str) -> str:
        return kubectl.json("get", "pod", pod)["metadata"]["uid"]

    values = {"postgres": {"persistence": {"enabled": False}}}
    release.upgrade(**values)
    start("before", 6000)
    [trial] = kubectl.items("pods", "tuning.dev/study=before")
    first = uid(f"{server}-0")
    release.upgrade(**values, studyServer={"replicas": 2})
    after = ""
    for number in range(10):  # until the restarted operator has reached the second server
        after = f"after-{number}"
        start(after, 600)
        if address(after) != server:
            break
    assert (address("before"), address(after)) == (server, f"{server}-1")
    assert uid(f"{server}-0") == first, "a second server does not restart the first one"

    kubectl.run("scale", f"statefulset/{server}", "--replicas=1")
    kubectl.wait_for("delete", f"pod/{server}-1")
    kubectl.wait(after, stalled_for(f"{server}-1"))
    assert uid(trial["metadata"]["name"]) == trial["metadata"]["uid"]
    kubectl.patch("before", suspend=True)
    kubectl.wait("before", phase("Suspended"))
    kubectl.run("scale", f"statefulset/{server}", "--replicas=2")
    assert kubectl.wait(after, phase("Completed"))["status"]["trials"]["complete"] == 1


def test_backup_and_restore(release: Release) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "dumps"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    release.kubectl.apply(claim)
    backup = {"enabled": True, "existingClaim": "dumps", "keep": 1}
    release.upgrade(postgres={"persistence": {"enabled": False}, "backup": backup})
    with release.storage() as storage:
        study = optuna.create_study(study_name="precious", storage=storage)
        study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).report(0.5, 0)
        before = study.get_trials()
    with port_forward(release.kubectl.namespace, f"svc/{release.fullname}-postgres", 5432) as port:
        plain = {"host": "127.0.0.1", "port": port, "sslmode": "disable"}
        with pytest.raises(psycopg2.OperationalError, match="no encryption"):
            psycopg2.connect(dbname="tuning", user="tuning", password="x", **plain)
    assert "tuning-" in release.job("backup", "first")
    with release.storage() as storage:
        study = optuna.load_study(study_name="precious", storage=storage)
        study.tell(0, 1.0)
        study.ask()

    release.kubectl.run("scale", f"sts/{release.fullname}-study-server", "--replicas=0")
    release.kubectl.wait_for("delete", f"pod/{release.fullname}-study-server-0")
    assert "restored /backup/tuning-" in release.job("restore", "restore")
    release.kubectl.run("scale", f"sts/{release.fullname}-study-server", "--replicas=1")
    release.kubectl.run("rollout", "status", f"sts/{release.fullname}-study-server", "--timeout=900s")
    with release.storage() as storage:
        assert optuna.load_study(study_name="precious", storage=storage).get_trials() == before


def test_deletion_does_not_wait_for_a_finalizer(cluster: Kubectl, kubectl: Kubectl, image: str) -> None:
    """A namespace with a running study can be deleted without cleaning up first, and so can the CRD."""
    sleep = "import time\n\ndef objective(trial):\n    time.sleep(600)\n"
    kubectl.apply(code("stay-code", sleep), study("stay", image, maxTrials=4, parallelism=2))
    running = kubectl.wait(
        "stay", lambda found: found.get("status", {}).get("trials", {}).get("running") == 2
    )
    assert "finalizers" not in running["metadata"]
    cluster.run("delete", "namespace", kubectl.namespace, "--wait=true", "--timeout=900s")
    assert kubectl.namespace not in json.dumps(cluster.json("get", "namespaces"))
    # the fixture deletes it
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kubectl.namespace}})


def test_pods_run_without_privileges(kubectl: Kubectl) -> None:
    """As seen by the kernel: non-root, with a read-only root file system, without capabilities."""
    script = "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/1/status; touch /nowhere 2>&1 || true"
    for workload in (
        "deploy/tuning-operator",
        "sts/tuning-operator-study-server",
        "sts/tuning-operator-postgres",
    ):
        seen = kubectl.within("tuning-system").run("exec", workload, "--", "sh", "-c", script)
        facts = dict(line.split(":", 1) for line in seen.splitlines())
        assert facts["Uid"].split()[0] != "0", seen
        assert int(facts["CapEff"], 16) == 0, seen
        assert facts["NoNewPrivs"].strip() == "1", seen
        assert facts["Seccomp"].strip() == "2", seen
        assert "Read-only file system" in seen, seen
