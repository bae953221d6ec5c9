"""A real API server takes what the chart renders; it gives the rights that are needed, and no others."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster.run import wait
from tests.api.api import SETUP_MAY_BUILD, Api
from tests.unit.chart.helm import EVERYTHING, VALUE_SETS, Chart
from tests.unit.chart.helm import chart as chart

ROOT = Path(__file__).parents[2]
SYSTEM = "tuning-system"
NAMESPACES = [SYSTEM, *EVERYTHING["watchNamespaces"]]
RESTRICTED = {"pod-security.kubernetes.io/warn": "restricted"}

pytestmark = SETUP_MAY_BUILD


@pytest.fixture(scope="module")
def namespaces(api: Api) -> Iterator[None]:
    """The value sets' namespaces; of pods that the level `restricted` refuses the server warns."""
    manifests = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
        for name in NAMESPACES
    ]
    api.expect("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    yield
    api.expect("delete", "namespace", "--wait=false", *NAMESPACES)


def kubectl(api: Api, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl bound to no namespace: the chart's objects name theirs."""
    command = [api.kubectl_path, "--kubeconfig", str(api.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=240, check=False)


def dry_run(api: Api, manifests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    options = ("--dry-run=server", "--validate=strict", "-f", "-")
    return kubectl(api, "apply", *options, stdin=yaml.safe_dump_all(manifests))


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_server_takes_what_is_rendered(api: Api, chart: Chart, values: dict[str, Any]) -> None:
    rendered = chart.render(values).all
    done = dry_run(api, rendered)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(rendered)
    assert "Warning" not in done.stderr


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("release", ["2024", "v1.2"])
def test_the_server_takes_every_name_of_a_release(api: Api, chart: Chart, release: str) -> None:
    done = dry_run(api, chart.render(EVERYTHING, release=release).all)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("namespaces")
def test_the_server_would_say_what_is_wrong(api: Api, chart: Chart) -> None:
    """The checks above can fail: a misspelled field, and a pod that may be root."""
    deployment = chart.render().one("Deployment", "operator")
    deployment["spec"]["replica"] = 1
    assert 'unknown field "spec.replica"' in dry_run(api, [deployment]).stderr
    del deployment["spec"]["replica"]
    deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False
    assert "runAsNonRoot" in dry_run(api, [deployment]).stderr


@pytest.fixture(scope="module")
def may(api: Api, chart: Chart, namespaces: None) -> Any:
    """Ask whether a service account of the chart may do something, with the chart's RBAC on the server."""
    del namespaces

    def installed(values: dict[str, Any], release: str) -> list[dict[str, Any]]:
        kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
        return [found for found in chart.render(values, release=release).all if found["kind"] in kinds]

    objects = [
        *installed({}, "tuning-operator"),
        *installed({"watchNamespaces": ["ml"]}, "narrow-tuning-operator"),
    ]
    manifests = yaml.safe_dump_all(objects)
    applied = kubectl(api, "apply", "-f", "-", stdin=manifests)
    assert applied.returncode == 0, applied.stderr

    def ask(account: str, verb: str, resource: str, *options: str, named: str = "") -> bool:
        name, slash, part = resource.partition("/")
        thing = [name, f"--subresource={part}"] if name and slash else [f"{resource}/{named}".rstrip("/")]
        user = f"--as=system:serviceaccount:{SYSTEM}:{account}"
        answer = kubectl(api, "auth", "can-i", user, verb, *thing, *options)
        assert answer.stdout.strip() in {"yes", "no"}, answer.stderr
        return answer.stdout.strip() == "yes"

    yield ask
    kubectl(api, "delete", "-f", "-", "--wait=false", stdin=manifests)


NEEDED = [
    *[(verb, "tuningstudies.tuning.dev") for verb in ("get", "list", "watch")],
    ("update", "tuningstudies.tuning.dev/status"),
    ("update", "tuningstudies.tuning.dev/finalizers"),
    *[(verb, "jobs.batch") for verb in ("get", "list", "watch", "create", "delete")],
    *[(verb, "pods") for verb in ("list", "watch", "patch")],
    ("create", "configmaps"),
    *[(verb, "events") for verb in ("list", "create", "patch")],
]
FORBIDDEN = [
    ("get", "secrets"),
    ("get", "configmaps"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("update", "tuningstudies.tuning.dev"),
    ("delete", "tuningstudies.tuning.dev"),
    ("create", "rolebindings.rbac.authorization.k8s.io"),
]


@pytest.mark.parametrize(("verb", "resource"), NEEDED)
def test_the_operator_may_do_its_work(may: Any, verb: str, resource: str) -> None:
    assert may("tuning-operator", verb, resource, "-n", "vision")
    assert may("narrow-tuning-operator", verb, resource, "-n", "ml")
    assert not may("narrow-tuning-operator", verb, resource, "-n", "vision")


@pytest.mark.parametrize(("verb", "resource"), FORBIDDEN)
def test_the_operator_may_do_nothing_else(may: Any, verb: str, resource: str) -> None:
    assert not may("tuning-operator", verb, resource, "-n", SYSTEM)


def test_the_operator_may_delete_one_pod_only(may: Any) -> None:
    server = "tuning-operator-study-server-0"
    assert may("tuning-operator", "delete", "pods", "-n", SYSTEM, named=server)
    assert not may("tuning-operator", "delete", "pods", "-n", SYSTEM, named="tuning-operator-postgres-0")
    assert not may("tuning-operator", "delete", "pods", "-n", "ml", named=server)


def test_the_study_server_may_read_the_token_keys_only(may: Any) -> None:
    """As every service account of a cluster, by default: the chart has no binding for it."""
    assert may("tuning-operator-study-server", "get", "/openid/v1/jwks")
    for verb, resource in [*NEEDED, *FORBIDDEN]:
        assert not may("tuning-operator-study-server", verb, resource, "-n", SYSTEM)


def test_the_operator_may_list_nodes_unless_bound_to_namespaces(may: Any) -> None:
    assert may("tuning-operator", "list", "nodes")
    assert not may("narrow-tuning-operator", "list", "nodes")


def study(name: str) -> dict[str, Any]:
    container = {
        "name": "trainer",
        "image": "python:3.13",
        "env": [{"name": "STOLEN", "valueFrom": {"secretKeyRef": {"name": "other", "key": "password"}}}],
    }
    return {
        "apiVersion": "tuning.dev/v1alpha1",
        "kind": "TuningStudy",
        "metadata": {"name": name, "namespace": "ml"},
        "spec": {
            "objectives": [{"metric": "loss", "direction": "minimize"}],
            "maxTrials": 1,
            "trial": {"objective": "train:objective", "template": {"spec": {"containers": [container]}}},
        },
    }


def bound(user: str, role: str, kind: str = "ClusterRole") -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{user}-{role}"[:60], "namespace": "ml"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }


@pytest.fixture(scope="module")
def users(api: Api, chart: Chart, may: Any) -> Iterator[None]:
    """Ada has the chart's role for editing, Bob that and may create Jobs, Eve may only view."""
    jobs = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "jobs", "namespace": "ml"},
        "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}],
    }
    edit, view = (f"tuning-operator-{role}.{SYSTEM}" for role in ("edit", "view"))
    policy = [found for found in chart.render().all if "AdmissionPolicy" in found["kind"]]
    assert len(policy) == 2
    bindings = [bound("ada", edit), bound("bob", edit), bound("eve", view), bound("bob", "jobs", "Role")]
    manifests = yaml.safe_dump_all([jobs, *bindings, *policy])
    applied = kubectl(api, "apply", "-f", "-", stdin=manifests)
    assert applied.returncode == 0, applied.stderr
    yield
    kubectl(api, "delete", "-f", "-", "--wait=false", stdin=manifests)


def by(api: Api, user: str, *arguments: str, manifest: dict[str, Any] | None = None) -> str:
    """Run kubectl as a user; return what it printed, errors included."""
    done = kubectl(api, "-n", "ml", f"--as={user}", *arguments, stdin=yaml.safe_dump(manifest or {}))
    return done.stdout + done.stderr


@pytest.mark.usefixtures("users")
def test_only_who_may_create_jobs_can_create_studies(api: Api) -> None:
    """A study's template can use every Secret of the namespace, as a Job's can."""
    apply = ("apply", "-f", "-")

    def policy_applies() -> bool:
        printed = by(api, "ada", *apply, "--dry-run=server", manifest=study("stolen"))
        return "requires permission to create Jobs" in printed

    wait("the policy", policy_applies, 120)
    assert "created" in by(api, "bob", *apply, manifest=study("mine"))
    changed = study("mine")
    changed["spec"]["maxTrials"] = 2
    assert "requires permission to create Jobs" in by(api, "ada", *apply, manifest=changed)
    assert "labeled" in by(api, "ada", "label", "tuningstudy", "mine", "team=ml")
    assert "configured" in by(api, "bob", *apply, manifest=changed)
    assert "mine" in by(api, "eve", "get", "tuningstudies")
    assert "forbidden" in by(api, "eve", *apply, manifest=study("eves"))
    assert "deleted" in by(api, "ada", "delete", "tuningstudy", "mine")


@pytest.mark.usefixtures("namespaces")
def test_readers_cannot_get_the_token_of_a_trials_pod(api: Api) -> None:
    """With the Role of the guide: its service account has no rights, and no pod runs as it."""
    guide = (ROOT / "docs" / "guide" / "kubectl-plugin.md").read_text()
    [block] = [
        part for part in guide.split("```") if part.startswith("yaml\n") and "name: tuning-reader" in part
    ]
    objects = [found for found in yaml.safe_load_all(block[5:]) if found["metadata"]["namespace"] == "ml"]
    container = {"name": "trainer", "image": "none", "securityContext": {"allowPrivilegeEscalation": False}}
    metadata = {"name": "mnist-0-abcde", "namespace": "ml"}
    trial = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
    manifests = yaml.safe_dump_all([*objects, trial])
    wait("the account", lambda: kubectl(api, "-n", "ml", "get", "sa", "default").returncode == 0, 120)
    applied = kubectl(api, "apply", "-f", "-", stdin=manifests)
    assert applied.returncode == 0, applied.stderr

    def token(account: str, *options: str) -> str:
        groups = "--as-group=data-scientists"
        return by(api, "ada", groups, "create", "token", account, "--audience=tuning-study-server", *options)

    wait("the Role", lambda: token("tuning-reader").startswith("ey"), 120)
    assert "forbidden" in token("default")
    bound_to = ("--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}")
    assert "cannot bind token for serviceaccount" in token("tuning-reader", *bound_to)
    kubectl(api, "delete", "-f", "-", "--wait=false", stdin=manifests)
