"""The rendered objects are consistent, and match what the processes in the pods expect."""

import base64
import hashlib
import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509 import load_pem_x509_certificate
from sqlalchemy import make_url
from tuning_operator.kube.loop.metrics import Metrics as OperatorMetrics
from tuning_operator.kube.settings import OperatorSettings
from tuning_operator.resource import crdgen, names
from tuning_operator.studies.metrics import Metrics as StudyMetrics
from tuning_operator.studies.settings import StudySettings
from tuning_operator.studies.storage.base import MemoryStore

from tests.unit.chart.helm import (
    CERT_MANAGER,
    EVERYTHING,
    EXTERNAL,
    OF_ONE_NAMESPACE,
    PLATFORM,
    POD,
    PROXY,
    VALUE_SETS,
    Chart,
    Objects,
    environment,
    labels,
    pod,
    shaken_hands,
)

LONG_RELEASE = "a-release-with-the-longest-name-that-helm-will-ever-p"
READ = {"get", "list", "watch"}
every_value_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


def selects(selector: dict[str, str], workload: dict[str, Any]) -> bool:
    return selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def pods_of(stateful_set: dict[str, Any]) -> list[str]:
    """Return the names that Kubernetes gives to the pods of a StatefulSet."""
    name, replicas = stateful_set["metadata"]["name"], stateful_set["spec"]["replicas"]
    return [f"{name}-{ordinal}" for ordinal in range(replicas)]


@every_value_set
def test_pods_are_restricted_and_have_resources_and_probes(chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values)
    for template in rendered.pod_templates():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        ids = {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
        assert ids == (set() if values is PLATFORM else {"runAsUser", "runAsGroup", "fsGroup"})
        assert all(security[name] > 0 for name in ids)
    for container in rendered.containers():
        if container == PROXY:
            continue
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 600, "on a busy node or a slow disk"


@every_value_set
def test_services_probes_and_policies_refer_to_existing_pods(chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values)
    for service in rendered.kind("Service"):
        selector = dict(service["spec"]["selector"])
        one = selector.pop("statefulset.kubernetes.io/pod-name", None)
        (workload,) = [w for w in rendered.workloads() if selects(selector, w)]
        assert one is None or one in pods_of(workload)
        ports = {port["name"] for port in pod(workload)["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for container in rendered.containers():
        ports = {port["name"] for port in container.get("ports", [])}
        assert {
            p["httpGet"]["port"] for name, p in container.items() if "Probe" in name and "httpGet" in p
        } <= ports
    for policy in [*rendered.kind("NetworkPolicy"), *rendered.kind("PodDisruptionBudget")]:
        selector = policy["spec"].get("podSelector") or policy["spec"]["selector"]
        assert [w for w in rendered.workloads() if selects(selector["matchLabels"], w)]


@every_value_set
def test_everything_that_pods_mount_is_rendered_or_supplied_by_the_user(
    chart: Chart, values: dict[str, Any]
) -> None:
    rendered = chart.render(values)
    supplied = {"mine", "db", "db-ca", "vault", "dumps"}
    keys = {
        (found["kind"], found["metadata"]["name"]): {*found.get("data", {}), *found.get("stringData", {})}
        for found in rendered.all
        if found["kind"] in ("Secret", "ConfigMap", "PersistentVolumeClaim")
    }
    accounts = {found["metadata"]["name"] for found in rendered.kind("ServiceAccount")}
    for template in rendered.pod_templates():
        spec = template["spec"]
        assert spec.get("serviceAccountName", "default") in {*accounts, "default"}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            match volume:
                case {"secret": {"secretName": name, "items": items}} if name not in supplied:
                    assert {item["key"] for item in items} <= keys["Secret", name]
                case {"configMap": {"name": name}}:
                    assert ("ConfigMap", name) in keys
                case {"persistentVolumeClaim": {"claimName": name}} if name not in supplied:
                    assert ("PersistentVolumeClaim", name) in keys
        for container in spec["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= set(volumes)
            for value in environment(container).values():
                reference = value.get("secretKeyRef") if isinstance(value, dict) else None
                if reference and reference["name"] not in supplied:
                    assert reference["key"] in keys["Secret", reference["name"]]


def test_operator_reads_its_environment(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"workers": 7, "maxTrialsPerNamespace": 2_000_000}
    rendered = chart.render({"watchNamespaces": ["ml", "vision"], "operator": limits})
    (container,) = pod(rendered.one("Deployment", "operator"))["containers"]
    variables = environment(container)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = OperatorSettings()  # type: ignore[call-arg]
    assert settings.namespaces == ["ml", "vision"]
    assert settings.workers == 7
    assert settings.max_trials_per_namespace == 2_000_000, "which Helm would write as 2e+06"
    assert settings.probe_port == container["ports"][0]["containerPort"]
    fields = OperatorSettings.model_fields
    assert set(variables) <= {f"TUNING_{field.upper()}" for field in fields}
    (defaults,) = pod(chart.render().one("Deployment", "operator"))["containers"]
    for name in ("workers", "max_trials_per_namespace"):
        assert environment(defaults)[f"TUNING_{name.upper()}"] == str(fields[name].default)
    (token,) = [v for v in pod(rendered.one("Deployment", "operator"))["volumes"] if v["name"] == "token"]
    assert token["projected"]["sources"][0]["serviceAccountToken"]["audience"] == names.TOKEN_AUDIENCE


def test_trials_run_in_the_trainer_image(chart: Chart) -> None:
    def of_the_operator(**values: Any) -> tuple[str, str]:
        (container,) = pod(chart.render(values).one("Deployment", "operator"))["containers"]
        variables = environment(container)
        return variables["TUNING_TRAINER_IMAGE"], variables["TUNING_GPU_RESOURCE"]

    version = yaml.safe_load((chart.folder / "Chart.yaml").read_text())["appVersion"]
    assert of_the_operator() == (f"tuning-trainer:{version}", "nvidia.com/gpu")
    mine = {"image": {"repository": "ghcr.io/me/trainer", "tag": "2"}, "gpuResource": "amd.com/gpu"}
    assert of_the_operator(trainer=mine) == ("ghcr.io/me/trainer:2", "amd.com/gpu")


def test_the_study_server_can_have_an_image_of_its_own(chart: Chart) -> None:
    def images(**values: Any) -> list[str]:
        rendered = chart.render({"image": {"repository": "mine", "tag": "3"}, **values})
        parts = (("Deployment", "operator"), ("StatefulSet", "study-server"))
        return [pod(rendered.one(kind, name))["containers"][0]["image"] for kind, name in parts]

    assert images() == ["mine:3", "mine:3"]
    assert images(studyServer={"image": {"repository": "mine-gp"}}) == ["mine:3", "mine-gp:3"]
    assert images(studyServer={"image": {"repository": "gp", "tag": "4"}}) == ["mine:3", "gp:4"]


def test_study_server_reads_its_environment(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = chart.render({"studyServer": {"recordRetentionDays": 3_000_000}}, release="other")
    (container,) = pod(rendered.one("StatefulSet", "study-server"))["containers"]
    variables = environment(container)
    for name, value in variables.items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    label = variables["TUNING_SHARD"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['apps.kubernetes.io/pod-index']"
    monkeypatch.setenv("TUNING_SHARD", "1")  # as Kubernetes numbers the pods
    settings = StudySettings()
    assert settings.shard == 1
    assert settings.host == "", "all addresses, since pods may have one of IPv6 only"
    ours = {name for name in variables if name.startswith("TUNING_")}
    assert ours <= {f"TUNING_{field.upper()}" for field in StudySettings.model_fields}
    assert settings.log_level == "INFO"
    assert settings.record_retention_days == 3_000_000
    assert settings.port == container["ports"][0]["containerPort"]
    operator = pod(rendered.one("Deployment", "operator"))["serviceAccountName"]
    assert settings.operator_service_account == f"tuning-system:{operator}"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    (volume,) = [v for v in pod(rendered.one("StatefulSet", "study-server"))["volumes"] if v["name"] == "tls"]
    files = {Path(mount["mountPath"]) / item["path"] for item in volume["secret"]["items"]}
    assert {settings.tls_cert_file, settings.tls_key_file} == files


def certificate(rendered: Objects, component: str, folder: Path) -> tuple[str, Path]:
    """Return the CA of a generated certificate, and a file with the certificate and its key."""
    (secret,) = [s for s in rendered.kind("Secret") if s["metadata"]["name"].endswith(f"{component}-tls")]
    data = {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}
    pair = folder / f"{component}.pem"
    pair.write_text(data["tls.crt"] + data["tls.key"])
    return data["ca.crt"], pair


def test_generated_certificates_are_valid_for_the_addresses_that_are_used(
    chart: Chart, tmp_path: Path
) -> None:
    rendered = chart.render({"clusterDomain": "corp.example"})
    ca, pair = certificate(rendered, "study-server", tmp_path)
    (operator,) = pod(rendered.one("Deployment", "operator"))["containers"]
    [address] = map(urlsplit, json.loads(environment(operator)["TUNING_STUDY_SERVER_URLS"]))
    assert address.hostname
    shaken_hands(ca, pair, address.hostname)
    shaken_hands(ca, pair, f"{address.hostname}.corp.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(ca, pair, "elsewhere.tuning-system.svc")
    assert address.port in [p["port"] for p in rendered.one("Service", "study-server")["spec"]["ports"]]
    ca, pair = certificate(rendered, "postgres", tmp_path)
    (server,) = pod(rendered.one("StatefulSet", "study-server"))["containers"]
    host = make_url(environment(server)["TUNING_DATABASE_URL"]).host
    assert host
    shaken_hands(ca, pair, host)


def test_generated_keys_are_elliptic(chart: Chart, tmp_path: Path) -> None:
    """They take a fraction of RSA's time, in each connection of a trial and when Helm generates them."""
    rendered = chart.render()
    for component in ("study-server", "postgres"):
        ca, pair = certificate(rendered, component, tmp_path)
        of_server = load_pem_x509_certificate(pair.read_bytes())
        for each in (of_server, load_pem_x509_certificate(ca.encode())):
            assert isinstance(each.public_key(), EllipticCurvePublicKey)


def test_each_study_server_has_an_address(chart: Chart, tmp_path: Path) -> None:
    """In the certificate, and for the operator in the order of the servers' numbers."""
    rendered = chart.render({"studyServer": {"replicas": 3}})
    server = rendered.one("StatefulSet", "study-server")
    ca, pair = certificate(rendered, "study-server", tmp_path)
    (operator,) = pod(rendered.one("Deployment", "operator"))["containers"]
    variables = environment(operator)
    assert json.loads(variables["TUNING_STUDY_SERVER_PODS"]) == [
        f"tuning-system/{name}" for name in pods_of(server)
    ]
    services = {found["metadata"]["name"]: found["spec"] for found in rendered.kind("Service")}
    addresses = [urlsplit(url) for url in json.loads(variables["TUNING_STUDY_SERVER_URLS"])]
    assert len(addresses) == 3
    for name, address in zip(pods_of(server), addresses, strict=True):
        assert address.hostname
        service = services[address.hostname.removesuffix(".tuning-system.svc")]
        assert service["selector"]["statefulset.kubernetes.io/pod-name"] == name
        assert address.port == service["ports"][0]["port"]
        shaken_hands(ca, pair, address.hostname)
    [before] = json.loads(
        environment(pod(chart.render().one("Deployment", "operator"))["containers"][0])[
            "TUNING_STUDY_SERVER_URLS"
        ]
    )
    assert before == addresses[0].geturl(), "running trials keep their server"
    managed = chart.render({"studyServer": {"replicas": 3, **CERT_MANAGER["studyServer"]}})
    assert {address.hostname for address in addresses} < set(
        managed.one("Certificate", "study-server")["spec"]["dnsNames"]
    )
    for role in ("replace", "reach"):
        [found] = [r for r in rendered.kind("Role") if r["metadata"]["name"].endswith(f"server-{role}")]
        assert found["rules"][-1]["resourceNames"] == pods_of(server)


def test_generated_certificates_are_kept(chart: Chart) -> None:
    """Running trials trust the CA that they started with, also when the release is uninstalled."""
    kept = chart.render({"postgres": {"persistence": {"keep": False}}})
    secrets = [s for s in kept.kind("Secret") if s.get("type") == "kubernetes.io/tls"]
    assert len(secrets) == 2
    assert all(s["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for s in secrets)


def test_only_postgres_restarts_with_a_new_certificate(chart: Chart) -> None:
    """The operator and the study server read their files again when they change."""
    rendered = chart.render()
    (secret,) = [s for s in rendered.kind("Secret") if s["metadata"]["name"].endswith("postgres-tls")]
    expected = hashlib.sha256(
        json.dumps(secret["data"], sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    found = {
        labels(one)["app.kubernetes.io/component"]: one["spec"]["template"]["metadata"].get("annotations")
        for one in rendered.workloads()
    }
    assert found == {"operator": None, "study-server": None, "postgres": {"checksum/tls": expected}}
    again = chart.render({"renewCertificates": "2026"})
    (other,) = [s for s in again.kind("Secret") if s["metadata"]["name"].endswith("postgres-tls")]
    assert other["data"] != secret["data"], "every installation has its own"


def test_bundled_database_matches_its_url(chart: Chart) -> None:
    rendered = chart.render()
    (secret,) = [s for s in rendered.kind("Secret") if "stringData" in s]
    (client,) = pod(rendered.one("StatefulSet", "study-server"))["containers"]
    variables = environment(client)
    assert variables["PGPASSWORD"] == {
        "secretKeyRef": {"name": secret["metadata"]["name"], "key": "password"}
    }
    url, of_people = make_url(variables["TUNING_DATABASE_URL"]), make_url(secret["stringData"]["url"])
    assert of_people == url.set(password=secret["stringData"]["password"])
    assert len(secret["stringData"]["password"]) >= 32
    assert url.username == secret["stringData"]["username"]
    service = rendered.one("Service", "postgres")
    assert url.host == f"{service['metadata']['name']}.tuning-system.svc"
    assert url.port == service["spec"]["ports"][0]["port"]
    (postgres,) = pod(rendered.one("StatefulSet", "postgres"))["containers"]
    variables = environment(postgres)
    assert (variables["POSTGRES_USER"], variables["POSTGRES_DB"]) == (url.username, url.database)
    assert variables["PGDATA"].startswith("/var/lib/postgresql/data/")


def clients_of_the_database(rendered: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the variables and the mounted Secrets of each container that connects to Postgres."""
    for template in rendered.pod_templates():
        container = template["spec"]["containers"][0]
        if "PGSSLMODE" in (variables := environment(container)):
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            mounts = {m["mountPath"]: volumes[m["name"]].get("secret") for m in container["volumeMounts"]}
            yield variables, mounts


@every_value_set
def test_connections_to_postgres_are_encrypted_and_verified(chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values)
    clients = list(clients_of_the_database(rendered))
    expected = 1 + len(rendered.kind("CronJob")) + bool(values.get("dashboard"))
    assert len(clients) == expected
    for variables, mounts in clients:
        assert variables["PGSSLMODE"] == "verify-full"
        root = Path(variables["PGSSLROOTCERT"])
        assert {"key": "ca.crt", "path": root.name} in mounts[str(root.parent)]["items"]
    for postgres in rendered.kind("StatefulSet"):
        if labels(postgres)["app.kubernetes.io/component"] != "postgres":
            continue
        assert "--ssl=on" in pod(postgres)["containers"][0]["args"]
        rules = rendered.one("ConfigMap", "postgres")["data"]["pg_hba.conf"].splitlines()
        assert [rule.split()[0] for rule in rules] == ["local", "hostssl"], "nothing without TLS"


def test_external_database_is_verified_by_public_cas_unless_there_is_another(chart: Chart) -> None:
    def variables(**external: str) -> dict[str, Any]:
        rendered = chart.render({"postgres": {"external": {"existingSecret": "db", **external}}})
        [(variables, _)] = clients_of_the_database(rendered)
        return {name: variables.get(name) for name in ("PGSSLMODE", "PGSSLROOTCERT")}

    assert variables() == {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "system"}
    assert variables(sslMode="require") == {"PGSSLMODE": "require", "PGSSLROOTCERT": None}
    mounted = "/var/run/tuning.dev/postgres/ca.crt"
    assert variables(sslMode="verify-ca", caSecret="ca") == {
        "PGSSLMODE": "verify-ca",
        "PGSSLROOTCERT": mounted,
    }


def test_external_database_replaces_the_bundled_one(chart: Chart) -> None:
    rendered = chart.render(EXTERNAL)
    components = {labels(found)["app.kubernetes.io/component"] for found in rendered.all}
    assert "postgres" not in components
    for kind, component, name in (
        ("StatefulSet", "study-server", "TUNING_DATABASE_URL"),
        ("Deployment", "dashboard", "DATABASE_URL"),
    ):
        (container,) = pod(rendered.one(kind, component))["containers"]
        assert environment(container)[name] == {"secretKeyRef": {"name": "db", "key": "uri"}}


def test_the_password_of_the_bundled_database_can_come_from_elsewhere(chart: Chart) -> None:
    rendered = chart.render(PLATFORM)
    assert not [s for s in rendered.kind("Secret") if "stringData" in s]
    (postgres,) = pod(rendered.one("StatefulSet", "postgres"))["containers"]
    reference = {"secretKeyRef": {"name": "vault", "key": "pg"}}
    assert environment(postgres)["POSTGRES_PASSWORD"] == reference
    assert [variables["PGPASSWORD"] for variables, _ in clients_of_the_database(rendered)] == [reference] * 4


def test_a_backup_removes_what_an_interrupted_one_left(chart: Chart, tmp_path: Path) -> None:
    """Otherwise, the volume could have no space for another one."""
    rendered = chart.render(EVERYTHING)
    [cron] = [c for c in rendered.kind("CronJob") if c["metadata"]["name"].endswith("-backup")]
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    programs, volume = tmp_path / "bin", tmp_path / "backup"
    programs.mkdir()
    volume.mkdir()
    pg_dump = programs / "pg_dump"
    variables = {"PATH": f"{programs}:{os.environ['PATH']}", "DATABASE_URL": "postgresql://"}

    def back_up(program: str) -> int:
        pg_dump.write_text(f'#!/bin/sh\nfile=${{2#--file=}}\n{program}\necho dump > "$file"\n')
        pg_dump.chmod(0o755)
        command = [*shell, script.replace("/backup", str(volume))]
        return subprocess.run(command, env=variables, capture_output=True, check=False).returncode

    assert back_up('echo part > "$file"; exit 137') == 137
    assert [path.suffix for path in volume.iterdir()] == [".partial"]
    assert back_up(f"ls {volume}/*.partial && exit 1") == 0
    assert [path.suffix for path in volume.iterdir()] == [".dump"]


def test_notes_say_where_the_password_is(chart: Chart) -> None:
    def notes(values: dict[str, Any]) -> str:
        options = ("--dry-run=client", "--namespace=tuning-system")
        return chart.run("install", "tuning-operator", chart.folder, *options, values=values).partition(
            "NOTES:"
        )[2]

    assert "get secret tuning-operator-postgres" in notes({})
    assert "the password is in your Secret vault" in notes(PLATFORM)
    assert "get secret" not in notes(PLATFORM)


def test_only_clients_of_the_database_have_its_url(chart: Chart) -> None:
    for workload in chart.render(VALUE_SETS["everything"]).workloads():
        component = labels(workload)["app.kubernetes.io/component"]
        sees = "secretKeyRef" in json.dumps(workload) or "tuning-operator-postgres" in json.dumps(
            pod(workload)
        )
        assert sees == (component in {"study-server", "postgres", "dashboard"}), component


def grants(rendered: Objects, kind: str) -> dict[str, Any]:
    """Return the operator's rules for studies, by namespace."""
    roles = [r for r in rendered.kind(kind) if "tuningstudies" in json.dumps(r["rules"])]
    roles = [r for r in roles if labels(r)["app.kubernetes.io/component"] == "operator"]
    return {found["metadata"].get("namespace", ""): found["rules"] for found in roles}


def test_permissions_are_limited_to_watched_namespaces(chart: Chart) -> None:
    everywhere = grants(chart.render(), "ClusterRole")[""]
    rendered = chart.render({"watchNamespaces": ["ml", "vision"]})
    assert grants(rendered, "ClusterRole") == {}
    assert rendered.kind("ClusterRoleBinding") == []
    assert set(grants(rendered, "Role")) == {"ml", "vision"}
    for rules in grants(rendered, "Role").values():
        assert [*rules, {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}] == everywhere


def test_the_operator_may_replace_the_study_servers_pod(chart: Chart) -> None:
    for values in ({}, OF_ONE_NAMESPACE):
        rendered = chart.render(values, release="other")
        server = rendered.one("StatefulSet", "study-server")["metadata"]["name"]
        (operator,) = pod(rendered.one("Deployment", "operator"))["containers"]
        assert json.loads(environment(operator)["TUNING_STUDY_SERVER_PODS"]) == [f"tuning-system/{server}-0"]
        [role] = [r for r in rendered.kind("Role") if r["metadata"]["name"] == f"{server}-replace"]
        [rule] = role["rules"]
        assert role["metadata"]["namespace"] == "tuning-system"
        assert (rule["resourceNames"], rule["verbs"]) == ([f"{server}-0"], ["get", "delete"])


def test_several_operators_are_on_several_nodes_and_have_one_lease(chart: Chart) -> None:
    one, two = (chart.render({"operator": {"replicas": replicas}}) for replicas in (1, 2))
    assert one.kind("PodDisruptionBudget") == []
    assert one.one("Deployment", "operator")["spec"]["strategy"] == {"type": "Recreate"}
    assert "TUNING_LEASE" not in environment(pod(one.one("Deployment", "operator"))["containers"][0])
    assert "topologySpreadConstraints" not in pod(one.one("Deployment", "operator"))
    deployment = two.one("Deployment", "operator")
    assert deployment["spec"]["replicas"] == 2
    [spread] = pod(deployment)["topologySpreadConstraints"]
    assert selects(spread["labelSelector"]["matchLabels"], deployment)
    assert spread["matchLabelKeys"] == ["pod-template-hash"], "the pods that an upgrade replaces don't count"
    variables = environment(pod(deployment)["containers"][0])
    assert variables["TUNING_IDENTITY"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    namespace, name = variables["TUNING_LEASE"].split("/")
    [role] = [r for r in two.kind("Role") if r["metadata"]["name"].endswith("-leader-election")]
    assert role["metadata"]["namespace"] == namespace
    assert role["rules"][1]["resourceNames"] == [name]
    fields = {f"TUNING_{field.upper()}" for field in OperatorSettings.model_fields}
    assert set(variables) <= fields
    own = chart.render({"operator": {**POD, "replicas": 2}})
    assert own.one("PodDisruptionBudget", "operator")["spec"]["maxUnavailable"] == 0
    [spread] = pod(own.one("Deployment", "operator"))["topologySpreadConstraints"]
    assert spread["topologyKey"] == "zone"


@pytest.mark.parametrize(("value", "component"), [("operator", "operator"), ("studyServer", "study-server")])
def test_one_of_several_pods_is_drained_at_a_time(chart: Chart, value: str, component: str) -> None:
    rendered = chart.render({value: {"replicas": 2}})
    budget = rendered.one("PodDisruptionBudget", component)["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "a pod that isn't Ready blocks no drain"
    [several] = [w for w in rendered.workloads() if selects(budget["selector"]["matchLabels"], w)]
    assert labels(several)["app.kubernetes.io/component"] == component


def test_a_namespace_is_enough(chart: Chart) -> None:
    """With permissions only in namespaces, the chart can be installed; others bring the CRD."""
    assert all("namespace" in found["metadata"] for found in chart.render(OF_ONE_NAMESPACE).all)


def test_the_same_release_can_be_in_two_namespaces(chart: Chart) -> None:
    def cluster_wide(namespace: str) -> set[tuple[str, str]]:
        rendered = chart.render({"crds": {"install": False}}, namespace=namespace)
        return {
            (found["kind"], found["metadata"]["name"])
            for found in rendered.all
            if "namespace" not in found["metadata"]
        }

    here, there = cluster_wide("tuning-system"), cluster_wide("ml")
    assert here
    assert not here & there


@pytest.mark.parametrize("release", ["2024", "v1.2", "1e3", "0x10", "a.b.c"])
def test_every_name_of_a_release_is_possible(chart: Chart, release: str) -> None:
    """Also those that are numbers in YAML, or have dots, which names of Services can't have."""
    for found in chart.render(EVERYTHING, release=release, namespace="2024").all:
        metadata = found["metadata"]
        assert labels(found)["app.kubernetes.io/instance"] == release
        if "namespace" in metadata:
            assert metadata["namespace"] in {"2024", "ml", "vision"}
        if found["kind"] == "Service":
            assert re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", metadata["name"])


def test_image_references(chart: Chart) -> None:
    def image(**values: Any) -> str:
        (container,) = pod(chart.render(values).one("StatefulSet", "postgres"))["containers"]
        return container["image"]

    digest = f"sha256:{'0' * 64}"
    assert image() == "postgres:17"
    assert image(postgres={"image": {"tag": 17}}) == "postgres:17", "as `--set postgres.image.tag=17` has it"
    assert image(postgres={"image": {"tag": 20261126}}) == "postgres:20261126"
    assert image(postgres={"image": {"digest": digest}}) == f"postgres@{digest}"
    mirror = {"repository": "registry:5000/mirror/postgres"}
    assert image(postgres={"image": mirror}) == "registry:5000/mirror/postgres:17"


def test_pods_have_what_the_platform_requires(chart: Chart) -> None:
    rendered = chart.render(PLATFORM)
    for template in rendered.pod_templates():
        metadata, spec = template["metadata"], template["spec"]
        assert metadata["labels"]["team"] == "ml"
        assert metadata["annotations"]["prometheus.io/scrape"] == "true"
        assert spec["priorityClassName"] == "important"
        assert spec["topologySpreadConstraints"] == POD["topologySpreadConstraints"]
    for workload in rendered.workloads():
        assert environment(pod(workload)["containers"][0])["HTTPS_PROXY"] == "http://proxy:3128"
    budgets = {
        b["metadata"]["name"]: b["spec"]["maxUnavailable"] for b in rendered.kind("PodDisruptionBudget")
    }
    assert budgets == {
        f"tuning-operator-{name}": 0 for name in ("operator", "study-server", "postgres", "dashboard")
    }
    for account in rendered.kind("ServiceAccount"):
        assert account["metadata"]["annotations"] == {"owner": "ml"}
    (operator,) = pod(rendered.one("Deployment", "operator"))["containers"]
    assert environment(operator)["TUNING_LOG_LEVEL"] == "DEBUG"
    assert operator["image"] == f"tuning-operator@{PLATFORM['image']['digest']}"


def test_the_dashboard_accepts_no_connections_from_pods(chart: Chart) -> None:
    """It has no authentication. `kubectl port-forward` and a proxy in its pod use the loopback address."""
    rendered = chart.render({"dashboard": {"enabled": True}})
    (container,) = pod(rendered.one("Deployment", "dashboard"))["containers"]
    assert "optuna-dashboard --host=127.0.0.1 " in container["command"][-1]
    policy = rendered.one("NetworkPolicy", "dashboard")["spec"]
    assert (policy["policyTypes"], policy.get("ingress")) == (["Ingress"], None)
    (_, proxy) = pod(chart.render(PLATFORM).one("Deployment", "dashboard"))["containers"]
    assert proxy == PROXY
    [allowed] = chart.render(PLATFORM).one("NetworkPolicy", "dashboard")["spec"]["ingress"]
    assert allowed["from"] == PLATFORM["networkPolicy"]["allow"]["dashboard"]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_the_dashboard_gets_a_url_with_its_driver(chart: Chart, scheme: str, tmp_path: Path) -> None:
    """The URLs of CloudNativePG and of managed databases name none, and SQLAlchemy's default is another."""
    shown = started_dashboard(
        chart,
        tmp_path,
        'for last; do :; done; printf %s "$last"',
        DATABASE_URL=f"{scheme}://me:p%40ss@db:5432/tuning",
    )
    assert shown == "postgresql+psycopg2://me:p%40ss@db:5432/tuning"


def started_dashboard(chart: Chart, folder: Path, script: str, **variables: str) -> str:
    """Run the dashboard's command with a script in place of optuna-dashboard; return its output."""
    (container,) = pod(chart.render(EVERYTHING).one("Deployment", "dashboard"))["containers"]
    program = folder / "optuna-dashboard"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(container["command"], env=environ, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("parameters", "authorities", "expected"),
    [
        ("", "system", "system"),
        ("?sslmode=verify-full", "system", "system"),
        ("?connect_timeout=5&sslmode=require", "system", ""),
        ("?sslmode=require", "/var/run/ca.crt", "/var/run/ca.crt"),
    ],
)
def test_the_sslmode_of_the_dashboards_url_takes_precedence(
    chart: Chart, parameters: str, authorities: str, expected: str, tmp_path: Path
) -> None:
    """libpq refuses other modes than verify-full with public CAs, which the chart sets by default."""
    shown = started_dashboard(
        chart,
        tmp_path,
        'printf %s "$PGSSLROOTCERT"',
        DATABASE_URL=f"postgresql://me:pass@db:5432/tuning{parameters}",
        PGSSLROOTCERT=authorities,
    )
    assert shown == expected


def test_others_can_be_allowed_to_connect(chart: Chart) -> None:
    """For example, Prometheus to the study server."""
    rendered = chart.render(PLATFORM)
    for component, value in (("study-server", "studyServer"), ("postgres", "postgres")):
        [rule] = rendered.one("NetworkPolicy", component)["spec"]["ingress"]
        assert rule["from"][-1:] == PLATFORM["networkPolicy"]["allow"][value]
        [unchanged] = chart.render().one("NetworkPolicy", component)["spec"]["ingress"]
        assert unchanged["from"] == rule["from"][:-1]


def test_built_in_roles_include_permissions_for_studies(chart: Chart) -> None:
    def verbs(rendered: Objects, role: str) -> set[str]:
        """Return the verbs that a built-in role has for studies."""
        label = f"rbac.authorization.k8s.io/aggregate-to-{role}"
        parts = [r for r in rendered.kind("ClusterRole") if labels(r).get(label) == "true"]
        rules = [rule for part in parts for rule in part["rules"]]
        assert all(rule["apiGroups"] == ["tuning.dev"] for rule in rules)
        assert all(
            rule["verbs"] == ["get"] for rule in rules if "tuningstudies/status" in rule["resources"]
        ), "the status is the operator's"
        return {verb for rule in rules for verb in rule["verbs"]}

    for values in ({}, {"crds": {"install": False}}):
        rendered = chart.render(values)
        assert verbs(rendered, "view") == READ
        assert verbs(rendered, "edit") == verbs(rendered, "admin")
        assert verbs(rendered, "edit") == READ | {"create", "update", "patch", "delete", "deletecollection"}
    assert verbs(chart.render({"userRoles": {"create": False}}), "edit") == set()


def test_role_allows_port_forwarding_to_the_study_server_only(chart: Chart) -> None:
    rendered = chart.render()
    [role] = [r for r in rendered.kind("Role") if labels(r)["app.kubernetes.io/component"] == "users"]
    assert role["metadata"]["namespace"] == "tuning-system"
    [forward] = [rule for rule in role["rules"] if "pods/portforward" in rule["resources"]]
    server = rendered.one("StatefulSet", "study-server")["metadata"]["name"]
    assert (forward["resourceNames"], forward["verbs"]) == ([f"{server}-0"], ["create"])
    assert all(set(rule["verbs"]) <= {"get", "list"} for rule in role["rules"] if rule is not forward)


def test_no_permissions_for_secrets_and_no_wildcards(chart: Chart) -> None:
    for values in VALUE_SETS.values():
        rendered = chart.render(values)
        for role in [*rendered.kind("ClusterRole"), *rendered.kind("Role")]:
            text = json.dumps(role["rules"])
            assert "*" not in text
            assert "secrets" not in text


def test_crd_is_the_generated_one(chart: Chart) -> None:
    copy = chart.folder / "files" / "tuningstudies.tuning.dev.yaml"
    assert copy.read_text() == crdgen.render(), "run `make generate`"
    kept = chart.render().kind("CustomResourceDefinition")[0]
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert labels(kept)
    (plain,) = chart.render({"crds": {"keep": False}}).kind("CustomResourceDefinition")
    for rendered in (kept, plain):
        rendered["metadata"].pop("labels")
        assert rendered == crdgen.crd() == yaml.safe_load(crdgen.render())
    assert chart.render({"crds": {"install": False}}).kind("CustomResourceDefinition") == []


def test_password_of_a_kept_volume_is_kept(chart: Chart) -> None:
    def keeps(found: dict[str, Any]) -> bool:
        return found["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"

    def policies(**persistence: Any) -> tuple[bool, ...]:
        rendered = chart.render({"postgres": {"persistence": persistence}})
        (secret,) = [s for s in rendered.kind("Secret") if "stringData" in s]
        spec = rendered.one("StatefulSet", "postgres")["spec"]
        claims = rendered.kind("PersistentVolumeClaim")
        assert "volumeClaimTemplates" not in spec, "the size of a template can't be changed"
        return keeps(secret), *map(keeps, claims)

    assert policies(keep=True) == (True, True)
    assert policies(keep=False) == (False, False)
    assert policies(enabled=False) == (False,)


@pytest.mark.parametrize("values", [*VALUE_SETS.values(), CERT_MANAGER], ids=[*VALUE_SETS, "certManager"])
def test_names_fit_even_for_the_longest_release(chart: Chart, values: dict[str, Any]) -> None:
    for found in chart.render(values, release=LONG_RELEASE).all:
        name = found["metadata"]["name"]
        if "namespace" in found["metadata"]:
            assert len(name) <= (52 if found["kind"] in ("StatefulSet", "CronJob") else 63), name
        assert all(len(value) <= 63 for value in labels(found).values())
        if "namespace" in found["metadata"]:
            assert found["metadata"]["namespace"] in {"tuning-system", "ml", "vision"}


def test_the_grafana_dashboard_shows_metrics_that_there_are(chart: Chart) -> None:
    [config_map] = [
        found
        for found in chart.render(EVERYTHING).kind("ConfigMap")
        if found["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    dashboard = json.loads(config_map["data"]["tuning-operator.json"])
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"(?:tuning|process)_[a-z_]+", target["expr"])
    }
    served = StudyMetrics(list, MemoryStore()).render(None) + OperatorMetrics(lambda: 0).render()
    families = re.findall(r"^# TYPE (\S+) (\w+)$", served.decode(), re.MULTILINE)
    known = {f"{name}_bucket" if kind == "histogram" else name for name, kind in families}
    known |= {f"{name}_count" for name, kind in families if kind == "histogram"}
    assert used <= known
    assert len(used) > 10
