"""What in a cluster would keep a study from running, and how to fix it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from tuning_operator.cli import PluginError
from tuning_operator.cli.cluster.kubectl import Kubectl, KubectlError
from tuning_operator.cli.cluster.studies import RESOURCE
from tuning_operator.cli.cluster.study_server import ACCOUNTS
from tuning_operator.cli.text.status_text import blocking_conditions
from tuning_operator.resource import names
from tuning_operator.resource.crdgen import crd
from tuning_operator.resource.quantity import GPU, quantity
from tuning_operator.resource.text import count

Json = Mapping[str, Any]

CHART = "app.kubernetes.io/name=tuning-operator"
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
LIMITED = (
    *("pods", "count/pods", "count/jobs.batch", "configmaps", "count/configmaps"),
    *(f"{prefix}{name}" for prefix in ("", "requests.", "limits.") for name in ("cpu", "memory")),
)
"""What all trials need, of all that a quota may limit."""


class Finding(NamedTuple):
    """What one check found."""

    name: str
    good: bool | None
    """None: it could not be checked, or is only worth knowing."""
    message: str
    fix: str = ""


def findings(kubectl: Kubectl) -> Iterator[Finding]:
    """Yield what the checks find, in the order in which a study depends on them."""
    try:
        kubectl.run("version")
    except PluginError as error:
        yield Finding("cluster", False, str(error), "Check --context and --kubeconfig.")
        return
    namespace = kubectl.current_namespace()
    yield Finding("cluster", True, f"reachable; looking for studies in namespace {namespace}")
    for name, check in CHECKS.items():
        try:
            yield from (Finding(name, *found) for found in check(kubectl.within(namespace)))
        except KubectlError as error:
            why = "not checked, since you lack a permission" if error.forbidden else "not checked"
            reason = error.stderr.partition("\n")[0]
            yield Finding(name, None, f"{why}: {reason}")


Found = Iterator[tuple[bool | None, str, str]]


def _crd(kubectl: Kubectl) -> Found:
    try:
        installed = kubectl.json("get", "customresourcedefinitions", f"{names.PLURAL}.{names.GROUP}")
    except KubectlError as error:
        if not error.not_found:
            raise
        yield False, "the resource TuningStudy is not installed", "Install the chart: see README.md, Install."
        return
    ours, theirs = (_fields(found) for found in (crd(), installed))
    if missing := sorted(ours - theirs):
        fix = "Upgrade the chart, or install the plugin of the chart's version."
        yield False, f"the resource TuningStudy is older than this plugin: it has no {missing[0]}", fix
    else:
        yield True, "TuningStudy is installed", ""


def _fields(definition: Json) -> set[str]:
    """Return the paths of the fields of spec and status down to two levels."""
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    properties = versions[names.VERSION]["schema"]["openAPIV3Schema"]["properties"]
    return {
        f"{part}.{name}" for part in ("spec", "status") for name in properties[part].get("properties", {})
    }


def _components(kubectl: Kubectl) -> Found:
    pods = kubectl.json("get", "pods", "--all-namespaces", f"--selector={CHART}")["items"]
    for component in ("operator", "study-server", "postgres"):
        ours = [pod for pod in pods if pod["metadata"]["labels"].get(COMPONENT) == component]
        if not ours and component == "postgres":
            yield None, "postgres is not part of the chart here: the study server uses your own database", ""
        elif not ours:
            fix = "Install the chart, or scale it up again: see README.md, Install."
            yield False, f"{component} is not running: it has no pod", fix
        elif bad := [pod for pod in ours if not _is_ready(pod)]:
            metadata = bad[0]["metadata"]
            place = f"{metadata['name']} -n {metadata['namespace']}"
            fix = f"See `kubectl describe pod {place}` and `kubectl logs {place}`."
            yield False, f"{component} is not ready: {_why_not_ready(bad[0])}", fix
        else:
            found = ", ".join(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in ours)
            yield True, f"{component} is ready ({found})", ""


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _why_not_ready(pod: Json) -> str:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        waiting = status.get("state", {}).get("waiting")
        if waiting:
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["status"] == "False" and condition.get("message"):
            return str(condition["message"])
    return f"its phase is {pod.get('status', {}).get('phase', 'unknown')}"


def _gpus(kubectl: Kubectl) -> Found:
    nodes = kubectl.json("get", "nodes")["items"]
    found: dict[str, int] = {}
    for node in nodes:
        for name, amount in (node.get("status", {}).get("allocatable") or {}).items():
            if GPU.fullmatch(name) and str(amount).isdecimal():
                found[name] = found.get(name, 0) + int(amount)
    listed = ", ".join(f"{amount} {name}" for name, amount in found.items() if amount)
    if listed:
        yield True, f"the nodes have {listed}", ""
    else:
        yield (
            None,
            "no node has GPUs, so trials that request one stay Pending",
            "Install your GPUs' device plugin (for example the NVIDIA GPU Operator), or request no GPUs.",
        )


def _quota(kubectl: Kubectl) -> Found:
    quotas = kubectl.json("get", "resourcequotas")["items"]
    used_up = [(quota, full) for quota in quotas if (full := ", ".join(_used_up(quota)))]
    for quota, full in used_up:
        name, spec = quota["metadata"]["name"], quota.get("spec", {})
        see = f"See `kubectl describe resourcequota {name}`"
        if spec.get("scopes") or spec.get("scopeSelector"):
            yield None, f"quota {name} is used up: {full}; it counts only the pods in its scopes", f"{see}."
        else:
            yield False, f"quota {name} is used up: {full}", f"{see}; delete finished Jobs, or ask for more."
    if not used_up:
        found = f"{count(len(quotas), 'quota')} in the namespace, none used up" if quotas else "no quota"
        yield True, found, ""


def _used_up(quota: Json) -> Iterator[str]:
    """Yield what a quota has no more of and trials need."""
    hard, used = (quota.get("status", {}).get(part) or {} for part in ("hard", "used"))
    for name, most in hard.items():
        limit = quantity(most)
        if _limits_trials(name, limit) and quantity(used.get(name, 0)) >= limit:
            yield name


def _limits_trials(name: str, limit: Decimal) -> bool:
    """Whether trials need what a quota limits; of GPUs and the like, some trials need none."""
    is_extended = name.startswith("requests.") and "/" in name
    return name in LIMITED or (is_extended and limit > 0)


def _rights(kubectl: Kubectl) -> Found:
    wanted = {
        "create tuningstudies": ("create", RESOURCE),
        "change tuningstudies": ("patch", RESOURCE),
        "create Jobs (required to create or change studies)": ("create", "jobs.batch"),
        "read the logs of trials": ("get", "pods", "--subresource=log"),
        "stop single trials (patch Jobs)": ("patch", "jobs.batch"),
    }
    missing = [name for name, asked in wanted.items() if not _may(kubectl, *asked)]
    if not any(
        _may(kubectl, "create", f"serviceaccounts/{name}", "--subresource=token") for name in ACCOUNTS
    ):
        missing.append(f"read records (create a token for the service account {ACCOUNTS[0]})")
    for name in missing:
        yield None, f"you don't have permission to {name}", "See docs/guide/kubectl-plugin.md for the Roles."
    if not missing:
        yield True, "you may create, change, read and stop studies", ""


def _may(kubectl: Kubectl, *asked: str) -> bool:
    try:
        return kubectl.run("auth", "can-i", *asked).strip() == "yes"
    except KubectlError as error:
        if not error.stdout.startswith("no"):  # which it prints with a reason, and exits with 1
            raise
        return False


def _admission(kubectl: Kubectl) -> Found:
    """Try to create a Job as an admission policy or webhook would see it."""
    try:
        kubectl.run("create", "job", "tuning-doctor", "--image=busybox", "--dry-run=server")
    except KubectlError as error:
        if error.forbidden and "cannot create resource" in error.stderr:
            yield None, "not checked, since you don't have permission to create Jobs", ""
            return
        yield (
            None,
            f"a plain Job would be rejected here: {error.stderr}",
            "A policy of this cluster may require certain fields: set them in spec.trial.template.",
        )
        return
    yield True, "Jobs are admitted", ""


def _pods(kubectl: Kubectl) -> Found:
    pods = kubectl.json("get", "pods", f"--selector={names.LABEL_STUDY}")["items"]
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
                fix = "Correct the image's name, push it, or set imagePullSecrets in spec.trial.template."
                yield False, f"pod {pod['metadata']['name']} can't pull {status.get('image')}", fix
                return
    yield True, "all images of trial pods could be pulled" if pods else "no trial pods here", ""


def _queue(kubectl: Kubectl) -> Found:
    jobs = kubectl.json("get", "jobs", f"--selector={names.LABEL_STUDY},{QUEUE}")["items"]
    held = [job for job in jobs if job["spec"].get("suspend")]
    if held:
        queue = held[0]["metadata"]["labels"][QUEUE]
        message = f"{count(len(held), 'Job')} of studies waiting in queue {queue}"
        yield None, message, f"See `kubectl describe localqueue {queue}`."
    elif jobs:
        yield True, "no Job of a study is waiting in a queue", ""


def _studies(kubectl: Kubectl) -> Found:
    studies: Sequence[Json] = kubectl.json("get", RESOURCE)["items"]
    bad = False
    for study in studies:
        if study.get("status", {}).get("phase") is None:
            bad = True
            yield False, f"{study['metadata']['name']} has not been processed by the operator yet", ""
        for line in blocking_conditions(study):
            if not line.startswith("Suspended"):
                bad = True
                yield False, f"{study['metadata']['name']}: {line}", ""
    if not bad:
        number = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
        yield True, f"{number}, none blocked", ""


CHECKS: dict[str, Callable[[Kubectl], Found]] = {
    "CRD": _crd,
    "operator": _components,
    "permissions": _rights,
    "GPUs": _gpus,
    "quota": _quota,
    "admission": _admission,
    "images": _pods,
    "queue": _queue,
    "studies": _studies,
}
