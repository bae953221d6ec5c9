"""The API server needs each of the operator's rights: without one, a request of the operator fails."""

import copy
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client, config
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.kubernetes import KubernetesApi
from tuning_operator.resource import names

from tests.api.api import NAMESPACE, SETUP_MAY_BUILD, Api
from tests.api.manifest import GOOD
from tests.unit.chart.helm import our_chart
from tests.unit.kube.contract import event, job

STUDY = "rights"
CA = "study-server-ca.tuning-system.tuning-operator"
LEASE = "tuning-operator"
SERVER_POD = "tuning-operator-study-server-0"

Request = Callable[[KubernetesApi], Awaitable[Any]]

pytestmark = SETUP_MAY_BUILD


async def first(found: AsyncIterator[Any]) -> None:
    async for _ in found:
        return


async def write_status(kube: KubernetesApi) -> None:
    body = await kube.get(names.KIND, NAMESPACE, STUDY)
    assert body
    await kube.replace_status({**body, "status": {"phase": "Pending"}})


async def list_nodes(kube: KubernetesApi) -> None:
    if await kube.largest_nodes() is None:  # the operator does without
        raise KubeError(403, "Forbidden", "nodes may not be listed")


def a_job(name: str) -> dict[str, Any]:
    return job(name, 0) | {"metadata": {"name": name, "namespace": NAMESPACE}}


def a_pod(name: str) -> dict[str, Any]:
    return a_job(name)["spec"]["template"] | {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }


def an_event(name: str) -> dict[str, Any]:
    about = {"kind": names.KIND, "namespace": NAMESPACE, "name": STUDY}
    return event(name, NAMESPACE, about)


def config_map(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


async def renew_lease(kube: KubernetesApi) -> None:
    lease = await kube.get("Lease", NAMESPACE, LEASE)
    assert lease
    await kube.replace(lease)


def a_lease(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}


def watch(kind: str) -> Request:
    return lambda kube: first(kube.watch(kind, NAMESPACE, "", "", "0"))


REQUESTS: dict[tuple[str, str], Request] = {
    ("tuningstudies", "get"): lambda kube: kube.get(names.KIND, NAMESPACE, STUDY),
    ("tuningstudies", "list"): lambda kube: kube.select(names.KIND, NAMESPACE),  # by kopf
    ("tuningstudies", "watch"): watch(names.KIND),  # by kopf
    ("tuningstudies/status", "update"): write_status,
    ("jobs", "get"): lambda kube: kube.get("Job", NAMESPACE, "none"),
    ("jobs", "list"): lambda kube: kube.select("Job", NAMESPACE),
    ("jobs", "watch"): watch("Job"),
    ("jobs", "create"): lambda kube: kube.dry_run(a_job("dry")),
    ("jobs", "patch"): lambda kube: kube.patch("Job", NAMESPACE, "none", "spec", backoffLimit=1),
    ("jobs", "delete"): lambda kube: kube.delete_job(NAMESPACE, "none"),
    ("pods", "list"): lambda kube: kube.select("Pod", NAMESPACE),
    ("pods", "watch"): watch("Pod"),
    ("pods", "patch"): lambda kube: kube.patch("Pod", NAMESPACE, "none", "spec", activeDeadlineSeconds=1),
    (f"pods/{SERVER_POD}", "get"): lambda kube: kube.get("Pod", NAMESPACE, SERVER_POD),
    (f"pods/{SERVER_POD}", "delete"): lambda kube: kube.delete_pod_now(NAMESPACE, SERVER_POD),
    ("leases", "create"): lambda kube: kube.create(a_lease(f"lease-{uuid.uuid4().hex[:8]}")),
    (f"leases/{LEASE}", "get"): lambda kube: kube.get("Lease", NAMESPACE, LEASE),
    (f"leases/{LEASE}", "update"): renew_lease,
    ("configmaps", "create"): lambda kube: kube.create(config_map(f"trainer-{uuid.uuid4().hex[:8]}")),
    (f"configmaps/{CA}", "patch"): lambda kube: kube.patch("ConfigMap", NAMESPACE, CA, "data", ca="new"),
    ("namespaces", "get"): lambda kube: kube.get("Namespace", NAMESPACE, NAMESPACE),
    ("events", "list"): lambda kube: kube.select("Event", NAMESPACE),
    ("events", "create"): lambda kube: kube.record_event(an_event(f"event-{uuid.uuid4().hex[:8]}")),
    ("events", "patch"): lambda kube: kube.record_event(an_event("rights")),
    ("nodes", "list"): list_nodes,
}
OTHERS = {("tuningstudies/finalizers", "update")}
"""Checked by an admission plugin that the API server of the tests does not have."""


def split(rules: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return a rule for each right, by what may be done: (resource, or resource/name, verb)."""
    rights = {}
    for rule in rules:
        [resource] = rule["resources"]
        for verb in rule["verbs"]:
            for name in rule.get("resourceNames", [""]):
                rights[f"{resource}/{name}".rstrip("/"), verb] = {**rule, "verbs": [verb]}
    return rights


@pytest.fixture(scope="module")
def rights() -> dict[tuple[str, str], dict[str, Any]]:
    rendered = our_chart().render({"operator": {"replicas": 2}})
    roles = [*rendered.kind("ClusterRole"), *rendered.kind("Role")]
    ours = [r for r in roles if r["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"]
    return split([rule for role in ours for rule in role["rules"]])


def user(missing: tuple[str, str] | None) -> str:
    return "rights-all" if missing is None else f"rights-without-{missing[1]}-{missing[0].replace('/', '-')}"


@pytest.fixture(scope="module")
def users(api: Api, rights: dict[tuple[str, str], dict[str, Any]]) -> Iterator[None]:
    """A user with all rights, and one without each of them."""
    manifests: list[dict[str, Any]] = [an_event("rights")]
    for missing in (None, *rights):
        name = user(missing)
        rules = [rule for right, rule in rights.items() if right != missing]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
        manifests.append({**role, "kind": "ClusterRole", "rules": rules})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]
        manifests.append({**role, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": subjects})
    manifests += [a_lease(LEASE), a_job("watched"), a_pod("watched")]  # so that watches begin with something
    text = yaml.safe_dump_all(copy.deepcopy(manifests))
    api.expect("apply", "-f", "-", stdin=text)
    study = {**GOOD, "metadata": {"name": STUDY, "namespace": NAMESPACE}}
    api.expect("apply", "-f", "-", stdin=json.dumps(study))
    yield
    api.expect("delete", "-f", "-", "--wait=false", stdin=text)
    api.expect("delete", "tuningstudy", STUDY)


async def fails(kubeconfig: Path, name: str, request: Request) -> bool:
    """Return whether the request is forbidden to a user."""
    async with await config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        connection: client.ApiClient
        connection.set_default_header("Impersonate-User", name)
        try:
            await request(KubernetesApi(connection, Metrics(lambda: 0).requests))
        except KubeError as error:
            if error.status != 403:
                raise
            return True
    return False


def test_no_right_is_without_a_request(rights: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert set(rights) == {*REQUESTS, *OTHERS}


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("right", REQUESTS, ids=" ".join)
async def test_each_right_is_needed(kubeconfig: Path, right: tuple[str, str]) -> None:
    assert not await fails(kubeconfig, user(None), REQUESTS[right])
    assert await fails(kubeconfig, user(right), REQUESTS[right])
