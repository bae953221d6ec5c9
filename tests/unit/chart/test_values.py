"""values.yaml, its schema and the README have the same values, and others are rejected."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.unit.chart.helm import CERT_MANAGER, VALUE_SETS, Chart, RefusedError

OF_PODS = {
    *("resources", "podSecurityContext", "podLabels", "podAnnotations", "extraEnv", "podDisruptionBudget"),
    *("priorityClassName", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"),
}
"""What the values of every component have, with the meaning of the field in Kubernetes."""
COMPONENTS = ("operator", "studyServer", "postgres", "dashboard")


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_helm_lint_passes(chart: Chart, values: dict[str, Any]) -> None:
    assert "0 chart(s) failed" in chart.run("lint", "--strict", chart.folder, values=values)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"oprator": {}}, "oprator"),
        ({"operator": {"worker": 2}}, "worker"),
        ({"operator": {"workers": 0}}, "workers"),
        ({"operator": {"resources": {"request": {"cpu": 1}}}}, "request"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": "tuning-operator:1"}, "image"),
        ({"watchNamespaces": "ml"}, "watchNamespaces"),
        ({"watchNamespaces": ["No_Such"]}, "watchNamespaces"),
        ({"crds": {"instal": True}}, "instal"),
        ({"studyServer": {"tls": {"source": "certmanager"}}}, "source"),
        ({"studyServer": {"tls": {"source": "secret"}}}, "secretName"),
        ({"studyServer": {"tls": {"source": "certManager"}}}, "issuerRef"),
        ({"studyServer": {"tls": {"issuerRef": {"kind": "Isuer"}}}}, "kind"),
        ({"postgres": {"external": {"url": "postgresql://"}}}, "url"),
        ({"postgres": {"persistence": {"size": "much"}}}, "size"),
        ({"postgres": {"persistence": {"size": "..."}}}, "size"),
        ({"postgres": {"persistence": {"size": "8Kib"}}}, "size"),
        ({"postgres": {"image": {"tag": ""}}}, "tag"),
        ({"postgres": {"image": {"tag": 16.1}}}, "tag"),
        ({"image": {"tag": "sha256:0123"}}, "tag"),
        ({"image": {"repository": "tuning-operator:1"}}, "repository"),
        ({"image": {"repository": "tuning-operator@sha256"}}, "repository"),
        ({"image": {"digest": "sha256:0123"}}, "digest"),
        ({"postgres": {"external": {"sslMode": "verify-ca"}}}, "caSecret"),
        ({"postgres": {"backup": {"enabled": True}}}, "existingClaim"),
        ({"postgres": {"backup": {"schedule": "daily"}}}, "schedule"),
        ({"operator": {"podDisruptionBudget": {"minAvailabel": 1}}}, "minAvailabel"),
        ({"logLevel": "TRACE"}, "logLevel"),
        ({"clusterDomain": "cluster.local."}, "clusterDomain"),
        ({"postgres": {"persistence": {"storageClass": "fast"}}}, "storageClass"),
        ({"dashboard": {"enabled": "yes please"}}, "enabled"),
        ({"networkPolicy": {"enable": True}}, "enable"),
        ({"fullnameOverride": "Capital"}, "fullnameOverride"),
    ],
)
def test_error_for_a_wrong_value_contains_its_name(chart: Chart, values: dict[str, Any], word: str) -> None:
    with pytest.raises(RefusedError, match=f"'[^']*{word}'|/{word}\\b"):
        chart.render(values)


def test_error_for_the_admission_policy_on_an_old_cluster_contains_the_fix(chart: Chart) -> None:
    old = ("template", "tuning", chart.folder, "--kube-version=1.29.3")
    with pytest.raises(RefusedError, match=r"admissionPolicy\.enabled requires .* set it to false"):
        chart.run(*old)
    assert chart.run(*old, values={"admissionPolicy": {"enabled": False}})


def _values(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if name in OF_PODS:
            continue
        if isinstance(value, dict) and name != "annotations":
            yield from _values(value, f"{path}{name}.")
        else:
            yield path + name


def _properties(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[str]:
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, value in schema.get("properties", {}).items():
        if name not in OF_PODS:
            yield from _properties(value, definitions, f"{path}{name}.")
    if "properties" not in schema:
        yield path.rstrip(".")


def test_schema_has_all_values(chart: Chart) -> None:
    values = yaml.safe_load((chart.folder / "values.yaml").read_text())
    schema = json.loads((chart.folder / "values.schema.json").read_text())
    assert set(_values(values)) == set(_properties(schema, schema["definitions"])) - {"global"}


def test_all_components_have_the_values_of_pods(chart: Chart) -> None:
    values = yaml.safe_load((chart.folder / "values.yaml").read_text())
    schema = json.loads((chart.folder / "values.schema.json").read_text())["properties"]
    readme = (chart.folder / "README.md").read_text()
    for component in COMPONENTS:
        assert set(values[component]) >= OF_PODS
        assert set(schema[component]["properties"]) >= OF_PODS
    assert all(f"| `{name}` |" in readme for name in OF_PODS)


def test_readme_has_all_values(chart: Chart) -> None:
    readme = (chart.folder / "README.md").read_text()
    documented = set()
    [table] = re.findall(r"^\| value \| default .*?\n\n", readme, flags=re.DOTALL | re.MULTILINE)
    for row in re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE):
        first, *others = re.findall(r"`([^`]*)`", row)
        documented |= {first} | {first.rpartition(".")[0] + other for other in others}
    assert documented == set(_values(yaml.safe_load((chart.folder / "values.yaml").read_text())))


def test_cert_manager_gets_a_certificate(chart: Chart) -> None:
    rendered = chart.render(CERT_MANAGER)
    (certificate,) = rendered.kind("Certificate")
    assert certificate["spec"]["issuerRef"] == {"name": "ca", "kind": "Issuer"}
    assert "tuning-operator-study-server.tuning-system.svc" in certificate["spec"]["dnsNames"]
    secrets = {found["metadata"]["name"] for found in rendered.kind("Secret")}
    assert certificate["spec"]["secretName"] not in secrets
