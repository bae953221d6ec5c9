"""The kind cluster: creates and removes it, loads images, and adds GPUs for the scheduler to count."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from dev.cluster import engine, programs
from dev.cluster.bare import docker_engine
from dev.cluster.bare.node_image import node_image
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import step
from dev.cluster.run import CommandError, pipe, run, succeeds, wait

NAME = "tuning"
NODE = f"{NAME}-control-plane"
CONFIG = Path(__file__).with_name("kind.yaml")
KUBECONFIG = ROOT / "kind.kubeconfig"
PUBLIC_NODE_IMAGE = f"kindest/node:{programs.KUBERNETES}"
GPUS = 16
GPU = "nvidia.com/gpu"
LOADED = "/kind/loaded.json"
HEARTBEAT = dt.timedelta(seconds=40)
"""Without a heartbeat for this long, Kubernetes considers a node unhealthy."""


def up() -> None:
    """Create or restart the cluster unless it is running, and wait until it is ready.

    Raises:
        RequirementError: this machine can't run the cluster; the message says what is missing.
        CommandError: a step failed.
    """
    docker_engine.up()
    if healthy():
        _make_ready()
        return
    with lock("kind"):
        if not healthy() and not _restarted():
            _create()
        with step("wait for DNS and storage"):
            _make_ready()


def down() -> None:
    """Remove the cluster, and stop the Docker engine if `up` started it."""
    with lock("kind"):
        if docker_engine.is_ours() and not engine.answers():
            docker_engine.up()  # only an engine can remove the containers that the killed one left
        if engine.answers():
            with step("delete the cluster"):
                _delete()
                if docker_engine.is_ours():
                    succeeds("docker", "network", "rm", "kind")
        KUBECONFIG.unlink(missing_ok=True)
        if docker_engine.is_ours():
            with step("stop the Docker engine"):
                docker_engine.down()


def healthy() -> bool:
    """Return whether the API responds and the node is ready, with a heartbeat since its container started."""
    since = _running_since()
    if since is None or not KUBECONFIG.exists():
        return False
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    lease = ("lease", NODE, "--namespace=kube-node-lease", "-o", "jsonpath={.spec.renewTime}")
    try:
        if kubectl("get", "node", NODE, "-o", ready) != "True":
            return False
        heartbeat = dt.datetime.fromisoformat(kubectl("get", *lease))
    except (CommandError, ValueError):
        return False
    return heartbeat > max(since, dt.datetime.now(dt.UTC) - HEARTBEAT)


def kubectl(*arguments: str) -> str:
    """Run kubectl on this cluster and return its output."""
    return run(programs.kubectl(), "--kubeconfig", KUBECONFIG, "--request-timeout=10s", *arguments)


def load(image: str) -> None:
    """Load an image from the Docker engine into the node, unless the node already has it.

    Raises:
        CommandError: the engine doesn't have the image.
    """
    wanted = engine.image_id(image)
    if wanted is None:
        raise CommandError(f"The Docker engine has no image {image}. Build or pull it first.")
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
        record = json.dumps({**loaded, image: [wanted, after]})
        run(*_in_node("-i"), "sh", "-c", f"cat > {LOADED}", stdin=record)
        if before and before != after:
            _remove_if_unnamed(before)


def _in_node(*options: str) -> list[str]:
    return ["docker", "exec", *options, NODE]


def _id_in_node(image: str) -> str | None:
    """Return the image's ID in the node, which may differ from its ID in the engine."""
    try:
        listed = json.loads(run(*_in_node(), "crictl", "inspecti", "--output=json", image))
    except CommandError:
        return None
    identity: str = listed["status"]["id"]
    return identity


def _loaded() -> dict[str, list[str | None]]:
    """Return the loaded images: by name, the ID in the engine and the ID in the node."""
    try:
        known: dict[str, list[str | None]] = json.loads(run(*_in_node(), "cat", LOADED))
    except (CommandError, ValueError):
        return {}
    return known


def _remove_if_unnamed(identity: str) -> None:
    """Remove an image that has no name left; containerd would keep it forever."""
    try:
        listed = json.loads(run(*_in_node(), "crictl", "inspecti", "--output=json", identity))
    except CommandError:
        return
    if not listed["status"].get("repoTags"):
        succeeds(*_in_node(), "crictl", "rmi", identity)


def _running_since() -> dt.datetime | None:
    """Return when the node's container was started, or None if it isn't running."""
    try:
        running, since = run(
            "docker", "inspect", "--format", "{{.State.Running}} {{.State.StartedAt}}", NODE
        ).split()
    except CommandError:
        return None
    return dt.datetime.fromisoformat(since) if running == "true" else None


def _restarted() -> bool:
    """Start the node's container if there is one; return whether the cluster is healthy again."""
    if not KUBECONFIG.exists() or not succeeds("docker", "inspect", NODE):
        return False
    with step("restart the cluster"):
        try:
            run("docker", "start", NODE)
            wait("the node", healthy, 120)
        except CommandError:
            return False
    return True


def _make_ready() -> None:
    for namespace in ("kube-system", "local-path-storage"):
        kubectl(
            "wait", "--for=condition=Available", "deployment", "--all", f"--namespace={namespace}",
            "--timeout=180s", "--request-timeout=0",
        )  # fmt: skip
    _add_gpus()


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
    return PUBLIC_NODE_IMAGE if engine.pull(PUBLIC_NODE_IMAGE, seconds=600) else None


def _add_gpus() -> None:
    """Add an extended resource to the node, which the scheduler counts like a device plugin's."""
    resource = GPU.replace("/", "~1")
    patch = [{"op": "add", "path": f"/status/capacity/{resource}", "value": str(GPUS)}]
    kubectl("patch", "node", NODE, "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")
    allocatable = f"jsonpath={{.status.allocatable.{GPU.replace('.', chr(92) + '.')}}}"
    wait("the node's GPUs", lambda: kubectl("get", "node", NODE, "-o", allocatable) == str(GPUS))
