"""A study's whole life, with the operator's and the study server's real processes on a real API server."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kubernetes.aio import client
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tuning_operator.cli.local.studies import LocalStudies
from tuning_operator.local.home import Home
from tuning_operator.protocol import FinishedStudy, FinishedTrial
from tuning_operator.resource import names
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod

from tests.api.api import SETUP_MAY_BUILD, Api
from tests.api.operator_kit import (
    GPU,
    SECRET,
    Cluster,
    Pod,
    Process,
    System,
    all_complete,
    completes,
    completes_after,
    condition,
    eventually,
    holds,
    new_namespace,
    operator_process,
    phase,
    running_system,
)
from tests.support.postgres import EmbeddedPostgres
from tests.unit.chart.helm import our_chart

SYSTEM = "tuning-system"
ACCOUNT = "tuning-operator"

pytestmark = SETUP_MAY_BUILD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="module")
def operator_kubeconfig(api: Api, folder: Path) -> Path:
    """The operator has the rights that the chart gives it, and no others."""
    chart = our_chart()
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    rights = [
        found
        for found in chart.render({"operator": {"replicas": 2}}).all
        if found["kind"] in kinds and found["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    ]
    assert len(rights) == 7
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    return kubeconfig_of(api, [namespace, *rights], folder)


def kubeconfig_of(api: Api, manifests: list[dict[str, Any]], folder: Path) -> Path:
    """Return a kubeconfig whose user is the chart's service account."""
    kubectl = [api.kubectl_path, "--kubeconfig", str(api.kubeconfig)]
    subprocess.run(
        [*kubectl, "apply", "-f", "-"],
        input=yaml.safe_dump_all(manifests),
        text=True,
        check=True,
        timeout=240,
    )
    token = subprocess.run(
        [*kubectl, "-n", SYSTEM, "create", "token", ACCOUNT],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    ).stdout.strip()
    content = yaml.safe_load(api.kubeconfig.read_text())
    for user in content["users"]:
        user["user"] = {"token": token}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def system(operator_kubeconfig: Path, folder: Path) -> Iterator[System]:
    with (
        EmbeddedPostgres() as postgres,
        running_system(folder, operator_kubeconfig, postgres.url) as system,
    ):
        yield system


@pytest.fixture
async def cluster(system: System, kubeconfig: Path) -> AsyncIterator[Cluster]:
    async with new_namespace(kubeconfig, system) as cluster:
        yield cluster


async def test_a_study_from_apply_to_the_best_parameters(cluster: Cluster) -> None:
    config_maps: set[str] = set()

    async def life(pod: Pod) -> None:
        """A kubelet would wait for what the pod mounts."""
        mounted = {v["configMap"]["name"] for v in pod.body["spec"]["volumes"] if "configMap" in v}
        for name in mounted:
            assert (await cluster.node.core.read_namespaced_config_map(name, cluster.namespace)).immutable
        config_maps.update(mounted)
        await completes(pod)

    cluster.node.life = life
    await cluster.apply(maxTrials=6)
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["phase"] == "Completed"
    assert status["progress"] == "6/6"
    assert status["trials"] == all_complete(6)
    assert status["best"]["number"] == 5
    assert 0 <= status["best"]["parameters"]["x"] <= 1
    assert status["completionTime"] >= status["startTime"]
    assert set(await cluster.jobs()) == {f"mnist-{n}" for n in range(6)}
    assert len(cluster.node.jobs) == 6, "one Job a trial"
    assert len(config_maps) == 1, "the trainer"
    events = await cluster.wait_for_events("Started", "NewBest", "Completed")
    assert "MaxTrialsReached" in events["Completed"]


async def test_null_among_the_choices(cluster: Cluster) -> None:
    """The rule against changes of the search space must not refuse the operator's own writes."""
    weight = {"name": "weight", "type": "categorical", "choices": [None, "balanced"]}
    strength = {"name": "x", "type": "float", "low": 0, "high": 1}
    await cluster.apply(
        maxTrials=2,
        searchSpace=[weight, strength | {"when": {"parameter": "weight", "equals": None}}],
        initialTrials=[{"weight": "balanced"}, {"weight": None, "x": 0.5}],
    )
    status = await cluster.wait(phase("Completed", "Failed"))
    assert (status["phase"], status["progress"]) == ("Completed", "2/2")
    assert status["best"] == {"number": 1, "values": [1.0], "parameters": {"weight": "null", "x": 0.5}}


async def test_parallelism_bounds_what_runs(cluster: Cluster) -> None:
    running: set[int] = set()
    enough = asyncio.Event()

    async def life(pod: Pod) -> None:
        await pod.runs()
        running.add(pod.trial)
        counts = (await cluster.record())["counts"]
        assert counts["running"] <= 3
        if len(running) == 3:
            enough.set()
        await enough.wait()
        running.discard(pod.trial)
        await pod.completes(1.0)

    cluster.node.life = life
    await cluster.apply(maxTrials=9, parallelism=3)
    await cluster.wait(phase("Completed"))
    assert len(cluster.node.pods) == 9


async def test_a_pruned_pod_that_goes_on_is_deleted(cluster: Cluster) -> None:
    """The median pruner stops the second trial; its pod does not care."""
    deleted = asyncio.Event()

    async def life(pod: Pod) -> None:
        await pod.runs()
        if pod.trial == 0:
            assert not await pod.report(1, 10.0)
            await pod.completes(10.0)
            return
        assert await pod.report(1, 0.0)
        try:
            await asyncio.Event().wait()
        finally:
            deleted.set()

    cluster.node.life = life
    pruner = {"name": "MedianPruner", "args": {"n_startup_trials": 1, "n_warmup_steps": 0}}
    await cluster.apply(maxTrials=2, parallelism=1, pruner=pruner, trial={"pruneGrace": "1s"})
    status = await cluster.wait(phase("Completed"))
    assert status["trials"]["pruned"] == 1
    await asyncio.wait_for(deleted.wait(), 500)
    await cluster.wait_for_events("TrialPruned")


async def test_a_crash_is_reported_with_how_to_fix_it(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.runs()
        await pod.fails(137, "OOMKilled")

    cluster.node.life = life
    await cluster.apply(parallelism=1, maxFailedTrials=1)
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["phase"] == "Failed"
    assert status["trials"]["failed"] == 2
    message = condition(status, "Failed")["message"]
    assert "maxFailedTrials" in message
    assert "resources.limits.memory" in message
    failure = (await cluster.record())["recentFailures"][-1]["failure"]
    assert failure["category"] == "OutOfMemory"


def beside_a_proxy(cluster: Cluster) -> dict[str, Any]:
    """A trial whose pod has a second container."""
    containers = [{"name": name, "image": "i"} for name in ("trainer", "proxy")]
    template = {"spec": {"nodeSelector": {"for": cluster.namespace}, "containers": containers}}
    return {"template": template, "pruneGrace": "10s"}


@pytest.mark.parametrize("killed", [True, False], ids=["out of memory", "with a result"])
async def test_a_trainer_that_exits_beside_a_living_proxy(cluster: Cluster, killed: bool) -> None:
    """Its end is seen at once, no pod follows it, and its Job and pod are kept."""

    async def life(pod: Pod) -> None:
        await pod.runs()
        if not killed:
            await pod.post("result", {"state": "COMPLETE", "values": [1.0]})
        await pod.exits_beside_a_proxy(*((137, "OOMKilled") if killed else (0, "Completed")))

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1, trial=beside_a_proxy(cluster))
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["phase"] == ("Failed" if killed else "Completed")
    if killed:
        assert (await cluster.record())["recentFailures"][-1]["failure"]["category"] == "OutOfMemory"
    await eventually(cluster.nothing_runs)
    await asyncio.gather(*cluster.node._lives.values())
    await eventually(lambda: ended(cluster))
    assert [pod.trial for pod in cluster.node.pods] == [0], "no other pod follows"
    pods = await cluster.node.core.list_namespaced_pod(cluster.namespace)
    assert [pod.status.phase for pod in pods.items] == ["Failed"]


async def ended(cluster: Cluster) -> bool:
    """Return whether the only Job has ended."""
    [job] = (await client.BatchV1Api(cluster.connection).list_namespaced_job(cluster.namespace)).items
    return any(c.type in ("Complete", "Failed") and c.status == "True" for c in job.status.conditions or [])


async def test_pods_that_were_lost_are_replaced(cluster: Cluster) -> None:
    """One is deleted by hand, one is rejected by its node; the third completes the trial."""
    begun = asyncio.Event()

    async def life(pod: Pod) -> None:
        if len(cluster.node.pods) == 1:
            await pod.runs()
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await pod.fails(143)
        elif len(cluster.node.pods) == 2:
            await pod.is_rejected("UnexpectedAdmissionError", "no healthy devices present")
        else:
            await pod.runs()
            await pod.completes(1.0)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1)
    await asyncio.wait_for(begun.wait(), 500)
    await cluster.node.core.delete_namespaced_pod(cluster.node.pods[0].name, cluster.namespace)
    stalled = condition(await cluster.wait(holds("Stalled")), "Stalled")
    assert stalled["reason"] == "PodFailed"
    assert "UnexpectedAdmissionError" in stalled["message"]
    assert "no healthy devices present" in stalled["message"]
    status = await cluster.wait(phase("Completed", "Failed"))
    assert (status["trials"]["complete"], status["trials"]["failed"]) == (1, 0)
    assert [pod.trial for pod in cluster.node.pods] == [0, 0, 0]


async def test_a_node_that_rejects_pods_fails_no_trial(cluster: Cluster) -> None:
    """The scheduler prefers it. A deleted pod that was killed is replaced."""
    black_hole, begun = f"black-hole-{cluster.namespace}", asyncio.Event()
    there = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [black_hole]}]}
    preferred = [{"weight": 100, "preference": there}]
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}

    async def life(pod: Pod) -> None:
        if pod.body["spec"]["nodeName"] == black_hole:
            await pod.is_rejected("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu")
            return
        await pod.runs()
        if pod.trial == 2 and not begun.is_set():
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await pod.fails(137)
        await pod.completes(1.0)

    cluster.node.life = life
    await cluster.node.register(black_hole, 1000)
    try:
        await cluster.apply(maxTrials=6, parallelism=2, maxFailedTrials=0, pod={"affinity": affinity})
        await asyncio.wait_for(begun.wait(), 500)
        *_, running = (pod for pod in cluster.node.pods if pod.trial == 2)
        await cluster.node.core.delete_namespaced_pod(running.name, cluster.namespace)
        status = await cluster.wait(phase("Completed", "Failed"))
    finally:
        await cluster.node.core.delete_node(black_hole)
        cluster.system.operator.stop()  # it would avoid the node in the studies of other tests, too
        await asyncio.to_thread(cluster.system.operator.start)
    assert (status["trials"]["complete"], status["trials"]["failed"]) == (6, 0)
    rejected = [pod for pod in cluster.node.pods if pod.body["spec"]["nodeName"] == black_hole]
    assert rejected
    assert {pod.trial for pod in rejected} <= {0, 1}, "those of later trials did not go there"
    assert "OutOfnvidia.com/gpu" in (await cluster.wait_for_events("PodFailed"))["PodFailed"]


async def test_trials_run_where_the_namespace_enforces_restricted(cluster: Cluster) -> None:
    """The template says nothing about it: the API server would reject its pods."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await cluster.node.core.patch_namespace(cluster.namespace, {"metadata": {"labels": labels}})
    await cluster.apply(maxTrials=1, parallelism=1)
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["trials"]["complete"] == 1


async def test_a_pod_without_python_is_reported(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.fails(128, "StartError", 'exec: "python3": executable file not found in $PATH')

    cluster.node.life = life
    await cluster.apply(parallelism=1, maxFailedTrials=0)
    status = await cluster.wait(phase("Failed"))
    assert "spec.trial.python" in condition(status, "Failed")["message"]


async def test_an_unpullable_image_is_reported(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.waits("ImagePullBackOff", 'Back-off pulling image "python:3.12"')
        await asyncio.Event().wait()

    cluster.node.life = life
    await cluster.apply(parallelism=1)
    stalled = condition(await cluster.wait(holds("Stalled")), "Stalled")
    assert stalled["reason"] == "ImagePull"
    assert "python:3.12" in stalled["message"]
    await cluster.wait_for_events("ImagePull")


async def test_a_request_for_more_gpus_than_any_node_has_is_reported(cluster: Cluster) -> None:
    container = {"name": "trainer", "image": "i", "resources": {"limits": {"nvidia.com/gpu": 64}}}
    await cluster.apply(parallelism=1, trial={"template": {"spec": {"containers": [container]}}})
    stalled = condition(await cluster.wait(holds("Stalled")), "Stalled")
    assert stalled["reason"] == "Unschedulable"
    assert "requests 64 nvidia.com/gpu, but the largest node has 4" in stalled["message"]


async def test_a_pod_that_the_quota_forbids_is_reported(cluster: Cluster) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await cluster.node.core.create_namespaced_resource_quota(cluster.namespace, quota)
    await cluster.apply(parallelism=1)
    stalled = condition(await cluster.wait(holds("Stalled")), "Stalled")
    assert stalled["reason"] == "Quota"
    assert "exceeded quota: none" in stalled["message"]


async def test_a_template_that_kubernetes_rejects_is_reported_and_can_be_fixed(cluster: Cluster) -> None:
    def template(**resources: Any) -> dict[str, Any]:
        container = {"name": "trainer", "image": "python:3.12", "resources": resources}
        selector = {"for": cluster.namespace}
        return {"template": {"spec": {"nodeSelector": selector, "containers": [container]}}}

    await cluster.apply(maxTrials=1, trial=template(limits={"cpu": "1"}, requests={"cpu": "2"}))
    accepted = condition(await cluster.wait(holds("Accepted", "False")), "Accepted")
    path = "spec.trial.template.spec.containers[0].resources.requests"
    assert accepted["message"].startswith(
        f'{path}: Invalid value: "2": must be less than or equal to cpu limit'
    )
    assert await cluster.jobs() == {}
    await cluster.patch(trial=template(limits={"cpu": "2"}))
    status = await cluster.wait(phase("Completed"))
    assert condition(status, "Stalled")["status"] == "False"


async def test_a_spec_that_the_study_server_rejects_is_reported_and_can_be_fixed(cluster: Cluster) -> None:
    await cluster.apply(sampler={"name": "TPESampler", "args": {"sede": 1}})
    await cluster.apply("other")
    status = await cluster.wait(holds("Accepted", "False"))
    assert "sampler" in condition(status, "Accepted")["message"]
    assert status["phase"] == "Pending"
    await cluster.wait(phase("Completed"), "other")
    assert await cluster.jobs() == {}
    await cluster.patch(sampler={"name": "TPESampler", "args": {"sede": None, "seed": 1}})
    await cluster.wait(phase("Completed"))


async def test_a_drained_pod_is_no_failure(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.runs()
        if len(cluster.node.pods) == 1:
            await pod.is_disrupted()
        else:
            await pod.completes(1.0)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1)
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["trials"] == {
        "total": 1,
        "pending": 0,
        "running": 0,
        "complete": 1,
        "pruned": 0,
        "failed": 0,
    }
    assert [pod.trial for pod in cluster.node.pods] == [0, 0]
    assert len(cluster.node.jobs) == 1


async def test_a_deleted_job_comes_back_with_its_trial(cluster: Cluster) -> None:
    first = asyncio.Event()

    async def life(pod: Pod) -> None:
        await pod.runs()
        if len(cluster.node.pods) == 1:
            first.set()
            await asyncio.Event().wait()
        await pod.completes(1.0)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1)
    await first.wait()
    batch = client.BatchV1Api(cluster.connection)
    await batch.delete_namespaced_job("mnist-0", cluster.namespace, propagation_policy="Background")
    status = await cluster.wait(phase("Completed"))
    assert status["trials"]["complete"] == 1
    assert len(cluster.node.jobs) == 2


async def test_suspend_and_resume(cluster: Cluster) -> None:
    go_on = asyncio.Event()
    cluster.node.life = completes_after(go_on)
    await cluster.apply()
    await cluster.wait(lambda status: status.get("trials", {}).get("running") == 2)
    await cluster.patch(suspend=True)
    await cluster.wait(phase("Suspended"))
    go_on.set()
    idle = await cluster.wait(lambda status: status["trials"]["running"] + status["trials"]["pending"] == 0)
    assert idle["phase"] == "Suspended"
    assert idle["progress"] == "2/4"
    await cluster.patch(suspend=False)
    done = await cluster.wait(phase("Completed"))
    assert done["progress"] == "4/4"
    assert done["startTime"] >= condition(idle, "Suspended")["lastTransitionTime"]
    await cluster.wait_for_events("Suspended", "Resumed")


async def test_raising_max_trials_resumes(cluster: Cluster) -> None:
    await cluster.apply(maxTrials=2)
    await cluster.wait(phase("Completed"))
    await cluster.patch(maxTrials=3)
    done = await cluster.wait(lambda status: status["progress"] == "3/3" and status["phase"] == "Completed")
    assert done["trials"]["complete"] == 3
    assert len(cluster.node.jobs) == 3


async def test_a_timeout_ends_what_runs(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.runs()
        await asyncio.Event().wait()

    cluster.node.life = life
    await cluster.apply(timeout="3s")
    status = await cluster.wait(
        lambda s: s.get("phase") == "Completed" and s["trials"]["running"] + s["trials"]["pending"] == 0
    )
    assert condition(status, "Complete")["reason"] == "TimeoutReached"
    assert status["trials"] == {
        "total": 2,
        "pending": 0,
        "running": 0,
        "complete": 0,
        "pruned": 2,
        "failed": 0,
    }
    await eventually(cluster.no_jobs)


async def test_a_deleted_study_takes_its_jobs_and_leaves_its_record(cluster: Cluster) -> None:
    async def life(pod: Pod) -> None:
        await pod.runs()
        if pod.trial < 2:
            await pod.completes(1.0)
        else:
            await asyncio.Event().wait()

    cluster.node.life = life
    await cluster.apply(maxTrials=20)
    await cluster.wait(lambda s: s.get("trials", {}).get("complete") == 2 and s["trials"]["running"] == 2)
    await cluster.delete()
    await eventually(cluster.no_jobs)
    await eventually(cluster.nothing_runs)
    record = await cluster.record()
    assert record["counts"]["complete"] == 2
    assert (record["counts"]["pruned"], record["counts"]["fail"]) == (2, 0), "nothing went wrong with them"


async def test_a_deleted_study_goes_on_when_it_is_applied_again(cluster: Cluster) -> None:
    await cluster.apply(maxTrials=2)
    await cluster.wait(phase("Completed"))
    await cluster.delete()
    await eventually(cluster.no_jobs)
    await cluster.apply(maxTrials=3)
    status = await cluster.wait(phase("Completed"))
    assert status["progress"] == "3/3"
    assert set(await cluster.jobs()) == {"mnist-2"}
    accepted = condition(status, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("True", "RecordContinued")
    assert "whose 2 trials count towards maxTrials" in accepted["message"]
    assert "apply it again with existingRecord: Replace" in accepted["message"]


async def test_a_record_that_does_not_fit_is_refused_until_it_is_replaced(cluster: Cluster) -> None:
    await cluster.apply(maxTrials=2, searchSpace=[{"name": "x", "type": "float", "low": 0, "high": 1}])
    await cluster.wait(phase("Completed"))
    await cluster.delete()
    await eventually(cluster.no_jobs)
    await cluster.apply(maxTrials=2, searchSpace=[{"name": "x", "type": "float", "low": 5, "high": 6}])
    status = await cluster.wait(holds("Accepted", "False"))
    message = condition(status, "Accepted")["message"]
    assert message.startswith("spec.searchSpace[0]: trial 0 in the record of ")
    assert "set existingRecord to Replace, which deletes the record and starts from scratch" in message
    assert (status["phase"], status.get("best")) == ("Pending", None)
    await cluster.patch(existingRecord="Replace")
    status = await cluster.wait(phase("Completed"))
    assert status["progress"] == "2/2"
    assert status["best"]["parameters"]["x"] >= 5
    assert condition(status, "Accepted")["reason"] == "Valid"


async def test_a_study_that_is_replaced_goes_on(cluster: Cluster) -> None:
    """As `kubectl replace --force` does: what was running is not a failure of the new study."""
    released = asyncio.Event()
    cluster.node.life = completes_after(released)
    await cluster.apply(maxTrials=5, maxFailedTrials=0, parallelism=2)
    await cluster.wait(lambda s: s.get("trials", {}).get("running") == 2)
    await cluster.delete()
    await cluster.apply(maxTrials=5, maxFailedTrials=0, parallelism=2)
    await cluster.wait(lambda s: s.get("trials", {}).get("pruned") == 2)
    released.set()
    status = await cluster.wait(phase("Completed"))
    assert (status["trials"]["complete"], status["trials"]["failed"]) == (3, 0)
    assert status["trials"]["pruned"] == 2


async def test_a_refit_replaces_the_one_before_only_when_its_pod_is_gone(cluster: Cluster) -> None:
    """The first refit hangs; then there is a better trial."""
    hangs = asyncio.Event()
    refits: list[Pod] = []

    async def life(pod: Pod) -> None:
        if not pod.final:
            await completes(pod)
            return
        refits.append(pod)
        await pod.runs()
        if pod.trial == 0:
            hangs.set()
            await asyncio.Event().wait()
        found = await cluster.node.core.list_namespaced_pod(
            cluster.namespace, label_selector=f"{names.LABEL_ROLE}={names.ROLE_FINAL}"
        )
        assert [item.metadata.name for item in found.items] == [pod.name], "the one before is gone"
        await pod.post("attributes", {"userAttrs": {"model": "/models/1.pt"}})
        await pod.completes(0.5)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1, refit={"objective": "train:final"})
    await hangs.wait()
    running = await cluster.wait(lambda status: status.get("refit", {}).get("phase") == "Running")
    assert (running["phase"], running["refit"]["trial"]) == ("Completed", 0)
    await cluster.patch(maxTrials=2)
    status = await cluster.wait(lambda status: status.get("refit", {}).get("phase") == "Completed")
    assert status["refit"] == {
        "phase": "Completed", "job": "mnist-refit", "trial": 1, "values": [0.5], "model": "/models/1.pt",
    }  # fmt: skip
    assert [pod.trial for pod in refits] == [0, 1]
    assert status["trials"]["total"] == 2
    await cluster.wait_for_events("RefitStarted", "RefitCompleted")


async def test_a_refit_is_tried_again_and_then_has_failed(cluster: Cluster) -> None:
    """The operator is killed meanwhile; a drained pod is no try."""
    tries: list[str] = []

    async def life(pod: Pod) -> None:
        if not pod.final:
            await completes(pod)
            return
        tries.append(pod.name)
        await pod.runs()
        if len(tries) == 1:
            await pod.is_disrupted()
            return
        failure = {"category": "Exception", "message": f"ValueError: try {len(tries)}", "traceback": "..."}
        await pod.post("result", {"state": "FAIL", "failure": failure})
        if len(tries) == 2:
            cluster.system.operator.kill()
            await asyncio.to_thread(cluster.system.operator.start)
        await pod.fails(1)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1, refit={"retries": 1})
    status = await cluster.wait(lambda status: status.get("refit", {}).get("phase") == "Failed")
    assert len(tries) == 3
    assert "try 3" in status["refit"]["message"]
    assert status["phase"] == "Completed"
    record = (await cluster.record())["refit"]
    assert (record["state"], record["failure"]["message"]) == ("FAIL", "ValueError: try 3")


async def test_a_refit_without_retries_gets_another_pod_for_a_deleted_one(cluster: Cluster) -> None:
    begun, refits = asyncio.Event(), list[Pod]()

    async def life(pod: Pod) -> None:
        if not pod.final:
            await completes(pod)
            return
        refits.append(pod)
        await pod.runs()
        if len(refits) == 2:
            await pod.completes(0.5)
            return
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await pod.fails(143)

    cluster.node.life = life
    await cluster.apply(maxTrials=1, parallelism=1, refit={"retries": 0})
    await asyncio.wait_for(begun.wait(), 500)
    await cluster.node.core.delete_namespaced_pod(refits[0].name, cluster.namespace)
    ended = ("Completed", "Failed")
    status = await cluster.wait(lambda status: status.get("refit", {}).get("phase") in ended)
    assert (status["refit"]["phase"], status["refit"]["values"]) == ("Completed", [0.5])


async def test_a_deleted_study_takes_its_refit_with_it(cluster: Cluster) -> None:
    runs = asyncio.Event()

    async def life(pod: Pod) -> None:
        if not pod.final:
            await completes(pod)
            return
        await pod.runs()
        runs.set()
        await asyncio.Event().wait()

    cluster.node.life = life
    await cluster.apply(maxTrials=1, refit={})
    await runs.wait()
    await cluster.delete()
    await eventually(cluster.no_jobs)

    async def over() -> bool:
        refit = (await cluster.record())["refit"]
        return refit is None or refit["state"] != "RUNNING"

    await eventually(over)


async def test_killing_the_operator_loses_and_doubles_nothing(cluster: Cluster) -> None:
    killed = 0

    async def life(pod: Pod) -> None:
        nonlocal killed
        if pod.trial in (1, 4, 7) and killed < 3:
            killed += 1
            cluster.system.operator.kill()
            await asyncio.to_thread(cluster.system.operator.start)
        await completes(pod)

    cluster.node.life = life
    await cluster.apply(maxTrials=10, parallelism=3)
    status = await cluster.wait(phase("Completed", "Failed"))
    assert killed == 3
    assert status["trials"] == all_complete(10)
    assert len(cluster.node.jobs) == 10
    assert len(cluster.node.pods) == 10


async def test_killing_the_study_server_loses_and_doubles_nothing(cluster: Cluster) -> None:
    """Pods keep their results until the server is back, as the trainer does."""
    server, killed = cluster.system.server, asyncio.Event()

    async def life(pod: Pod) -> None:
        await pod.runs()
        if pod.trial == 2 and not killed.is_set():
            server.kill()
            killed.set()
            await cluster.wait(holds("Stalled"))
            await asyncio.to_thread(server.start)
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await pod.completes(float(pod.trial))
                return
            await asyncio.sleep(0.2)

    cluster.node.life = life
    await cluster.apply(maxTrials=8, parallelism=3)
    await killed.wait()
    stalled = condition(await cluster.wait(holds("Stalled")), "Stalled")
    assert stalled["reason"] == "StudyServerUnavailable"
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["trials"] == all_complete(8)
    assert condition(status, "Stalled")["status"] == "False"
    assert len(cluster.node.jobs) == 8
    assert len(cluster.node.pods) == 8


async def test_two_operators_do_no_harm(cluster: Cluster, folder: Path, operator_kubeconfig: Path) -> None:
    twin = operator_process(folder / "twin", operator_kubeconfig, cluster.system.server_url)
    await asyncio.to_thread(twin.start)
    try:
        await cluster.apply(maxTrials=12, parallelism=4)
        status = await cluster.wait(phase("Completed", "Failed"))
    finally:
        twin.kill()
    assert status["trials"] == all_complete(12)
    assert len(cluster.node.jobs) == 12
    assert len(cluster.node.pods) == 12


async def test_an_elastic_study_takes_idle_gpus_and_gives_them_back(cluster: Cluster) -> None:
    """The node has four GPUs. The other pod is in another namespace and needs two of them."""
    ends: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def life(pod: Pod) -> None:
        await pod.runs()
        await ends[pod.trial].wait()
        await pod.completes(1.0)

    async def all_gpus_are_used() -> bool:
        return cluster.node.at_once == 4

    async def the_other_runs() -> bool:
        pod = await cluster.node.core.read_namespaced_pod("other", "default")
        return pod.spec.node_name is not None

    cluster.node.life = life
    await cluster.apply(maxTrials=12, parallelism=8, minParallelism=1)
    await eventually(all_gpus_are_used)
    await cluster.wait(lambda status: status.get("parallelism") == 5)
    container = {"name": "main", "image": "any", "resources": {"limits": {GPU: "2"}}}
    spec = {"nodeSelector": {"for": cluster.namespace}, "containers": [container]}
    await cluster.node.core.create_namespaced_pod("default", {"metadata": {"name": "other"}, "spec": spec})
    try:
        status = await cluster.wait(lambda status: status.get("parallelism") == 1)
        assert condition(status, "Stalled")["reason"] == "YieldingGpus"
        assert "A pod of another namespace waits for GPUs" in condition(status, "Stalled")["message"]
        for number in range(3):  # one of the GPUs goes to the trial that was already waiting
            ends[number].set()
        await eventually(the_other_runs)
        assert {pod.trial for pod in cluster.node.pods} == {0, 1, 2, 3, 4}
    finally:
        await cluster.node.core.delete_namespaced_pod("other", "default", grace_period_seconds=0)
    await eventually(all_gpus_are_used)
    for number in range(12):
        ends[number].set()
    status = await cluster.wait(phase("Completed"))
    assert status["trials"]["complete"] == 12
    assert "YieldingGpus" in await cluster.events()


async def test_studies_share_the_limit_of_their_namespace(cluster: Cluster) -> None:
    operator, go_on, at_once, most = cluster.system.operator, asyncio.Event(), 0, 0

    async def life(pod: Pod) -> None:
        nonlocal at_once, most
        await pod.runs()
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        await pod.completes(1.0)

    async def three_run() -> bool:
        return at_once == 3

    cluster.node.life = life
    operator.stop()
    await asyncio.to_thread(operator.start, TUNING_MAX_TRIALS_PER_NAMESPACE="3")
    try:
        await cluster.apply("first", maxTrials=5, parallelism=4)
        await eventually(three_run)
        await cluster.apply("second", maxTrials=4, parallelism=4)
        status = await cluster.wait(
            lambda status: condition(status, "Stalled").get("reason") == "NamespaceLimit", "second"
        )
        assert "At most 0 trials of this study may run at present" in condition(status, "Stalled")["message"]
        go_on.set()
        for name, trials in (("first", 5), ("second", 4)):
            status = await cluster.wait(phase("Completed"), name)
            assert status["trials"]["complete"] == trials
        assert most == 3
    finally:
        operator.stop()
        await asyncio.to_thread(operator.start, TUNING_MAX_TRIALS_PER_NAMESPACE="0")


async def metric(operator: Process, name: str) -> list[Sample]:
    async with httpx.AsyncClient(timeout=120) as http:
        text = (await http.get(operator.url("/metrics"))).text
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


async def test_another_operator_takes_over(cluster: Cluster, folder: Path, operator_kubeconfig: Path) -> None:
    """When the leader is killed, and when it stops. The one that waits requests nothing but the Lease."""
    go_on = asyncio.Event()
    cluster.node.life = completes_after(go_on)
    server_url, names_of = cluster.system.server_url, ("first", "second")
    operators = [operator_process(folder / name, operator_kubeconfig, server_url) for name in names_of]
    first, second = operators

    async def start(operator: Process, name: str) -> None:
        lease = f"{SYSTEM}/tuning-operator"
        await asyncio.to_thread(operator.start, TUNING_LEASE=lease, TUNING_IDENTITY=name)

    async def only_leads(leader: Process) -> bool:
        return [await leads(operator) for operator in operators] == [o is leader for o in operators]

    async def running() -> bool:
        return cluster.node.at_once == 2

    cluster.system.operator.stop()
    try:
        await start(first, "first")
        await eventually(lambda: leads(first))
        await start(second, "second")
        await cluster.apply(maxTrials=4, parallelism=2)
        await eventually(running)
        assert await only_leads(first)
        requested = await metric(second, "tuning_operator_kubernetes_requests_total")
        assert {sample.labels["kind"] for sample in requested} == {"Lease"}

        first.kill()
        go_on.set()
        status = await cluster.wait(phase("Completed"))
        assert status["trials"]["complete"] == 4
        assert len(cluster.node.jobs) == len(cluster.node.pods) == 4
        assert await leads(second)

        await start(first, "first")
        assert await only_leads(second)
        assert second.stop() == 0
        await eventually(lambda: leads(first))
    finally:
        for operator in operators:
            operator.kill()
        await asyncio.to_thread(cluster.system.operator.start)


async def leads(operator: Process) -> bool:
    [sample] = await metric(operator, "tuning_operator_leader")
    return sample.value == 1


async def test_a_study_deleted_while_the_operator_was_away(cluster: Cluster) -> None:
    running = asyncio.Event()

    async def life(pod: Pod) -> None:
        await pod.runs()
        running.set()
        await asyncio.Event().wait()

    cluster.node.life = life
    await cluster.apply(parallelism=1)
    await running.wait()
    cluster.system.operator.kill()
    await cluster.delete()
    await asyncio.to_thread(cluster.system.operator.start)
    await eventually(cluster.nothing_runs)


async def test_an_operator_of_some_namespaces_leaves_the_others_alone(cluster: Cluster) -> None:
    operator = cluster.system.operator
    operator.stop()
    await asyncio.to_thread(operator.start, TUNING_NAMESPACES='["default"]')
    await cluster.apply()
    served = replace(cluster, namespace="default")
    await served.apply("barrier", suspend=True)
    await served.wait(phase("Suspended"), "barrier")
    await served.delete("barrier")
    assert "status" not in await cluster.get()
    operator.stop()
    await asyncio.to_thread(operator.start, TUNING_NAMESPACES=f'["default", "{cluster.namespace}"]')
    await cluster.wait(phase("Completed"))
    operator.stop()
    await asyncio.to_thread(operator.start, TUNING_NAMESPACES="[]")


async def test_sigterm_ends_the_operator(system: System) -> None:
    assert system.operator.stop() == 0
    system.operator.start()


TRIAL = """
import optuna

def objective(trial):
    x = trial.suggest_float("x", -5, 5)
    n = trial.suggest_int("n", 1, 8)
    scale = {"a": 1, "b": 2}[trial.suggest_categorical("kind", ["a", "b"])]
    for step in range(3):
        trial.report((x - 1) ** 2 * scale + n - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return (x - 1) ** 2 * scale + n
"""
SEEDED: dict[str, Any] = {
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "searchSpace": [
        {"name": "x", "type": "float", "low": -5, "high": 5},
        {"name": "n", "type": "int", "low": 1, "high": 8},
        {"name": "kind", "type": "categorical", "choices": ["a", "b"]},
    ],
    "sampler": {"name": "TPESampler", "args": {"seed": 7, "n_startup_trials": 4}},
    "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 2}},
    "maxTrials": 10,
    "parallelism": 1,
}


async def test_a_seed_gives_the_same_trials_on_a_cluster_and_on_a_machine(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(TRIAL)

    async def life(pod: Pod) -> None:
        """Run the trainer with the pod's environment, on this machine's files."""
        token = tmp_path / f"token-{pod.trial}"
        token.write_text(mint_pod(SECRET, cluster.namespace, pod.name))
        given = {e["name"]: e["value"] for e in pod.body["spec"]["containers"][0]["env"]}
        own = {"TUNING_TOKEN_FILE": str(token), "TUNING_SOURCE": str(tmp_path)}
        await pod.runs()
        trainer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tuning_trainer", "objective", "train:objective",
            env={**os.environ, **given, **own}, cwd=tmp_path,
        )  # fmt: skip
        assert await trainer.wait() == 0
        await pod.succeeds()

    cluster.node.life = life
    await cluster.apply("seeded", **SEEDED)
    await cluster.wait(phase("Completed"), "seeded")
    headers = {"Authorization": f"Bearer {mint_operator(SECRET)}"}
    async with httpx.AsyncClient(base_url=cluster.system.server_url, headers=headers, timeout=120) as http:
        reply = await http.get(f"/v1/studies/{cluster.namespace}/seeded/record")
    on_cluster = FinishedStudy.model_validate_json(reply.content)

    template = {"spec": {"containers": [{"name": "trainer", "image": "any"}]}}
    body = {
        "apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "seeded"},
        "spec": {**SEEDED, "trial": {
            "objective": "train:objective", "source": {"configMap": "code"}, "template": template
        }},
    }  # fmt: skip
    code = {"kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"train.py": TRIAL}}
    (tmp_path / "study.yaml").write_text("\n---\n".join(map(json.dumps, [body, code])))  # n is no boolean
    with tempfile.TemporaryDirectory(prefix="tuning-local-", ignore_cleanup_errors=True) as home:
        command = [Path(sys.executable).with_name("tuning"), "run", "study.yaml", "--data", home]
        await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, check=True, timeout=600)
        studies = LocalStudies(Home(Path(home)))
        with studies.record(studies.get("seeded")) as record:
            on_this_machine = record.read()

    assert [_content(trial) for trial in on_this_machine.trials] == [
        _content(trial) for trial in on_cluster.trials
    ]
    assert {trial.state for trial in on_cluster.trials} == {"COMPLETE", "PRUNED"}


def _content(trial: FinishedTrial) -> dict[str, Any]:
    return trial.model_dump(exclude={"started", "finished"})
