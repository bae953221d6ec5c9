"""The rendered objects are consistent, and match what the processes in the pods expect."""

import base64
import hashlib
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from sqlalchemy import make_url
from tuning_operator.kube.settings import OperatorSettings
from tuning_operator.resource import crdgen, names
from tuning_operator.studies.settings import StudySettings

from tests.unit.chart.helm import CERT_MANAGER, EXTERNAL, VALUE_SETS, Chart, Objects, environment, labels, pod

LONG_RELEASE = "a-release-with-the-longest-name-that-helm-will-ever-p"
READ = {"get", "list", "watch"}
every_value_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


def selects(selector: dict[str, str], workload: dict[str, Any]) -> bool:
    return selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


@every_value_set
def test_pods_are_restricted_and_have_resources_and_probes(chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values)
    for workload in rendered.workloads():
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in rendered.containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]


@every_value_set
def test_services_probes_and_policies_refer_to_existing_pods(chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values)
    for service in rendered.kind("Service"):
        (workload,) = [w for w in rendered.workloads() if selects(service["spec"]["selector"], w)]
        ports = {port["name"] for container in pod(workload)["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for container in rendered.containers():
        ports = {port["name"] for port in container["ports"]}
        assert {
            p["httpGet"]["port"] for name, p in container.items() if "Probe" in name and "httpGet" in p
        } <= ports
    for policy in rendered.kind("NetworkPolicy"):
        assert [w for w in rendered.workloads() if selects(policy["spec"]["podSelector"]["matchLabels"], w)]


@every_value_set
def test_everything_that_pods_mount_is_rendered_or_supplied_by_the_user(
    chart: Chart, values: dict[str, Any]
) -> None:
    rendered = chart.render(values)
    there = {found["metadata"]["name"]: found for found in rendered.kind("Secret")}
    accounts = {found["metadata"]["name"] for found in rendered.kind("ServiceAccount")}
    for workload in rendered.workloads():
        assert pod(workload).get("serviceAccountName", "default") in {*accounts, "default"}
        for volume in pod(workload)["volumes"]:
            if "secret" in volume and volume["secret"]["secretName"] != "mine":
                keys = {item["key"] for item in volume["secret"]["items"]}
                assert keys <= set(there[volume["secret"]["secretName"]]["data"])
        for container in pod(workload)["containers"]:
            for value in environment(container).values() if "env" in container else ():
                if isinstance(value, dict) and (reference := value["secretKeyRef"])["name"] != "db":
                    assert reference["key"] in there[reference["name"]]["stringData"]


def test_operator_reads_its_environment(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = chart.render({"watchNamespaces": ["ml", "vision"], "operator": {"workers": 7}})
    (container,) = pod(rendered.one("Deployment", "operator"))["containers"]
    variables = environment(container)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = OperatorSettings()  # type: ignore[call-arg]
    assert settings.namespaces == ["ml", "vision"]
    assert settings.workers == 7
    assert settings.probe_port == container["ports"][0]["containerPort"]
    fields = OperatorSettings.model_fields
    assert set(variables) <= {f"TUNING_{field.upper()}" for field in fields}
    (defaults,) = pod(chart.render().one("Deployment", "operator"))["containers"]
    assert environment(defaults)["TUNING_WORKERS"] == str(fields["workers"].default)
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
    rendered = chart.render(release="other")
    (container,) = pod(rendered.one("StatefulSet", "study-server"))["containers"]
    variables = environment(container) | {"TUNING_DATABASE_URL": "postgresql://tuning@db/tuning"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = StudySettings()
    assert set(variables) <= {f"TUNING_{field.upper()}" for field in StudySettings.model_fields}
    assert settings.port == container["ports"][0]["containerPort"]
    operator = pod(rendered.one("Deployment", "operator"))["serviceAccountName"]
    assert settings.operator_service_account == f"tuning-system:{operator}"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    (volume,) = [v for v in pod(rendered.one("StatefulSet", "study-server"))["volumes"] if v["name"] == "tls"]
    files = {Path(mount["mountPath"]) / item["path"] for item in volume["secret"]["items"]}
    assert {settings.tls_cert_file, settings.tls_key_file} == files


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


def test_generated_certificate_is_valid_for_the_servers_address(chart: Chart, tmp_path: Path) -> None:
    rendered = chart.render()
    data = {
        key: base64.b64decode(text).decode()
        for key, text in rendered.one("Secret", "study-server")["data"].items()
    }
    pair = tmp_path / "pair.pem"
    pair.write_text(data["tls.crt"] + data["tls.key"])
    (operator,) = pod(rendered.one("Deployment", "operator"))["containers"]
    address = urlsplit(environment(operator)["TUNING_STUDY_SERVER_URL"])
    assert address.hostname
    shaken_hands(data["ca.crt"], pair, address.hostname)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(data["ca.crt"], pair, "elsewhere.tuning-system.svc")
    assert address.port in [p["port"] for p in rendered.one("Service", "study-server")["spec"]["ports"]]


def test_pods_restart_with_a_new_certificate(chart: Chart) -> None:
    rendered = chart.render()
    data = rendered.one("Secret", "study-server")["data"]
    expected = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    for kind, component in (("Deployment", "operator"), ("StatefulSet", "study-server")):
        annotations = rendered.one(kind, component)["spec"]["template"]["metadata"]["annotations"]
        assert annotations == {"checksum/tls": expected}
    assert chart.render().one("Secret", "study-server")["data"] != data, "every installation has its own"


def test_bundled_database_matches_its_url(chart: Chart) -> None:
    rendered = chart.render()
    secret = rendered.one("Secret", "postgres")["stringData"]
    url = make_url(secret["url"])
    assert (url.username, url.password) == (secret["username"], secret["password"])
    assert len(secret["password"]) >= 32
    service = rendered.one("Service", "postgres")
    assert url.host == f"{service['metadata']['name']}.tuning-system.svc"
    assert url.port == service["spec"]["ports"][0]["port"]
    (postgres,) = pod(rendered.one("StatefulSet", "postgres"))["containers"]
    variables = environment(postgres)
    assert (variables["POSTGRES_USER"], variables["POSTGRES_DB"]) == (url.username, url.database)
    assert variables["PGDATA"].startswith("/var/lib/postgresql/data/")


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


def test_only_clients_of_the_database_have_its_url(chart: Chart) -> None:
    for workload in chart.render(VALUE_SETS["everything"]).workloads():
        component = labels(workload)["app.kubernetes.io/component"]
        sees = "secretKeyRef" in json.dumps(workload) or "tuning-operator-postgres" in json.dumps(
            pod(workload)
        )
        assert sees == (component in {"study-server", "postgres", "dashboard"}), component


def grants(rendered: Objects, kind: str) -> dict[str, Any]:
    """Return the operator's rules by namespace."""
    roles = [r for r in rendered.kind(kind) if labels(r)["app.kubernetes.io/component"] == "operator"]
    return {found["metadata"].get("namespace", ""): found["rules"] for found in roles}


def test_permissions_are_limited_to_watched_namespaces(chart: Chart) -> None:
    everywhere = grants(chart.render(), "ClusterRole")[""]
    rendered = chart.render({"watchNamespaces": ["ml", "vision"]})
    assert grants(rendered, "ClusterRole") == {}
    assert set(grants(rendered, "Role")) == {"ml", "vision"}
    for rules in grants(rendered, "Role").values():
        assert [*rules, {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}] == everywhere
    bound = {b["roleRef"]["name"] for b in rendered.kind("ClusterRoleBinding")}
    assert bound == {"system:service-account-issuer-discovery"}


def test_built_in_roles_include_permissions_for_studies(chart: Chart) -> None:
    def verbs(rendered: Objects, role: str) -> set[str]:
        """Return the verbs that a built-in role has for studies."""
        label = f"rbac.authorization.k8s.io/aggregate-to-{role}"
        parts = [r for r in rendered.kind("ClusterRole") if labels(r).get(label) == "true"]
        rules = [rule for part in parts for rule in part["rules"]]
        assert all(rule["apiGroups"] == ["tuning.dev"] for rule in rules)
        assert all(
            set(rule["verbs"]) <= READ for rule in rules if "tuningstudies/status" in rule["resources"]
        ), "the status is the operator's"
        return {verb for rule in rules for verb in rule["verbs"]}

    rendered = chart.render()
    assert verbs(rendered, "view") == READ
    assert verbs(rendered, "edit") == verbs(rendered, "admin")
    assert verbs(rendered, "edit") == READ | {"create", "update", "patch", "delete", "deletecollection"}
    assert verbs(chart.render({"crds": {"install": False}}), "edit") == set(), (
        "who brings the CRD brings its roles"
    )


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
    def policies(**persistence: Any) -> tuple[bool, str | None]:
        rendered = chart.render({"postgres": {"persistence": persistence}})
        secret = rendered.one("Secret", "postgres")["metadata"].get("annotations", {})
        spec = rendered.one("StatefulSet", "postgres")["spec"]
        retention = spec.get("persistentVolumeClaimRetentionPolicy", {}).get("whenDeleted")
        return secret.get("helm.sh/resource-policy") == "keep", retention

    assert policies(keep=True) == (True, "Retain")
    assert policies(keep=False) == (False, "Delete")
    assert policies(enabled=False) == (False, None)


@pytest.mark.parametrize("values", [*VALUE_SETS.values(), CERT_MANAGER], ids=[*VALUE_SETS, "certManager"])
def test_names_fit_even_for_the_longest_release(chart: Chart, values: dict[str, Any]) -> None:
    for found in chart.render(values, release=LONG_RELEASE).all:
        name = found["metadata"]["name"]
        assert len(name) <= (52 if found["kind"] == "StatefulSet" else 63), name
        assert all(len(value) <= 63 for value in labels(found).values())
        if "namespace" in found["metadata"]:
            assert found["metadata"]["namespace"] in {"tuning-system", "ml", "vision"}
