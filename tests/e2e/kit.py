"""Helpers of the end-to-end tests, which apply manifests with kubectl and wait for their effects."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from sqlalchemy.exc import OperationalError

from dev.cluster.run import CommandError
from dev.demo.record import Record, record
from dev.demo.system import TRAINER

GPU = "nvidia.com/gpu"
SYSTEM = "tuning-system"
LIMIT = 900.0
"""Seconds until a wait fails: far more than any needs, since other tests run beside it on slow machines."""

REQUESTS = {"requests": {"cpu": "50m", "memory": "64Mi"}}
"""A container without them gets hardly any CPU time while others compute."""

NOT_SENT = "TLS handshake timeout"
BUSY = (NOT_SENT, "etcdserver: request timed out", "http2: client connection lost")
"""Errors of an API server that has too little CPU time or a busy disk."""
BUSY_SECONDS = 120
REPEATABLE = ("apply", "describe", "get", "logs", "patch", "wait")

PRUNE_GRACE = "10m"
"""Pods that exit slowly, on a slow machine, are not deleted before a test has read their logs."""


class UnexpectedError(AssertionError):
    """The cluster did not reach the state that the test waited for."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace of the test cluster."""

    kubectl: str
    kubeconfig: str
    namespace: str

    def run(self, *args: str, stdin: str | None = None, check: bool = True, timeout: float = LIMIT) -> str:
        command = [self.kubectl, "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, *args]
        deadline = None
        while True:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
            )
            errors = BUSY if args[0] in REPEATABLE else (NOT_SENT,)
            busy = any(error in done.stderr for error in errors)
            deadline = deadline or time.monotonic() + BUSY_SECONDS
            if not (done.returncode and busy) or time.monotonic() > deadline:
                break
            time.sleep(1)
        if check and done.returncode:
            raise UnexpectedError(f"{' '.join(args)}: {done.stderr or done.stdout}")
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def within(self, namespace: str) -> Kubectl:
        return Kubectl(self.kubectl, self.kubeconfig, namespace)

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "-o", "json"))

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return self.json("get", kind, "-l", selector)["items"]

    def apply(self, *manifests: dict[str, Any]) -> str:
        return self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def reject(self, manifest: dict[str, Any]) -> str:
        """Apply an invalid manifest; return the error message."""
        text = yaml.safe_dump(manifest)
        command = [self.kubectl, "--kubeconfig", self.kubeconfig, "-n", self.namespace, "apply", "-f", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT, check=False)
        if done.returncode == 0:
            raise UnexpectedError(f"accepted: {text}")
        return done.stderr

    def patch(self, study: str, **spec: Any) -> None:
        self.run("patch", "tuningstudy", study, "--type=merge", "-p", json.dumps({"spec": spec}))

    def study(self, name: str) -> dict[str, Any]:
        return self.json("get", "tuningstudy", name)

    def wait(
        self,
        name: str,
        until: Callable[[dict[str, Any]], bool],
        timeout: float = LIMIT,
        kind: str = "tuningstudy",
    ) -> dict[str, Any]:
        """Watch a study, or another object, until the predicate is true; return it at that time."""
        deadline = time.monotonic() + timeout
        seen: dict[str, Any] = {}
        while (left := deadline - time.monotonic()) > 0:
            with self.watch(kind, name, left) as objects:
                for seen in objects:
                    if until(seen):
                        return seen
            time.sleep(0.2)  # a watch ends early if the API server does
        raise UnexpectedError(
            f"{name} after {timeout:.0f} s: {json.dumps(seen.get('status'), indent=1)}\n"
            f"{self.diagnostics(name, kind)}"
        )

    def wait_for(self, condition: str, *objects: str) -> None:
        """Run `kubectl wait --for=CONDITION`."""
        self.run("wait", f"--for={condition}", *objects, f"--timeout={LIMIT:.0f}s", timeout=LIMIT + 60)

    def output_of(self, pod: str) -> str:
        """Wait until the pod has succeeded; return its log."""
        ended = self.wait(pod, phase("Succeeded", "Failed"), kind="pod")
        log = self.run("logs", pod)
        assert ended["status"]["phase"] == "Succeeded", f"{log}\n{self.diagnostics(pod, 'pod')}"
        return log

    @contextlib.contextmanager
    def watch(
        self, kind: str, name: str | None, timeout: float, selector: str = "", *, events: bool = False
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the objects as they change; with `events`, their watch events.

        They end when the watch expires, which the API server reports in place of an object.
        """
        command = [self.kubectl, "--kubeconfig", self.kubeconfig, "-n", self.namespace, "get", kind]
        # by selector, not by name: kubectl drops the first event when it watches a single object
        command += [f"--field-selector=metadata.name={name}"] if name else []
        command += ["-l", selector] if selector else []
        command += ["--output-watch-events"] if events else []
        command += ["--watch", "-o", "json", f"--request-timeout={math.ceil(timeout)}s"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        try:
            if events:
                yield itertools.takewhile(_is_change, map(json.loads, process.stdout))
            else:
                yield itertools.takewhile(_is_object, _json_stream(process.stdout))
        finally:
            process.kill()
            process.wait()

    def diagnostics(self, name: str, kind: str = "tuningstudy") -> str:
        """Return everything that helps to debug a study, or an object of another kind."""
        jobs = self.run("get", "jobs,pods", "-o", "wide", check=False)
        events = self.run("get", "events", "--sort-by=.lastTimestamp", check=False)
        operator = self.within(SYSTEM).run("logs", "deploy/tuning-operator", "--tail=40", check=False)
        return "\n".join([self.run("describe", kind, name, check=False), jobs, events[-4000:], operator])

    def logs_of_trial(self, study: str, number: int) -> str:
        return self.logs_of_job(f"{study}-{number}")

    def logs_of_job(self, job: str) -> str:
        self.ended_pods(job)
        return self.run("logs", f"job/{job}")

    def ended_pods(self, job: str) -> list[dict[str, Any]]:
        """Return the Job's pods once the kubelet has reported that they exited."""
        selector = f"batch.kubernetes.io/job-name={job}"
        ended = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
        self.wait_for(ended, "pod", "-l", selector)
        return self.items("pods", selector)


def _json_stream(stream: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of `kubectl --watch -o json`: indented JSON documents one after another."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if line.rstrip() == "}":
            yield json.loads("".join(lines))
            lines = []


def _is_change(event: dict[str, Any]) -> bool:
    return event["type"] != "ERROR"


def _is_object(seen: dict[str, Any]) -> bool:
    return seen["kind"] != "Status"


def _heed_ctrl_c() -> None:
    """Undo that a shell has jobs in the background ignore SIGINT, which their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def condition(study: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [c for c in study.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def phase(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda study: study.get("status", {}).get("phase") in names


def holds(kind: str, status: str = "True") -> Callable[[dict[str, Any]], bool]:
    return lambda study: condition(study, kind).get("status") == status


def stalled_for(cause: str) -> Callable[[dict[str, Any]], bool]:
    """Match a study that is stalled, with this text in the reason or message.

    For a while, another cause may come first, such as pods that wait for CPU time on a small node.
    """

    def matches(study: dict[str, Any]) -> bool:
        found = condition(study, "Stalled")
        return found.get("status") == "True" and cause in f"{found['reason']}: {found['message']}"

    return matches


def code(name: str, source: str) -> dict[str, Any]:
    """Return a ConfigMap with `train.py`."""
    data = {"train.py": textwrap.dedent(source)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def study(name: str, image: str, **spec: Any) -> dict[str, Any]:
    """Return a study with one parameter (x from 0 to 10) and one GPU per trial."""
    trial = {
        "objective": "train:objective",
        "source": {"configMap": f"{name}-code"},
        "pruneGrace": PRUNE_GRACE,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "trainer",
                        "image": image,
                        "resources": {
                            "limits": {GPU: 1, "cpu": "500m", "memory": "256Mi"},
                            "requests": {"cpu": "50m", "memory": "64Mi"},
                        },
                    }
                ]
            }
        },
    } | spec.pop("trial", {})
    base = {
        "objectives": [{"metric": "loss", "direction": "minimize"}],
        "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 10}],
        "sampler": {"name": "RandomSampler", "args": {"seed": 1}},
        "maxTrials": 4,
        "parallelism": 2,
    }
    return {
        "apiVersion": "tuning.dev/v1alpha1",
        "kind": "TuningStudy",
        "metadata": {"name": name},
        "spec": {**base, **spec, "trial": trial},
    }


def trainer_study(name: str, **spec: Any) -> dict[str, Any]:
    """Return a study in the trainer image whose code suggests its parameters."""
    manifest = study(name, TRAINER, **spec)
    del manifest["spec"]["searchSpace"]
    [container] = manifest["spec"]["trial"]["template"]["spec"]["containers"]
    container["imagePullPolicy"] = "Never"  # the image is loaded into the node
    container["resources"] = {
        "limits": {GPU: 1, "memory": "3Gi"},
        "requests": {"cpu": "50m", "memory": "512Mi"},
    }
    return manifest


@contextlib.contextmanager
def optuna_record(kubectl: Kubectl, name: str) -> Iterator[optuna.Study]:
    """Load the study with Optuna from the cluster's Postgres."""
    study = f"{kubectl.namespace}/{name}"
    try:
        found = _database().study(study)
    except (CommandError, OperationalError, optuna.exceptions.StorageInternalError):
        _database.cache_clear()  # the port-forward has ended
        found = _database().study(study)
    yield found


@functools.cache
def _database() -> Record:
    """Connect once per process: a connection takes half a second."""
    connection = contextlib.ExitStack()
    atexit.register(connection.close)
    return connection.enter_context(record())


@dataclass(frozen=True)
class Plugin:
    """Runs commands in a shell in which kubectl finds the plugin."""

    programs: Path
    kubeconfig: str
    namespace: str

    def __call__(
        self, command: str, *arguments: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._line(command, *arguments),
            cwd=folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal does: Ctrl-C signals the group."""
        return subprocess.Popen(
            self._line(command, *arguments),
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=_heed_ctrl_c,
        )

    def _line(self, command: str, *arguments: str) -> list[str]:
        line = ["kubectl", "tuning", command, *arguments]
        if command not in ("init", "validate"):
            line += ["-n", self.namespace, "--kubeconfig", self.kubeconfig]
        return line

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}
