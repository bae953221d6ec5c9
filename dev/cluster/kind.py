"""kind clusters: creates and removes them, loads images, and adds GPUs for the scheduler to count."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import engine, programs
from dev.cluster.bare import docker_engine
from dev.cluster.bare.node_image import networked_node_image, node_image
from dev.cluster.cache import ROOT, lock
from dev.cluster.console import step
from dev.cluster.run import CommandError, pipe, run, succeeds, wait

PUBLIC_NODE_IMAGE = f"kindest/node:{programs.KUBERNETES}"
GPUS = 16
"""Of each node."""
GPU = "nvidia.com/gpu"
LOADED = "/kind/loaded.json"
HEARTBEAT = dt.timedelta(seconds=40)
"""Without a heartbeat for this long, Kubernetes considers a node unhealthy."""


@dataclass(frozen=True)
class Cluster:
    """A kind cluster, which its config file describes."""

    config: Path
    kubeconfig: Path

    @property
    def name(self) -> str:
        """Its name, as kind lists it."""
        name: str = self._described["name"]
        return name

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes, which are also those of their containers."""
        workers = [node for node in self._described["nodes"] if node["role"] == "worker"]
        numbers = ["", *range(2, len(workers) + 1)][: len(workers)]
        return self.control_plane, *(f"{self.name}-worker{number}" for number in numbers)

    @property
    def control_plane(self) -> str:
        """The node that runs the control plane."""
        return f"{self.name}-control-plane"

    @cached_property
    def _described(self) -> dict[str, Any]:
        described: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return described

    def up(self) -> None:
        """Create or restart the cluster unless it is running, and wait until it is ready.

        Raises:
            RequirementError: this machine can't run the cluster; the message says what is missing.
            CommandError: a step failed.
        """
        docker_engine.up()
        if self.healthy():
            self._make_ready()
            return
        with lock("kind"):
            if not self.healthy() and not self._restarted():
                self._create()
            with step("wait for DNS and storage"):
                self._make_ready()

    def remove(self) -> None:
        """Remove the cluster, if there is one. The Docker engine must be running."""
        run(programs.kind(), "delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
        self.kubeconfig.unlink(missing_ok=True)

    def healthy(self) -> bool:
        """Return whether the API responds and all nodes are ready, with heartbeats since their starts."""
        return self.kubeconfig.exists() and all(self._is_ready(node) for node in self.nodes)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl on this cluster and return its output."""
        return run(programs.kubectl(), "--kubeconfig", self.kubeconfig, "--request-timeout=60s", *arguments)

    def load(self, image: str) -> None:
        """Load an image from the Docker engine into all nodes, except those that already have it.

        Raises:
            CommandError: the engine doesn't have the image.
        """
        wanted = engine.image_id(image)
        if wanted is None:
            raise CommandError(f"The Docker engine has no image {image}. Build or pull it first.")
        with lock("load"):
            for node in self.nodes:
                _load(image, wanted, node)

    def _is_ready(self, node: str) -> bool:
        since = _running_since(node)
        if since is None:
            return False
        ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        lease = ("lease", node, "--namespace=kube-node-lease", "-o", "jsonpath={.spec.renewTime}")
        try:
            if self.kubectl("get", "node", node, "-o", ready) != "True":
                return False
            heartbeat = dt.datetime.fromisoformat(self.kubectl("get", *lease))
        except (CommandError, ValueError):
            return False
        return heartbeat > max(since, dt.datetime.now(dt.UTC) - HEARTBEAT)

    def _restarted(self) -> bool:
        """Start the nodes' containers if they exist; return whether the cluster is healthy again."""
        if not self.kubeconfig.exists() or not succeeds("docker", "inspect", *self.nodes):
            return False
        with step("restart the cluster"):
            try:
                run("docker", "start", *self.nodes)
                wait("the nodes", self.healthy, 600)
            except CommandError:
                return False
        return True

    def _make_ready(self) -> None:
        for namespace in ("kube-system", "local-path-storage"):
            self.kubectl(
                "wait", "--for=condition=Available", "deployment", "--all", f"--namespace={namespace}",
                "--timeout=900s", "--request-timeout=0",
            )  # fmt: skip
        for node in self.nodes:
            self._add_gpus(node)

    def _create(self) -> None:
        image = _pulled() or (node_image() if len(self.nodes) == 1 else networked_node_image())
        kind = programs.kind()
        with step(f"create the cluster {self.name}"):
            self.remove()
            run(
                kind, "create", "cluster", f"--config={self.config}", f"--image={image}",
                f"--kubeconfig={self.kubeconfig}", "--wait=900s",
            )  # fmt: skip

    def _add_gpus(self, node: str) -> None:
        """Add an extended resource to the node, which the scheduler counts like a device plugin's."""
        resource = GPU.replace("/", "~1")
        patch = [{"op": "add", "path": f"/status/capacity/{resource}", "value": str(GPUS)}]
        self.kubectl(
            "patch", "node", node, "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}"
        )
        allocatable = f"jsonpath={{.status.allocatable.{GPU.replace('.', chr(92) + '.')}}}"
        wait("the node's GPUs", lambda: self.kubectl("get", "node", node, "-o", allocatable) == str(GPUS))


_FOLDER = Path(__file__).parent
DEVELOPMENT = Cluster(_FOLDER / "kind.yaml", ROOT / "kind.kubeconfig")
"""Of the demo and the end-to-end tests."""
THREE_NODES = Cluster(_FOLDER / "three-nodes.yaml", ROOT / "three-nodes.kubeconfig")
"""Of tests that need several nodes, or a network that enforces NetworkPolicies."""


def down() -> None:
    """Remove all clusters, and stop the Docker engine if `up` started it."""
    with lock("kind"):
        if docker_engine.is_ours() and not engine.answers():
            docker_engine.up()  # only an engine can remove the containers that the killed one left
        if engine.answers():
            with step("delete the cluster"):
                for cluster in (DEVELOPMENT, THREE_NODES):
                    cluster.remove()
                if docker_engine.is_ours():
                    succeeds("docker", "network", "rm", "kind")
        if docker_engine.is_ours():
            with step("stop the Docker engine"):
                docker_engine.down()


def _load(image: str, wanted: str, node: str) -> None:
    before = _id_in_node(image, node)
    loaded = _loaded(node)
    if before and loaded.get(image) == [wanted, before]:
        return
    if before != wanted:
        with step(f"load {image}"):
            pipe(
                ["docker", "save", image],
                ["docker", "exec", "-i", node, "ctr", "--namespace=k8s.io", "images", "import", "-"],
            )
    after = _id_in_node(image, node)
    record = json.dumps({**loaded, image: [wanted, after]})
    run("docker", "exec", "-i", node, "sh", "-c", f"cat > {LOADED}", stdin=record)
    if before and before != after:
        _remove_if_unnamed(before, node)


def _id_in_node(image: str, node: str) -> str | None:
    """Return the image's ID in the node, which may differ from its ID in the engine."""
    try:
        listed = json.loads(run("docker", "exec", node, "crictl", "inspecti", "--output=json", image))
    except CommandError:
        return None
    identity: str = listed["status"]["id"]
    return identity


def _loaded(node: str) -> dict[str, list[str | None]]:
    """Return the loaded images: by name, the ID in the engine and the ID in the node."""
    try:
        known: dict[str, list[str | None]] = json.loads(run("docker", "exec", node, "cat", LOADED))
    except (CommandError, ValueError):
        return {}
    return known


def _remove_if_unnamed(identity: str, node: str) -> None:
    """Remove an image that has no name left; containerd would keep it forever."""
    try:
        listed = json.loads(run("docker", "exec", node, "crictl", "inspecti", "--output=json", identity))
    except CommandError:
        return
    if not listed["status"].get("repoTags"):
        succeeds("docker", "exec", node, "crictl", "rmi", identity)


def _running_since(node: str) -> dt.datetime | None:
    """Return when the node's container was started, or None if it isn't running."""
    try:
        running, since = run(
            "docker", "inspect", "--format", "{{.State.Running}} {{.State.StartedAt}}", node
        ).split()
    except CommandError:
        return None
    return dt.datetime.fromisoformat(since) if running == "true" else None


def _pulled() -> str | None:
    if engine.image_id(PUBLIC_NODE_IMAGE):
        return PUBLIC_NODE_IMAGE
    return PUBLIC_NODE_IMAGE if engine.pull(PUBLIC_NODE_IMAGE, seconds=600) else None
