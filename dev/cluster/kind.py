"""The kind cluster: made, filled with images, given GPUs to count, and removed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dev.cluster import engine
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import step
from dev.cluster.nodeimage import node_image
from dev.cluster.programs import found_or_built, program
from dev.cluster.run import CommandFailed, run, succeeds, wait

NAME = "tuning"
NODE = f"{NAME}-control-plane"
CONFIG = Path(__file__).with_name("kind.yaml")
KUBECONFIG = ROOT / "kind.kubeconfig"
PUBLIC_NODE_IMAGE = "kindest/node:v1.34.4"
GPUS = 8
GPU = "nvidia.com/gpu"


def up() -> None:
    """Have the cluster up: made, started again or just there; with GPUs that the scheduler counts.

    Raises:
        Lacking: the machine can't run it; the message says what is missing.
        CommandFailed: a step failed.
    """
    engine.up()
    with lock("kind"):
        if not _healthy():
            if not _restarted():
                _create()
        _give_gpus()


def down() -> None:
    """Remove the cluster, and the engine if it was ours; nothing is left behind."""
    if succeeds("docker", "version"):
        with step("delete the cluster"):
            run(program("kind"), "delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG)
    KUBECONFIG.unlink(missing_ok=True)
    if engine.started_by_us():
        with step("stop the Docker engine"):
            engine.down()


def kubectl(*arguments: str) -> str:
    """Return what kubectl prints on this cluster."""
    return run(found_or_built("kubectl"), "--kubeconfig", KUBECONFIG, *arguments)


def load(image: str) -> None:
    """Have an image of the engine in the node, unless it is there already."""
    wanted = engine.image_id(image)
    if wanted is None:
        raise CommandFailed(f"the Docker engine has no image {image}; build or pull it first")
    if wanted in _node_image_ids(image):
        return
    with step(f"load {image}"):
        save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        into = [
            "docker",
            "exec",
            "-i",
            NODE,
            "ctr",
            "--namespace=k8s.io",
            "images",
            "import",
            "--no-unpack",
            "-",
        ]
        done = subprocess.run(into, stdin=save.stdout, capture_output=True, text=True, check=False)
        if save.wait() or done.returncode:
            raise CommandFailed(f"load {image}: {done.stderr}")


def _node_image_ids(image: str) -> set[str]:
    try:
        listed = json.loads(run("docker", "exec", NODE, "crictl", "inspecti", "--output=json", image))
    except CommandFailed:
        return set()
    return {listed["status"]["id"]}


def _healthy() -> bool:
    if not KUBECONFIG.exists():
        return False
    try:
        kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=5s")
    except CommandFailed:
        return False
    return True


def _restarted() -> bool:
    """Start a node that a stopped engine left; say whether the cluster is well again."""
    state = ["docker", "inspect", "--format", "{{.State.Running}}", NODE]
    if not KUBECONFIG.exists() or not succeeds(*state):
        return False
    with step("start the cluster again"):
        if run(*state).strip() != "true" and not succeeds("docker", "start", NODE):
            return False
        try:
            wait("the node", _healthy, 120)
        except CommandFailed:
            return False
    return True


def _create() -> None:
    image = _pulled() or node_image()
    kind = program("kind")
    with step("create the cluster"):
        run(kind, "delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG)
        run(
            kind,
            "create",
            "cluster",
            "--config",
            CONFIG,
            "--image",
            image,
            "--kubeconfig",
            KUBECONFIG,
            "--wait=180s",
        )


def _pulled() -> str | None:
    if engine.image_id(PUBLIC_NODE_IMAGE):
        return PUBLIC_NODE_IMAGE
    with step(f"pull {PUBLIC_NODE_IMAGE}"):
        pulled = succeeds("timeout", "600", "docker", "pull", "--quiet", PUBLIC_NODE_IMAGE)
    return PUBLIC_NODE_IMAGE if pulled else None


def _give_gpus() -> None:
    """Extended resources may be stated on the node: the scheduler counts them as it would a device plugin's."""
    resource = GPU.replace("/", "~1")
    patch = [{"op": "add", "path": f"/status/capacity/{resource}", "value": str(GPUS)}]
    kubectl("patch", "node", NODE, "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")
    allocatable = f"jsonpath={{.status.allocatable.{GPU.replace('.', chr(92) + '.')}}}"
    wait("the node's GPUs", lambda: kubectl("get", "node", NODE, "-o", allocatable) == str(GPUS))
