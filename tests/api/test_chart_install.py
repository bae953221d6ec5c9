"""Releases of the chart on a real API server: what an upgrade changes, what an uninstallation keeps."""

import base64
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster.run import wait
from tests.api.api import SETUP_MAY_BUILD, Api
from tests.unit.chart.helm import Chart, RefusedError, our_chart, shaken_hands

ROOT = Path(__file__).parents[2]
CLAIM = "data-tuning-operator-postgres-0"
STATEFUL_SET = "tuning-operator-postgres"

pytestmark = SETUP_MAY_BUILD


@dataclass(frozen=True)
class Release:
    """A release in a namespace of its own. Nothing waits for pods, since there are no nodes."""

    api: Api
    chart: Chart
    namespace: str

    def helm(self, *arguments: str | Path, values: dict[str, Any] | None = None) -> str:
        where = (f"--kubeconfig={self.api.kubeconfig}", f"--namespace={self.namespace}")
        return self.chart.run(*arguments, *where, values=values)

    def upgrade(self, *options: str, **values: Any) -> str:
        """Install or upgrade the release; test_chart_render.py validates what is rendered."""
        base = {"crds": {"install": False}}
        options = ("--install", "--disable-openapi-validation", *options)
        return self.helm("upgrade", "tuning-operator", self.chart.folder, *options, values=base | values)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        command = [self.api.kubectl_path, "--kubeconfig", str(self.api.kubeconfig), "-n", self.namespace]
        return subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=240, check=True
        ).stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.kubectl("get", kind, name, "-o", "yaml"))
        return found

    def size(self) -> str:
        size: str = self.get("pvc", CLAIM)["spec"]["resources"]["requests"]["storage"]
        return size

    def certificate(self, folder: Path) -> tuple[str, Path]:
        """Return the CAs that clients trust, and a file with the study server's certificate and key."""
        encoded = self.get("secret", "tuning-operator-study-server-tls")["data"]
        data = {key: base64.b64decode(text).decode() for key, text in encoded.items()}
        pair = folder / uuid.uuid4().hex
        pair.write_text(data["tls.crt"] + data["tls.key"])
        return data["ca.crt"], pair


@pytest.fixture
def release(api: Api) -> Iterator[Release]:
    chart = our_chart()
    release = Release(api, chart, f"release-{uuid.uuid4().hex[:8]}")
    api.expect("create", "namespace", release.namespace)
    yield release
    release.helm("uninstall", "tuning-operator", "--ignore-not-found")
    api.expect("delete", "namespace", release.namespace, "--wait=false")


@pytest.fixture
def growing(api: Api) -> Iterator[str]:
    """A storage class whose volumes can grow, with one volume."""
    name = f"growing-{uuid.uuid4().hex[:8]}"
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": True,
    }
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": name,
            "hostPath": {"path": "/tmp/none"},
        },
    }
    manifests = yaml.safe_dump_all([storage_class, volume])
    api.expect("apply", "-f", "-", stdin=manifests)
    yield name
    api.expect("delete", "-f", "-", "--wait=false", stdin=manifests)


def bound(release: Release) -> bool:
    return bool(release.get("pvc", CLAIM)["status"]["phase"] == "Bound")


def test_the_volume_grows(release: Release, growing: str) -> None:
    release.upgrade(postgres={"persistence": {"size": "1Gi", "storageClassName": growing}})
    wait("the volume", lambda: bound(release), 120)
    release.upgrade(postgres={"persistence": {"size": "2Gi", "storageClassName": growing}})
    assert release.size() == "2Gi"
    with pytest.raises(RefusedError, match="can not be less than"):
        release.upgrade(postgres={"persistence": {"size": "1Gi", "storageClassName": growing}})
    release.upgrade(postgres={"persistence": {"size": "2Gi", "storageClassName": growing}})


def test_releases_of_earlier_versions_can_be_upgraded(release: Release, growing: str) -> None:
    """Their claim was made from a template of the StatefulSet, which can't be changed, and is not Helm's."""
    release.upgrade(postgres={"persistence": {"enabled": False}})
    earlier = release.get("sts", STATEFUL_SET)
    release.kubectl("delete", "sts", STATEFUL_SET)
    earlier["metadata"] = {
        key: value for key, value in earlier["metadata"].items() if key in ("name", "labels", "annotations")
    }
    pod = earlier["spec"]["template"]["spec"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "data"]
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": growing,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    earlier["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
    earlier["spec"]["podManagementPolicy"] = "OrderedReady"
    release.kubectl("create", "-f", "-", stdin=yaml.safe_dump(earlier))
    wait("the claim", lambda: CLAIM in release.kubectl("get", "pvc", "-o", "name"), 120)

    persistence = {"size": "2Gi", "storageClassName": growing}
    release.upgrade(postgres={"persistence": persistence})
    upgraded = release.get("sts", STATEFUL_SET)["spec"]
    assert "volumeClaimTemplates" in upgraded
    assert upgraded["podManagementPolicy"] == "OrderedReady"
    assert release.size() == "1Gi"
    wait("the volume", lambda: bound(release), 120)

    release.helm("uninstall", "tuning-operator")
    release.upgrade(postgres={"persistence": persistence})
    assert "volumeClaimTemplates" not in release.get("sts", STATEFUL_SET)["spec"]
    release.upgrade(postgres={"persistence": persistence})
    assert release.size() == "1Gi", "kept, and used as it is"

    for step in guide(release.namespace):
        release.kubectl(*step)
    release.upgrade("--force-conflicts", postgres={"persistence": persistence})
    persistence["size"] = "3Gi"
    release.upgrade(postgres={"persistence": persistence})
    assert release.size() == "3Gi"


def test_a_claim_that_lost_its_annotations_is_not_deleted(release: Release) -> None:
    """For example one that was restored without its annotations: leaving it out would delete it."""
    release.upgrade()
    before = release.get("pvc", CLAIM)["metadata"]
    for change in ("app.kubernetes.io/managed-by-", "meta.helm.sh/release-name-", "helm.sh/resource-policy-"):
        release.kubectl("label" if "managed-by" in change else "annotate", "pvc", CLAIM, change)
    release.upgrade(operator={"workers": 2})
    after = release.get("pvc", CLAIM)["metadata"]
    assert after["uid"] == before["uid"]
    assert "deletionTimestamp" not in after
    assert after["annotations"]["helm.sh/resource-policy"] == "keep"


def guide(namespace: str) -> list[list[str]]:
    """Return the commands of docs/production.md that let Helm manage the claim."""
    text = (ROOT / "docs" / "production.md").read_text()
    [block] = [
        part
        for part in text.split("```")
        if part.startswith("sh\n") and "label persistentvolumeclaim" in part
    ]
    lines = block.removeprefix("sh\n").replace("\\\n", " ").replace("tuning-system", namespace).splitlines()
    commands = [line.split() for line in lines if line]
    assert all(command[:3] == ["kubectl", "-n", namespace] for command in commands)
    return [command[3:] for command in commands]


def test_certificates_are_renewed_on_request_and_survive_an_uninstallation(
    release: Release, tmp_path: Path
) -> None:
    host = f"tuning-operator-study-server.{release.namespace}.svc"
    release.upgrade()
    former_ca, former = release.certificate(tmp_path)
    claim, password = release.get("pvc", CLAIM), release.get("secret", STATEFUL_SET)["data"]

    release.helm("uninstall", "tuning-operator")
    release.upgrade(operator={"workers": 2})
    ca, pair = release.certificate(tmp_path)
    assert (ca, pair.read_text()) == (former_ca, former.read_text())
    assert release.get("pvc", CLAIM)["metadata"]["uid"] == claim["metadata"]["uid"]
    assert release.get("secret", STATEFUL_SET)["data"] == password

    release.upgrade(renewCertificates="2036-01-01")
    ca, pair = release.certificate(tmp_path)
    assert pair.read_text() != former.read_text()
    shaken_hands(ca, pair, host)
    shaken_hands(ca, former, host)  # while the server still has it
    assert ca.endswith(former_ca)

    release.upgrade(renewCertificates="2036-01-01", operator={"workers": 3})
    release.upgrade()
    assert release.certificate(tmp_path)[0] == ca, "a value that was used before, or none, changes nothing"

    release.upgrade(renewCertificates="2046-01-01")
    newest = release.certificate(tmp_path)[0]
    assert newest.endswith(ca.removesuffix(former_ca))
    assert former_ca not in newest


def test_study_servers_are_added_and_not_removed(release: Release, tmp_path: Path) -> None:
    """Running trials trust the certificate of before, until the servers have the one for all of them."""
    first, second = (f"tuning-operator-study-server{n}.{release.namespace}.svc" for n in ("", "-1"))
    release.upgrade()
    _, former = release.certificate(tmp_path)
    release.upgrade(studyServer={"replicas": 2})
    ca, pair = release.certificate(tmp_path)
    for certificate, host in ((former, first), (pair, first), (pair, second)):
        shaken_hands(ca, certificate, host)
    release.upgrade(studyServer={"replicas": 2}, operator={"workers": 2})
    assert release.certificate(tmp_path)[0] == ca
    with pytest.raises(RefusedError, match=r"studyServer\.replicas can't be lowered from 2 to 1"):
        release.upgrade()
    release.kubectl("scale", "statefulset", "tuning-operator-study-server", "--replicas=1")
    release.upgrade()
    assert release.certificate(tmp_path)[0] == ca
    with pytest.raises(RefusedError, match=r"conflict.*\.spec\.replicas"):
        release.upgrade(studyServer={"replicas": 2})
    release.upgrade("--force-conflicts", studyServer={"replicas": 2})
    release.upgrade(studyServer={"replicas": 3})


def test_an_upgrade_replaces_pods_that_never_became_ready(release: Release) -> None:
    """For example, those of an image that can't be pulled. No pod becomes Ready here."""

    def has_image(component: str, tag: str) -> bool:
        selector = f"app.kubernetes.io/component={component}"
        image = release.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={..image}")
        return image.endswith(f":{tag}")

    for tag in ("wrong", "right"):
        release.upgrade(image={"tag": tag}, postgres={"image": {"tag": tag}})
        for component in ("study-server", "postgres"):
            wait(f"the pod of {component}", partial(has_image, component, tag), 120)


def test_two_releases_of_one_name(release: Release, api: Api) -> None:
    """The names of cluster-wide objects include the namespace."""
    release.upgrade()
    other = Release(api, release.chart, f"{release.namespace}-too")
    api.expect("create", "namespace", other.namespace)
    try:
        other.upgrade()
        other.helm("uninstall", "tuning-operator")
    finally:
        api.expect("delete", "namespace", other.namespace, "--wait=false")


def test_the_number_of_operators_can_be_changed(release: Release) -> None:
    """The strategies of one and of two operators have different fields."""
    for replicas, strategy in ((1, "Recreate"), (2, "RollingUpdate"), (1, "Recreate")):
        release.upgrade(operator={"replicas": replicas})
        deployment = release.get("deployment", "tuning-operator")["spec"]
        assert (deployment["replicas"], deployment["strategy"]["type"]) == (replicas, strategy)
