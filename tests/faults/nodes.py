"""The faults of one node among several.

In the cluster of these tests, Kubernetes notices after 20 s that a node is lost, and deletes its pods 10 s
later. Its defaults are 50 s and 5 minutes.
"""

from __future__ import annotations

from dev.cluster.kind import THREE_NODES
from dev.cluster.run import run, succeeds, wait
from tests.e2e.kit import condition
from tests.faults.fault import Faults
from tests.faults.running import RELEASE, SERVER, RunningStudy

SETTINGS = (
    "operator.replicas=2",
    rf"postgres.nodeSelector.kubernetes\.io/hostname={THREE_NODES.control_plane}",  # its volume can't move
    "postgres.tolerations[0].key=node-role.kubernetes.io/control-plane",
)
"""Of the chart. The workers run the operators, the study server and the trials."""
TAKEOVER_SECONDS = 30

FAULTS = Faults()
fault = FAULTS.add


@fault(
    "The active operator's node is lost for 30 s at most, until the other one has taken over",
    "The other operator takes over within 30 s; trials on the lost worker continue when it is back.",
)
def leader_lost(study: RunningStudy) -> None:
    leader = _leader(study)
    operators = study.system.items("pods", "app.kubernetes.io/component=operator")
    workers = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in operators}
    assert len(set(workers.values())) == 2, workers
    _freeze(workers[leader])
    wait("another leader", lambda: _leader(study) != leader, TAKEOVER_SECONDS)
    run("docker", "unpause", workers[leader])


@fault(
    "The worker of the study server is drained, and stays unusable",
    "Evicted trials, the study server and the operator continue on the other worker.",
)
def worker_drained(study: RunningStudy) -> None:
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    study.kubectl.run("drain", _worker_in_use(study), *options, timeout=130)


@fault(
    "The worker of the study server is rebooted", "The study server returns, and each trial gets another pod."
)
def worker_rebooted(study: RunningStudy) -> None:
    run("docker", "restart", "--time=0", _worker_in_use(study))
    THREE_NODES.up()
    study.ready(f"statefulset/{RELEASE}-study-server")


@fault(
    "The worker of the study server hangs until the study server has been replaced",
    "The operator replaces the study server on the other worker. When the former one wakes up, it can't "
    "write, and the trials of its worker start again.",
)
def worker_hangs(study: RunningStudy) -> None:
    node = _worker_in_use(study)
    _freeze(node)
    _wait_for_another_server(study, node)
    run("docker", "unpause", node)


@fault(
    "The worker of the study server is gone, and its Node is deleted once the study server has been replaced",
    "The operator replaces the study server. The study says which trials wait for the Node; they start again "
    "on the other worker when it is deleted.",
)
def worker_gone(study: RunningStudy) -> None:
    node = _worker_in_use(study)
    run("docker", "kill", node)
    _wait_for_another_server(study, node)
    study.wait(lambda found: f"{node} is unreachable" in condition(found, "Stalled").get("message", ""))
    study.kubectl.run("delete", "node", node)


def _freeze(node: str) -> None:
    """Pause the node, which may fail while it starts processes."""
    wait(f"{node} to pause", lambda: succeeds("docker", "pause", node))


def _worker_in_use(study: RunningStudy) -> str:
    """Return the node of the study server, as soon as it also runs trials."""
    node = _node_of_server(study)

    def runs_trials() -> bool:
        pods = study.kubectl.items("pods", f"tuning.dev/study={study.name}")
        return node in {pod["spec"].get("nodeName") for pod in pods if pod["status"]["phase"] == "Running"}

    wait(f"a trial on {node}", runs_trials)
    return node


def _node_of_server(study: RunningStudy) -> str:
    """Return the node of the study server, or an empty string while it has none."""
    pods = study.system.items("pods", f"app.kubernetes.io/component={SERVER}")
    [node] = [pod["spec"].get("nodeName", "") for pod in pods] or [""]
    return node


def _leader(study: RunningStudy) -> str:
    """Return the name of the pod that holds the operators' Lease."""
    holder: str = study.system.json("get", "lease", RELEASE)["spec"]["holderIdentity"]
    return holder


def _wait_for_another_server(study: RunningStudy, former: str) -> None:
    wait("another study server", lambda: _node_of_server(study) not in ("", former), 300)
    study.ready(f"statefulset/{RELEASE}-study-server")
