"""The operator's permissions: what it requests in a study's life needs each of them, and no other is
granted."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from tuning_operator.kube.loop.leader import Election
from tuning_operator.kube.loop.server_pod import replace_lost_server
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.ports.jobs.job_runs import JobRuns

from tests.unit.chart.helm import Chart, Json
from tests.unit.kube.builders import NOW, job, pod, study
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.test_run_state import RUNNING, exited, shared
from tests.unit.kube.world import KEY, RUNTIME, World

KOPFS = {("list", "tuningstudies"), ("watch", "tuningstudies")}
"""What kopf requests, as the informer of studies (tests/api runs it with these rights)."""
OPENSHIFTS = {("update", "tuningstudies/finalizers")}
"""Needed for owner references where OwnerReferencesPermissionEnforcement is on."""
VERBS = {
    "get": ["get"],
    "select": ["list"],
    "watch": ["watch"],
    "create": ["create"],
    "replace": ["update"],
    "dry_run": ["create"],
    "patch": ["patch"],
    "delete_job": ["delete"],
    "delete_pod_now": ["delete"],
    "replace_status": ["update"],
    "record_event": ["create", "patch"],
    "largest_nodes": ["list"],
}
KINDS = {"delete_job": "jobs", "delete_pod_now": "pods", "largest_nodes": "nodes", "record_event": "events"}
PLURALS = {"TuningStudy": "tuningstudies"}


class Recorder:
    """A Kubernetes API that notes which permissions its requests need."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube
        self.needed: set[tuple[str, str]] = set()

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **fields: Any) -> Any:
            first = arguments[0]
            kind = first["kind"] if isinstance(first, dict) else first
            resource = KINDS.get(method) or PLURALS.get(kind, f"{kind.lower()}s")
            if method == "replace_status":
                resource += "/status"
            self.needed |= {(verb, resource) for verb in VERBS[method]}
            return getattr(self._kube, method)(*arguments, **fields)

        return call if method in VERBS else getattr(self._kube, method)

    def largest_nodes(self) -> Any:
        self.needed.add(("list", "nodes"))
        return self._kube.largest_nodes()


@pytest.mark.looptime
async def test_each_permission_is_needed_and_no_other_granted(chart: Chart) -> None:
    objects = chart.render({"operator": {"replicas": 2}}).all
    [rules] = [o["rules"] for o in objects if o["kind"] == "ClusterRole" and _is_operators(o)]
    assert await _needed() | KOPFS | OPENSHIFTS == _granted(rules)
    own, for_election = (
        next(o["rules"] for o in objects if o["kind"] == "Role" and o["metadata"]["name"].endswith(suffix))
        for suffix in ("-replace", "-leader-election")
    )
    kube = Recorder(FakeKube())
    kube._kube.put({**pod(0), "kind": "Pod"})
    kube._kube.objects["Pod", "ml", "mnist-0-abcde"]["metadata"]["deletionTimestamp"] = "2026-11-21T11:00:00Z"
    watching = asyncio.create_task(replace_lost_server(kube, "ml", "mnist-0-abcde", lambda: NOW))  # type: ignore[arg-type]
    await asyncio.sleep(31)
    watching.cancel()
    assert kube.needed == _granted(own)
    kube = Recorder(FakeKube())
    election = Election(kube, "tuning-system/tuning-operator", "a", lambda: NOW)  # type: ignore[arg-type]
    await election.lead(lambda: asyncio.sleep(31))
    assert kube.needed == _granted(for_election)


def test_the_readme_lists_the_permissions(chart: Chart) -> None:
    [rules] = [o["rules"] for o in chart.render({}).all if o["kind"] == "ClusterRole" and _is_operators(o)]
    permissions = (chart.folder / "README.md").read_text().partition("\n## Permissions\n")[2]
    rows = re.findall(r"^  \| `([^`]+)` \| ([a-z, ]+) \|", permissions, re.MULTILINE)
    assert {(verb, resource) for resource, verbs in rows for verb in verbs.split(", ")} == _granted(rules)


def test_only_the_operators_own_config_map_can_be_changed(chart: Chart) -> None:
    objects = chart.render({}).all
    [rules] = [o["rules"] for o in objects if o["kind"] == "ClusterRole" and _is_operators(o)]
    changing = [rule for rule in rules if "configmaps" in rule["resources"] and rule["verbs"] != ["create"]]
    assert [(rule["verbs"], rule["resourceNames"]) for rule in changing] == [
        (["patch"], ["study-server-ca.tuning-system.tuning-operator"])
    ]


def _is_operators(role: Json) -> bool:
    return any("jobs" in rule.get("resources", []) for rule in role["rules"])


def _granted(rules: list[Json]) -> set[tuple[str, str]]:
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


async def _needed() -> set[tuple[str, str]]:
    """Return what passes over a study, its Jobs and pods need."""
    world = World(maxTrials=1, parallelism=1)
    recorder = Recorder(world.kube)
    world.kube, kube = recorder, world.kube  # type: ignore[assignment]
    world.start_operator()
    await world.settle()
    world.succeed(0)
    await world.settle()
    runtime = RUNTIME
    runs = JobRuns(recorder, lambda _: runtime, lambda: NOW)  # type: ignore[arg-type]
    await runs.check(study())
    await runs.start(study(), Trial(0))
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}
    kube.put({**pod(3, phase="Pending", conditions=[waits]), "kind": "Pod"})
    kube.put({**pod(4, spec={"nodeName": "gpu-1"}, phase="Pending"), "kind": "Pod"})
    kube.put(job(3))
    kube.put(job(4))
    runtime = replace(RUNTIME, ca="RENEWED")
    await runs.list_runs(study(), {Trial(3), Trial(4)})
    theirs = job(5)
    theirs["metadata"]["ownerReferences"] = []
    kube.put(theirs)
    kube.put({**shared(exited(1), RUNNING), "kind": "Pod"})
    kube.put(job(0))
    await runs.finish(KEY, Trial(0), again=False)
    await runs.stop(KEY, Trial(0))
    watching = asyncio.create_task(runs.watch(lambda _: None))
    await asyncio.sleep(1)
    watching.cancel()
    return recorder.needed
