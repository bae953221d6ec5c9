"""A study that runs on the cluster while something goes wrong, and the means to make it go wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dev.cluster import images
from dev.cluster.kind import DEVELOPMENT, GPUS
from dev.cluster.run import run, wait
from tests.e2e.kit import GPU, SYSTEM, Kubectl, code, study

NODE = DEVELOPMENT.control_plane
RELEASE = "tuning-operator"
SERVER, OPERATOR, POSTGRES = "study-server", "operator", "postgres"
STEPS = 10
ENDED = ("Complete", "Failed")

STEADY = f"""
    import time

    def objective(trial):
        for step in range({STEPS}):
            trial.report(trial.params["x"] + step, step)
            time.sleep(0.4)
        return trial.params["x"]
"""


@dataclass
class JobHistory:
    """Watches a study's Jobs, also across restarts of the API server: no trial may have two at a time."""

    kubectl: Kubectl
    study: str
    live: dict[str, set[str]] = field(default_factory=dict)
    """The UIDs of the Jobs that have not ended, by the name of each Job that there has been."""
    violations: list[str] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._follow, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        selector = f"tuning.dev/study={self.study}"
        while not self._stopped.is_set():
            for live in self.live.values():
                live.clear()  # a watch begins with what there is
            with self.kubectl.watch("jobs", None, 600, selector, events=True) as events:
                for event in events:
                    self._see(event["type"], event["object"])
                    if self._stopped.is_set():
                        return
            self._stopped.wait(0.2)

    def _see(self, kind: str, job: dict[str, Any]) -> None:
        metadata = job["metadata"]
        name, uid = metadata["name"], metadata["uid"]
        live = self.live.setdefault(name, set())
        conditions = job.get("status", {}).get("conditions", [])
        ended = any(c["type"] in ENDED and c["status"] == "True" for c in conditions)
        if kind == "DELETED" or ended or "deletionTimestamp" in metadata:
            live.discard(uid)
            return
        live.add(uid)
        if len(live) > 1:
            self.violations.append(f"{name} had {len(live)} Jobs at the same time")


@dataclass(frozen=True)
class RunningStudy:
    """The study, and the cluster that it runs on."""

    kubectl: Kubectl
    name: str
    jobs: JobHistory
    parallelism: int
    reuses_pods: bool

    @classmethod
    def start(cls, kubectl: Kubectl, image: str, max_trials: int, trial: Mapping[str, Any]) -> RunningStudy:
        name, parallelism = "steady", 6
        jobs = JobHistory(kubectl, name)
        jobs.start()
        manifest = study(
            name, image, maxTrials=max_trials, parallelism=parallelism, maxFailedTrials=0,
            pruner={"name": "NopPruner"}, trial={"pruneGrace": "30s", **trial},
        )  # fmt: skip
        kubectl.apply(code(f"{name}-code", STEADY), manifest)
        return cls(kubectl, name, jobs, parallelism, bool(trial.get("reusePods")))

    @property
    def system(self) -> Kubectl:
        return self.kubectl.within(SYSTEM)

    # --- what it does

    def status(self) -> dict[str, Any]:
        """Return the status, as soon as the API server answers."""
        status: dict[str, Any] = self.wait(lambda _: True).get("status", {})
        return status

    def finished(self) -> int:
        return _finished(self.status())

    def wait_finished(self, count: int, timeout: float = 600) -> None:
        """Wait until so many trials have finished."""
        self.wait(lambda study: _finished(study.get("status", {})) >= count, timeout)

    def wait(self, until: Callable[[dict[str, Any]], bool], timeout: float = 600) -> dict[str, Any]:
        return self.kubectl.wait(self.name, until, timeout)

    def pods(self, count: int) -> list[str]:
        """Return the names of so many running pods, as soon as there are."""
        running: list[str] = []

        def enough() -> bool:
            pods = self.kubectl.items("pods", f"tuning.dev/study={self.name}")
            running[:] = [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]
            return len(running) >= count

        wait(f"{count} running pods", enough)
        return running[:count]

    def running_jobs(self) -> list[str]:
        return sorted(name for name, uids in list(self.jobs.live.items()) if uids)

    # --- what happens to it

    def kill(self, *components: str) -> None:
        """Delete the components' pods without a grace period: their processes get SIGKILL."""
        for component in components:
            selector = f"app.kubernetes.io/component={component}"
            self.system.run(
                "delete", "pod", "--grace-period=0", "--force", "--wait=false", "-l", selector, check=False
            )

    def keep_killing(self, *components: str, times: int, every: float) -> None:
        """Kill the components again and again, until the study is over."""
        for _ in range(times):
            if over(self.kubectl.study(self.name)):
                return
            self.kill(*components)
            pause(every)

    def scale(self, workload: str, replicas: int) -> None:
        self.system.run("scale", workload, f"--replicas={replicas}")

    def ready(self, workload: str) -> None:
        self.system.run("rollout", "status", workload, "--timeout=300s", timeout=310)

    def sql(self, statements: str) -> str:
        """Run SQL in the database's pod, as the database's owner."""
        psql = "psql --username=tuning --dbname=tuning --quiet --tuples-only"
        target = f"{RELEASE}-postgres-0"
        return self.system.run("exec", "-i", target, "--", "sh", "-c", psql, stdin=statements)

    def in_database_pod(self, script: str) -> str:
        return self.system.run("exec", "-i", f"{RELEASE}-postgres-0", "--", "sh", "-c", script)

    def patch_job(self, job: str, **spec: Any) -> None:
        self.kubectl.run("patch", "job", job, "--type=merge", "-p", json.dumps({"spec": spec}))

    def evict(self, pod: str) -> None:
        """Evict the pod through the API, as `kubectl drain` does."""
        metadata = {"name": pod, "namespace": self.kubectl.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{pod}/eviction"
        self.kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    @contextmanager
    def all_gpus_taken(self) -> Iterator[None]:
        """Run a pod of a higher priority that needs all GPUs of the node: it preempts the trials."""
        priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
        container = {"name": "work", "image": images.PYTHON, "command": ["sleep", "3600"]}
        container["resources"] = {"limits": {GPU: GPUS}}
        spec = {"priorityClassName": "urgent", "containers": [container], "terminationGracePeriodSeconds": 0}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec}
        self.kubectl.apply({**priority, "metadata": {"name": "urgent"}}, pod)
        self.kubectl.run("wait", "pod/urgent", "--for=condition=PodScheduled", "--timeout=60s")
        try:
            yield
        finally:
            self.kubectl.run("delete", "pod/urgent", "priorityclass/urgent")


def in_node(*command: str) -> str:
    """Run a command in the node of the development cluster, which sees the processes of all its pods."""
    return run("docker", "exec", NODE, *command)


@contextmanager
def stopped(process: str) -> Iterator[None]:
    """Stop all processes of this name with SIGSTOP: they keep their connections and answer nothing."""
    in_node("pkill", "-STOP", "-x", process)
    try:
        yield
    finally:
        in_node("pkill", "-CONT", "-x", process)


def pause(seconds: float) -> None:
    """Let a fault last: how long it lasts is what it is, and nothing else is waited for."""
    time.sleep(seconds)


def over(study: dict[str, Any]) -> bool:
    return study.get("status", {}).get("phase") in ("Completed", "Failed")


def _finished(status: dict[str, Any]) -> int:
    trials = status.get("trials", {})
    return sum(trials.get(state, 0) for state in ("complete", "pruned", "failed"))
