"""How long a slot is idle between two trials on a cluster: ours, and plain loops over Jobs and over pods.

    uv run python -m tests.bench.on_cluster

From the end of the user's code to its next start, one trial of 0.5 s at a time, on the kind cluster of the
end-to-end tests. The loops create the next Job or pod when a watch shows the end of the last one. All take
turns. The machine should have nothing else to do.
"""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from kubernetes import client, config, watch

from dev.cluster import images, kind, programs
from dev.demo import system
from tests.e2e.kit import Kubectl, code, phase, study
from tests.faults.running import in_node

SECONDS = 0.5
PROGRAM = f"""
import time
begun = time.time()
time.sleep({SECONDS})
with open("/seen/times", "a") as times:
    times.write(f"{{begun}} {{time.time()}}\\n")
print("loss=1")
"""
OBJECTIVE = f"""
import time

def objective(trial):
    begun = time.time()
    time.sleep({SECONDS})
    with open("/seen/times", "a") as times:
        times.write(f"{{begun}} {{time.time()}}\\n")
    return trial.params["x"]
"""
COMMAND = ["python", "-c", PROGRAM]


@dataclass
class Place:
    """A namespace and a folder of the node that its pods write their times to."""

    kubectl: Kubectl
    folder: str

    def volume(self) -> dict[str, Any]:
        return {
            "volumes": [{"name": "seen", "hostPath": {"path": self.folder}}],
            "mounts": [{"name": "seen", "mountPath": "/seen"}],
        }

    def times(self) -> list[tuple[float, float]]:
        """Return when each trial's code began and ended, and forget it."""
        lines = in_node("cat", f"{self.folder}/times").splitlines()
        in_node("rm", f"{self.folder}/times")
        return sorted((float(begun), float(ended)) for begun, ended in map(str.split, lines))


def ours(**trial: Any) -> Callable[[Place, int], None]:
    """Return what runs a study of ours."""

    def run(place: Place, trials: int) -> None:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        body = study(name, images.PYTHON, trial=trial, maxTrials=trials, parallelism=1)
        if "command" in trial:
            del body["spec"]["trial"]["objective"], body["spec"]["trial"]["source"]
        pod, volume = body["spec"]["trial"]["template"]["spec"], place.volume()
        pod["volumes"], pod["containers"][0]["volumeMounts"] = volume["volumes"], volume["mounts"]
        place.kubectl.apply(code(f"{name}-code", OBJECTIVE), body)
        done = place.kubectl.wait(name, phase("Completed", "Failed"))
        assert done["status"]["trials"]["complete"] == trials, place.kubectl.diagnostics(name)

    return run


def loop(
    create: Callable[[str, client.V1ObjectMeta, client.V1PodTemplateSpec], Any],
    follow: Callable[[], Callable[..., Any]],
    ended: Callable[[Any], bool],
) -> Callable[[Place, int], None]:
    """Return what runs trials one after another, as a script of a dozen lines does."""

    def run(place: Place, trials: int) -> None:
        namespace, volume = place.kubectl.namespace, place.volume()
        container = client.V1Container(
            name="trainer", image=images.PYTHON, command=COMMAND, volume_mounts=volume["mounts"]
        )
        pod = client.V1PodSpec(containers=[container], restart_policy="Never", volumes=volume["volumes"])
        for number in range(trials):
            name = f"plain-{uuid.uuid4().hex[:8]}-{number}"
            create(namespace, client.V1ObjectMeta(name=name), client.V1PodTemplateSpec(spec=pod))
            events = watch.Watch()
            for event in events.stream(follow(), namespace, field_selector=f"metadata.name={name}"):
                if ended(event["object"].status):
                    events.stop()

    return run


def plain_jobs() -> Callable[[Place, int], None]:
    """Return a loop over Jobs."""

    def create(namespace: str, metadata: client.V1ObjectMeta, template: client.V1PodTemplateSpec) -> None:
        spec = client.V1JobSpec(template=template, backoff_limit=0)
        client.BatchV1Api().create_namespaced_job(namespace, client.V1Job(metadata=metadata, spec=spec))

    return loop(create, lambda: client.BatchV1Api().list_namespaced_job, lambda status: status.succeeded)


def bare_pods() -> Callable[[Place, int], None]:
    """Return a loop over pods."""

    def create(namespace: str, metadata: client.V1ObjectMeta, template: client.V1PodTemplateSpec) -> None:
        pod = client.V1Pod(metadata=metadata, spec=template.spec)
        client.CoreV1Api().create_namespaced_pod(namespace, pod)

    return loop(
        create, lambda: client.CoreV1Api().list_namespaced_pod, lambda status: status.phase == "Succeeded"
    )


@dataclass
class Measured:
    """Seconds between trials, and from the start to the first trial's code."""

    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        gaps = sorted(self.gaps)
        cells = (statistics.median(gaps), gaps[int(len(gaps) * 0.9)], statistics.median(self.first))
        return f"| {name} | " + " | ".join(f"{cell:.2f} s" for cell in cells) + " |"


def main(
    trials: Annotated[int, typer.Option(help="How many in a row.")] = 8,
    rounds: Annotated[int, typer.Option(help="How often each way takes its turn.")] = 2,
) -> None:
    """Measure, and print a table as Markdown."""
    system.up()
    config.load_kube_config(str(kind.DEVELOPMENT.kubeconfig))
    ways = {
        "objective, reusePods": ours(reusePods=True),
        "command, reusePods": ours(command=COMMAND, reusePods=True),
        "objective": ours(),
        "command": ours(command=COMMAND),
        "a loop over pods": bare_pods(),
        "a loop over Jobs": plain_jobs(),
    }
    measured: dict[str, Measured] = defaultdict(Measured)
    with place() as here:
        for _, (name, run) in itertools.product(range(rounds), ways.items()):
            started = time.time()
            run(here, trials)
            times = here.times()
            measured[name].first.append(times[0][0] - started)
            measured[name].gaps += [begun - end for (_, end), (begun, _) in itertools.pairwise(times)]
    print("| trials | gap, p50 | gap, p90 | first trial after the start |\n|---|---|---|---|")
    for name in ways:
        print(measured[name].row(name))


@contextmanager
def place() -> Iterator[Place]:
    """Make a namespace and a folder, and remove them at the end."""
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    folder = f"/var/tmp/{namespace}"
    cluster = Kubectl(str(programs.kubectl()), str(kind.DEVELOPMENT.kubeconfig), "default")
    cluster.run("create", "namespace", namespace)
    in_node("mkdir", "--mode=777", folder)
    try:
        yield Place(cluster.within(namespace), folder)
    finally:
        cluster.run("delete", "namespace", namespace, "--wait=false")
        in_node("rm", "-r", folder)


if __name__ == "__main__":
    typer.run(main)
