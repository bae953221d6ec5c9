"""values.yaml, its schema and the README have the same values, and others are rejected."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.unit.chart.helm import CERT_MANAGER, VALUE_SETS, Chart, RefusedError

OF_KUBERNETES = {"resources", "nodeSelector", "tolerations", "affinity"}


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
        ({"postgres": {"persistence": {"storageClass": "fast"}}}, "storageClass"),
        ({"dashboard": {"enabled": "yes please"}}, "enabled"),
        ({"networkPolicy": {"enable": True}}, "enable"),
        ({"fullnameOverride": "Capital"}, "fullnameOverride"),
    ],
)
def test_error_for_a_wrong_value_contains_its_name(chart: Chart, values: dict[str, Any], word: str) -> None:
    with pytest.raises(RefusedError, match=f"'[^']*{word}'|/{word}\\b"):
        chart.render(values)


def _values(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if name in OF_KUBERNETES:
            continue
        if isinstance(value, dict):
            yield from _values(value, f"{path}{name}.")
        else:
            yield path + name


def _properties(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[str]:
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, value in schema.get("properties", {}).items():
        if name not in OF_KUBERNETES:
            yield from _properties(value, definitions, f"{path}{name}.")
    if "properties" not in schema:
        yield path.rstrip(".")


def test_schema_has_all_values(chart: Chart) -> None:
    values = yaml.safe_load((chart.folder / "values.yaml").read_text())
    schema = json.loads((chart.folder / "values.schema.json").read_text())
    assert set(_values(values)) == set(_properties(schema, schema["definitions"])) - {"global"}


def test_readme_has_all_values(chart: Chart) -> None:
    readme = (chart.folder / "README.md").read_text()
    documented = set()
    for row in re.findall(r"^\| (`[^|]*) \|", readme, flags=re.MULTILINE):
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
