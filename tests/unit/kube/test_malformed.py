"""Pod templates that the CRD lets pass, though they are no pods: nulls, and fields of a wrong shape."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from tuning_operator.kube.jobs.manifests import job
from tuning_operator.kube.plan.usage import gpus
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.plan.work import Refit, Trial, Work, Worker
from tuning_operator.resource.podshape import shape_problems, without_nulls

from tests.unit.kube.builders import GPU, study
from tests.unit.kube.world import KEY, RUNTIME, World

POD = "trial.template.spec"
TRAINER = f"{POD}.containers[0]"


def template(
    pod: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None, **trainer: Any
) -> dict[str, Any]:
    container = {"name": "trainer", "image": "i", **trainer}
    with_metadata = {} if metadata is None else {"metadata": metadata}
    return {**with_metadata, "spec": {"containers": [container], **(pod or {})}}


NULLS = {
    "initContainers": template({"initContainers": None}),
    "volumes": template({"volumes": None}),
    "affinity": template({"affinity": {"nodeAffinity": None}}),
    "pod security": template({"securityContext": None}),
    "labels": template(metadata={"labels": None}),
    "metadata": {**template(), "metadata": None},
    "env": template(env=None),
    "value": template(env=[{"name": "A", "value": None}]),
    "volumeMounts": template(volumeMounts=None),
    "resources": template(resources=None),
    "limits": template(resources={"limits": None}),
    "gpus": template(resources={"limits": {GPU: None}}),
    "security": template(securityContext={"capabilities": None}),
}

MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "env as fields": (template(env={"A": "1"}), f"{TRAINER}.env"),
    "a variable without a name": (template(env=[{"value": "1"}]), f"{TRAINER}.env[0].name"),
    "a variable as text": (template(env=["A=1"]), f"{TRAINER}.env[0]"),
    "an init container without a name": (
        template({"initContainers": [{"image": "i"}]}),
        f"{POD}.initContainers[0].name",
    ),
    "a volume without a name": (template({"volumes": [{"emptyDir": {}}]}), f"{POD}.volumes[0].name"),
    "volumes as fields": (template({"volumes": {"data": {"emptyDir": {}}}}), f"{POD}.volumes"),
    "a volume that is null": (template({"volumes": [None]}), f"{POD}.volumes[0]"),
    "a mount without a name": (
        template(volumeMounts=[{"mountPath": "/d"}]),
        f"{TRAINER}.volumeMounts[0].name",
    ),
    "a mount without a path": (
        template(volumeMounts=[{"name": "d"}]),
        f"{TRAINER}.volumeMounts[0].mountPath",
    ),
    "labels as text": (template(metadata={"labels": "team=ml"}), "trial.template.metadata.labels"),
    "resources as a list": (template(resources=["1 GPU"]), f"{TRAINER}.resources"),
    "limits as a list": (template(resources={"limits": [GPU]}), f"{TRAINER}.resources.limits"),
    "GPUs as text": (template(resources={"limits": {GPU: "one"}}), f"{TRAINER}.resources.limits.{GPU}"),
    "GPUs that are not a number": (
        template(resources={"limits": {GPU: "nan"}}), f"{TRAINER}.resources.limits.{GPU}"
    ),
    "endless GPUs": (template(resources={"limits": {GPU: "inf"}}), f"{TRAINER}.resources.limits.{GPU}"),
    "memory": (template(resources={"limits": {"memory": "1.5.2Gi"}}), f"{TRAINER}.resources.limits.memory"),
    "the memory of an init container": (
        template({"initContainers": [{"name": "i", "resources": {"requests": {"memory": "16 GB"}}}]}),
        f"{POD}.initContainers[0].resources.requests.memory",
    ),
    "a ConfigMap without a name": (
        template({"volumes": [{"name": "d", "configMap": {"defaultMode": 420}}]}),
        f"{POD}.volumes[0].configMap.name",
    ),
    "a ConfigMap as text": (
        template({"volumes": [{"name": "d", "configMap": "code"}]}), f"{POD}.volumes[0].configMap"
    ),
    "an item without a path": (
        template({"volumes": [{"name": "d", "configMap": {"name": "code", "items": [{"key": "k"}]}}]}),
        f"{POD}.volumes[0].configMap.items[0].path",
    ),
    "a Secret without a name": (
        template(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"key": "k"}}}]),
        f"{TRAINER}.env[0].valueFrom.secretKeyRef.name",
    ),
    "a value from text": (template(env=[{"name": "A", "valueFrom": "x"}]), f"{TRAINER}.env[0].valueFrom"),
    "a divisor": (
        template(env=[
            {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "one"}}}
        ]),
        f"{TRAINER}.env[0].valueFrom.resourceFieldRef.divisor",
    ),
    "envFrom as fields": (template(envFrom={"configMapRef": {"name": "x"}}), f"{TRAINER}.envFrom"),
    "envFrom a ConfigMap without a name": (
        template(envFrom=[{"configMapRef": {}}]), f"{TRAINER}.envFrom[0].configMapRef.name"
    ),
    "envFrom a Secret whose name is null": (
        template(envFrom=[{"secretRef": {"name": None, "optional": False}}]),
        f"{TRAINER}.envFrom[0].secretRef.name",
    ),
    "a working directory": (template(workingDir=3), f"{TRAINER}.workingDir"),
    "a grace period": (
        template({"terminationGracePeriodSeconds": "30s"}), f"{POD}.terminationGracePeriodSeconds"
    ),
    "the pod's securityContext": (template({"securityContext": []}), f"{POD}.securityContext"),
    "a container's securityContext": (template(securityContext=[1]), f"{TRAINER}.securityContext"),
    "affinity": (template({"affinity": ["zone-a"]}), f"{POD}.affinity"),
}  # fmt: skip


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("work", [Trial(0), Worker(0)], ids=str)
def test_null_is_as_absent(name: str, work: Work) -> None:
    """Helm and Kustomize write it for an empty value."""
    more = {"reusePods": True, "trialsPerPod": 2} if isinstance(work, Worker) else {}
    given = study(trial={"template": copy.deepcopy(NULLS[name]), **more})
    without = study(trial={"template": without_nulls(NULLS[name]), **more})
    assert check(given) == ()
    assert job(given, work, RUNTIME, restricted=True) == job(without, work, RUNTIME, restricted=True)
    assert gpus(given) == 0


def test_null_among_strings_is_an_empty_string() -> None:
    """Otherwise, `gpu:` in nodeSelector would select any node."""
    terms = [{"labelSelector": {"matchLabels": {"c": None}}, "topologyKey": "zone"}]
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    csi = {"driver": "d", "volumeAttributes": {"d": None}, "fsType": None}
    given = template(
        {"nodeSelector": {"a": None, "z": "1"}, "affinity": affinity, "volumes": [{"name": "v", "csi": csi}]},
        metadata={"labels": {"b": None}, "annotations": {"e": None}},
    )
    made = job(study(trial={"template": given}), Trial(0), RUNTIME)["spec"]["template"]
    pod = made["spec"]
    assert pod["nodeSelector"] == {"a": "", "z": "1"}
    [term] = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == {"c": ""}
    assert pod["volumes"][0]["csi"] == {"driver": "d", "volumeAttributes": {"d": ""}}
    assert made["metadata"]["labels"]["b"] == ""
    assert made["metadata"]["annotations"] == {"e": ""}


def test_the_digest_of_a_refit_is_that_of_its_template_as_written() -> None:
    """An earlier version kept nulls: a finished refit is not started again by an upgrade."""
    fields = {"objective": "train:final", "template": template({"tolerations": None})}
    refit = study(refit=fields).spec.refit
    assert refit is not None
    content = json.dumps([3, fields], sort_keys=True)
    assert Refit.of(refit, 3).digest == hashlib.sha256(content.encode()).hexdigest()[:16]
    made = job(study(refit=fields), Refit.of(refit, 3), RUNTIME)
    assert "tolerations" not in made["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_template_is_refused_with_its_field(name: str) -> None:
    given, field = MALFORMED[name]
    world = World(minParallelism=1, trial={"gpus": 1, "template": given})
    await world.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False"
    assert accepted["message"].startswith(f"spec.{field}: ")
    assert len(world.kube.events()) == 1
    assert not world.jobs


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_running_study_goes_on_whatever_its_template_becomes(name: str) -> None:
    """One trial runs and ends; the other one has not started, and its next Job would have this template."""
    given, field = MALFORMED[name]
    world = World()
    await world.settle()
    world.begin(0)
    before = dict(world.kube.study()["spec"]["trial"])
    world.edit(trial={**before, "template": given}, maxGpuHours=100)
    for _ in range(4):
        await world.tick()
    assert world.condition("Accepted")["status"] == "False"
    assert f"spec.{field}: " in world.condition("Accepted")["message"]
    assert world.status["observedGeneration"] == 2
    world.succeed(0)
    await world.tick()
    assert world.status["trials"]["complete"] == 1
    world.edit(trial=before, maxGpuHours=None)
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.alive() == [1, 2]


@pytest.mark.parametrize("resource", [GPU, "memory"])
@pytest.mark.parametrize("amount", ["1e30", "1e5000", "1e3000000", "1e999999999999"])
@pytest.mark.parametrize("pods", [{}, {"reusePods": True, "trialsPerPod": 2}], ids=["", "shared"])
async def test_a_running_study_goes_on_whatever_its_template_requests(
    resource: str, amount: str, pods: dict[str, Any]
) -> None:
    """Kubernetes reads a very large amount as the largest that it knows."""
    world = World(trial=pods)
    await world.settle()
    given = template(resources={"limits": {resource: amount}})
    before = world.kube.study()["spec"]["trial"]
    world.edit(trial={**before, "template": given}, maxGpuHours=1e9)
    for _ in range(4):
        await world.tick()
    assert world.status["observedGeneration"] == 2
    world.server.end(KEY, 0, "COMPLETE", 0.5)
    for _ in range(4):
        await world.tick()
    assert world.status["trials"]["complete"] == 1
    assert world.status["usage"]["gpuSeconds"] < 2**63


def test_a_volume_of_no_kind_is_an_empty_dir() -> None:
    """Kubernetes' default, also for `emptyDir:` without a value."""
    for volume in ({"name": "d", "emptyDir": None}, {"name": "d"}):
        given = template({"volumes": [volume]}, volumeMounts=[{"name": "d", "mountPath": "/d"}])
        made = job(study(trial={"template": given}), Trial(0), RUNTIME)
        env = made["spec"]["template"]["spec"]["containers"][0]["env"]
        config = json.loads(next(each["value"] for each in env if each["name"] == "TUNING_CONFIG"))
        assert config["storage"]["outlastPod"]["/d"] is False


def test_the_refits_template_is_checked_as_well() -> None:
    given = template(env=[{"value": "1"}])
    [problem] = check(study(refit={"objective": "train:final", "template": given}))
    assert problem.field == "refit.template.spec.containers[0].env[0].name"
    assert problem.message == "Required value: add it."


def test_what_kubernetes_may_know_is_left_to_it() -> None:
    given = template({"volumes": [{"name": "d", "later": [1]}]}, resources={"claims": [{"name": "gpu"}]})
    assert not list(shape_problems(given))
