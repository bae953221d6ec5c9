"""The kind cluster: made, filled with images, given GPUs to count, and removed."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from dev.cluster import bare_engine, engine, programs
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import step
from dev.cluster.nodeimage import node_image
from dev.cluster.run import CommandError, pipe, run, succeeds, wait

NAME = "tuning"
NODE = f"{NAME}-control-plane"
CONFIG = Path(__file__).with_name("kind.yaml")
KUBECONFIG = ROOT / "kind.kubeconfig"
PUBLIC_NODE_IMAGE = f"kindest/node:{programs.KUBERNETES}"
GPUS = 8
GPU = "nvidia.com/gpu"
LOADED = "/kind/loaded.json"
HEARTBEAT = dt.timedelta(seconds=40)
"""After so long without a sign of its kubelet, Kubernetes itself takes a node for lost."""


def up() -> None:
    """Have the cluster up: made, started again or just there; with GPUs that the scheduler counts.

    Raises:
        LackingError: the machine can't run it; the message says what is missing.
        CommandError: a step failed.
    """
    bare_engine.up()
    if healthy():
        _make_useful()
        return
    with lock("kind"):
        if not healthy() and not _started_again():
            _create()
        with step("wait for name service and storage"):
            _make_useful()


def down() -> None:
    """Remove the cluster, and the engine if it was ours; nothing is left behind."""
    with lock("kind"):
        if bare_engine.is_ours() and not engine.answers():
            bare_engine.up()  # the containers that it left can be removed by an engine only
        if engine.answers():
            with step("delete the cluster"):
                _delete()
                if bare_engine.is_ours():
                    succeeds("docker", "network", "rm", "kind")
        KUBECONFIG.unlink(missing_ok=True)
        if bare_engine.is_ours():
            with step("stop the Docker engine"):
                bare_engine.down()


def healthy() -> bool:
    """Say whether the API answers, and the node's kubelet is well and has said so since the node started."""
    since = _running_since()
    if since is None or not KUBECONFIG.exists():
        return False
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    lease = ("lease", NODE, "--namespace=kube-node-lease", "-o", "jsonpath={.spec.renewTime}")
    try:
        if kubectl("get", "node", NODE, "-o", ready) != "True":
            return False
        sign = dt.datetime.fromisoformat(kubectl("get", *lease))
    except (CommandError, ValueError):
        return False
    return sign > max(since, dt.datetime.now(dt.UTC) - HEARTBEAT)


def kubectl(*arguments: str) -> str:
    """Return what kubectl prints on this cluster."""
    return run(programs.kubectl(), "--kubeconfig", KUBECONFIG, "--request-timeout=10s", *arguments)


def load(image: str) -> None:
    """Have an image of the engine in the node, unless it is there already.

    Raises:
        CommandError: the engine has no such image.
    """
    wanted = engine.image_id(image)
    if wanted is None:
        raise CommandError(f"the Docker engine has no image {image}: build or pull it first")
    with lock("load"):
        before = _id_in_node(image)
        loaded = _loaded()
        if before and loaded.get(image) == [wanted, before]:
            return
        if before != wanted:
            with step(f"load {image}"):
                pipe(
                    ["docker", "save", image],
                    [*_in_node("-i"), "ctr", "--namespace=k8s.io", "images", "import", "-"],
                )
        after = _id_in_node(image)
        _remember({**loaded, image: [wanted, after]})
        if before and before != after:
            _forget(before)


def _in_node(*options: str) -> list[str]:
    return ["docker", "exec", *options, NODE]


def _id_in_node(image: str) -> str | None:
    """Return the id that the node's containerd gives an image; an engine may count otherwise."""
    try:
        listed = json.loads(run(*_in_node(), "crictl", "inspecti", "--output=json", image))
    except CommandError:
        return None
    identity: str = listed["status"]["id"]
    return identity


def _loaded() -> dict[str, list[str | None]]:
    """Return, by name, the engine's and the node's id of what was loaded."""
    try:
        known: dict[str, list[str | None]] = json.loads(run(*_in_node(), "cat", LOADED))
    except (CommandError, ValueError):
        return {}
    return known


def _remember(loaded: dict[str, list[str | None]]) -> None:
    run(*_in_node("-i"), "sh", "-c", f"cat > {LOADED}", stdin=json.dumps(loaded))


def _forget(identity: str) -> None:
    """Remove what lost its last name: containerd keeps it otherwise, for good."""
    try:
        listed = json.loads(run(*_in_node(), "crictl", "inspecti", "--output=json", identity))
    except CommandError:
        return
    if not listed["status"].get("repoTags"):
        succeeds(*_in_node(), "crictl", "rmi", identity)


def _running_since() -> dt.datetime | None:
    """Return since when the node's container runs; None if it does not."""
    try:
        running, since = run(
            "docker", "inspect", "--format", "{{.State.Running}} {{.State.StartedAt}}", NODE
        ).split()
    except CommandError:
        return None
    return dt.datetime.fromisoformat(since) if running == "true" else None


def _started_again() -> bool:
    """Start a node that a stopped engine left; say whether the cluster is well again."""
    if not KUBECONFIG.exists() or not succeeds("docker", "inspect", NODE):
        return False
    with step("start the cluster again"):
        try:
            run("docker", "start", NODE)
            wait("the node", healthy, 120)
        except CommandError:
            return False
    return True


def _make_useful() -> None:
    for namespace in ("kube-system", "local-path-storage"):
        kubectl(
            "wait", "--for=condition=Available", "deployment", "--all", f"--namespace={namespace}",
            "--timeout=180s", "--request-timeout=0",
        )  # fmt: skip
    _give_gpus()


def _create() -> None:
    image = _pulled() or node_image()
    kind = programs.kind()
    with step("create the cluster"):
        _delete()
        run(
            kind, "create", "cluster", f"--config={CONFIG}", f"--image={image}", f"--kubeconfig={KUBECONFIG}",
            "--wait=180s",
        )  # fmt: skip


def _delete() -> None:
    run(programs.kind(), "delete", "cluster", f"--name={NAME}", f"--kubeconfig={KUBECONFIG}")


def _pulled() -> str | None:
    if engine.image_id(PUBLIC_NODE_IMAGE):
        return PUBLIC_NODE_IMAGE
    with step(f"pull {PUBLIC_NODE_IMAGE}"):
        pulled = engine.pull(PUBLIC_NODE_IMAGE, seconds=600)
    return PUBLIC_NODE_IMAGE if pulled else None


def _give_gpus() -> None:
    """State an extended resource on the node: the scheduler counts it as it would a device plugin's."""
    resource = GPU.replace("/", "~1")
    patch = [{"op": "add", "path": f"/status/capacity/{resource}", "value": str(GPUS)}]
    kubectl("patch", "node", NODE, "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")
    allocatable = f"jsonpath={{.status.allocatable.{GPU.replace('.', chr(92) + '.')}}}"
    wait("the node's GPUs", lambda: kubectl("get", "node", NODE, "-o", allocatable) == str(GPUS))
