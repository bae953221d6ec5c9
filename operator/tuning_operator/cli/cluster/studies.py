"""The TuningStudies of a cluster."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tuning_trainer.log import log_end, log_prefix

from tuning_operator.cli import NotFoundError, NotReachableError, PluginError
from tuning_operator.cli.cluster.kubectl import Kubectl, KubectlError
from tuning_operator.cli.studies import ENDED, Record, Resource, Run, subject
from tuning_operator.resource import names

RESOURCE = f"{names.PLURAL}.{names.GROUP}"

STOPPED_AT_ONCE = 100
"""Jobs in one call of kubectl: a command line has a limited length."""
POLL_SECONDS = 1.0
"""How long to wait before looking again whether a container has started."""


class ClusterStudies:
    """Studies of a cluster, read and changed with the permissions of kubectl's user."""

    program = "kubectl tuning"
    place_of_runs = "pod"

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def list_studies(self, *, everywhere: bool = False) -> Sequence[Resource]:
        """Return the studies of the namespace, or of all namespaces."""
        scope = ["--all-namespaces"] if everywhere else []
        try:
            found: list[Resource] = self.kubectl.json("get", RESOURCE, *scope)["items"]
        except KubectlError as error:
            raise self._explained(error) from None
        return found

    def get(self, name: str) -> Resource:
        """Return a study. Raises NotFoundError."""
        try:
            found: Resource = self.kubectl.json("get", RESOURCE, name)
        except KubectlError as error:
            raise self._explained(error, name) from None
        return found

    def record(self, study: Resource) -> AbstractContextManager[Record]:
        """Connect to the record of a study, through the API server."""
        from tuning_operator.cli.cluster.study_server import served_record  # here, since it takes a while

        metadata = study["metadata"]
        return served_record(self.kubectl, metadata["namespace"], metadata["name"])

    def runs(self, study: Resource) -> Mapping[Run, str]:
        """Return the name of each run's newest pod, as far as it still exists."""
        return self._newest_pods(study, names.LABEL_ROLE)

    def _newest_pods(self, study: Resource, label: str) -> dict[Run, str]:
        kubectl = self.kubectl.within(study["metadata"]["namespace"])
        selector = f"--selector={names.LABEL_STUDY}={study['metadata']['name']},{label}"
        pods = kubectl.json("get", "pods", selector)["items"]
        oldest_first = sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        named = ((_run(pod["metadata"]["labels"]), pod["metadata"]["name"]) for pod in oldest_first)
        return {run: name for run, name in named if run is not None}

    def log(self, study: Resource, run: Run, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the log of a run's newest pod. Raises NotFoundError."""
        while (pod := self._pod(study, run)) is None:
            if not (follow and self._may_start(study, run)):
                raise NotFoundError(
                    f"{subject(run)} has no pod. It has not started yet, or its Job was deleted: finished "
                    "Jobs are kept for spec.trial.ttlAfterFinished"
                )
            time.sleep(POLL_SECONDS)
        lines = self._lines_of(study, run, pod, follow=follow)
        return lines if run == "refit" or not _reuses_pods(study) else _of_trial(lines, run, follow=follow)

    def _lines_of(self, study: Resource, run: Run, pod: str, *, follow: bool) -> Iterator[str]:
        kubectl = self.kubectl.within(study["metadata"]["namespace"])
        options = ["--container", names.TRAINER_CONTAINER, *(["--follow"] if follow else [])]
        while True:
            try:
                yield from kubectl.lines("logs", pod, *options)
            except KubectlError as error:
                if "is waiting to start" not in error.stderr:
                    raise
                if not follow:
                    state = error.stderr.rpartition("waiting to start: ")[2]
                    raise NotFoundError(
                        f"{subject(run)} has not started yet: the container of pod {pod} is waiting ({state})"
                    ) from None
            else:
                return
            time.sleep(POLL_SECONDS)

    def _may_start(self, study: Resource, run: Run) -> bool:
        """Return whether a run that has no pod may get one."""
        now = self.get(study["metadata"]["name"])
        status = now.get("status", {})
        if run == "refit":
            refit = (status.get("refit") or {}).get("phase")
            return bool(now["spec"].get("refit")) and status.get("phase") != "Failed" and refit not in ENDED
        try:
            with self.record(study) as reader:
                found = next((trial for trial in reader.read(run).trials if trial.number == run), None)
        except NotFoundError:
            found = None
        return status.get("phase") not in ENDED if found is None else found.finished is None

    def stop(self, study: Resource, trials: Sequence[int]) -> None:
        """Have these running trials end, through an annotation on their Jobs that the operator acts on."""
        metadata = study["metadata"]
        kubectl = self.kubectl.within(metadata["namespace"])
        if _reuses_pods(study):
            labels = f"{names.LABEL_STUDY}={metadata['name']},{names.LABEL_ROLE}={names.ROLE_WORKER}"
            value = ",".join(map(str, trials))
            kubectl.run(
                "annotate", "jobs", f"--selector={labels}", f"{names.ANNOTATION_STOP}={value}", "--overwrite"
            )
            return
        jobs = [names.job_name(metadata["name"], trial) for trial in trials]
        for first in range(0, len(jobs), STOPPED_AT_ONCE):
            some = jobs[first : first + STOPPED_AT_ONCE]
            try:
                kubectl.run("annotate", "jobs", *some, f"{names.ANNOTATION_STOP}=true", "--overwrite")
            except KubectlError as error:
                if not error.not_found or len(trials) == 1:
                    raise
                # The others are annotated. This one is ending by itself, or its Job is about to be created.

    def _pod(self, study: Resource, run: Run) -> str | None:
        """Return a run's newest pod; of a worker's trial, the pod that the record has."""
        if run == "refit" or not _reuses_pods(study):
            of_refit = f"{names.LABEL_ROLE}={names.ROLE_FINAL}"
            label = of_refit if run == "refit" else f"{names.LABEL_TRIAL}={run}"
            return self._newest_pods(study, label).get(run)
        with self.record(study) as reader:
            return next((found.pod for found in reader.read(run).trials if found.number == run), None)

    def change(self, study: Resource, spec: Mapping[str, Any]) -> None:
        """Replace these fields of the study's spec."""
        name, patch = study["metadata"]["name"], json.dumps({"spec": spec})
        kubectl = self.kubectl.within(study["metadata"]["namespace"])
        try:
            kubectl.run("patch", RESOURCE, name, "--type=merge", f"--patch={patch}")
        except KubectlError as error:
            raise self._explained(error, name) from None

    def _explained(self, error: KubectlError, study: str = "") -> PluginError:
        if "doesn't have a resource type" in error.stderr:
            return NotReachableError(
                "the cluster does not know the resource TuningStudy: install the operator, or use another "
                "--context"
            )
        if error.not_found and study:
            where = f"not found in namespace {self.kubectl.current_namespace()}"
            return NotFoundError(f'study "{study}" {where}; `kubectl tuning list -A` lists all studies')
        return error


def _of_trial(lines: Iterator[str], trial: int, *, follow: bool) -> Iterator[str]:
    """Yield the lines of one trial in the log of a worker, which has a prefix before each."""
    prefix, end = log_prefix(trial), f"{log_end(trial)}\n"
    for line in lines:
        if line.startswith(prefix):
            yield line.removeprefix(prefix)
        elif follow and line == end:
            return


def _reuses_pods(study: Resource) -> bool:
    return bool(study["spec"].get("trial", {}).get("reusePods"))


def _run(labels: Mapping[str, str]) -> Run | None:
    """Return what a pod runs; None if it is a worker, whose trials only the record knows."""
    if labels[names.LABEL_ROLE] == names.ROLE_WORKER:
        return None
    return "refit" if labels[names.LABEL_ROLE] == names.ROLE_FINAL else int(labels[names.LABEL_TRIAL])
