"""What the operator relies on in KubeApi: one suite for the fake (unit) and a real API server (tests/api)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tuning_operator.kube.ports.kube_api import KubeApi, KubeError
from tuning_operator.resource import names

from tests.unit.kube.builders import body

Json = dict[str, Any]


def job(name: str, trial: int, study: str = "mnist", role: str = "trial", owner: Json | None = None) -> Json:
    labels = {names.LABEL_STUDY: study, names.LABEL_TRIAL: str(trial), names.LABEL_ROLE: role}
    container = {"name": "trainer", "image": "python:3.12"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, **({"ownerReferences": [owner]} if owner else {})},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


class KubeApiContract:
    """Subclasses give the fixtures `kube` and `namespace`, an empty namespace, and the two methods below."""

    async def create_study(self, kube: KubeApi, namespace: str) -> Json:
        study = body()
        study["metadata"] = {"name": "mnist", "namespace": namespace}
        assert await kube.create(study)
        there = await kube.get(names.KIND, namespace, "mnist")
        assert there is not None
        return there

    async def set_job_status(self, kube: KubeApi, namespace: str, name: str, **status: Any) -> None:
        raise NotImplementedError

    async def create(self, kube: KubeApi, namespace: str, *items: Json) -> None:
        for item in items:
            item["metadata"]["namespace"] = namespace
            assert await kube.create(item)

    async def test_get(self, kube: KubeApi, namespace: str) -> None:
        assert await kube.get("Job", namespace, "mnist-0") is None
        await self.create(kube, namespace, job("mnist-0", 0))
        there = await kube.get("Job", namespace, "mnist-0")
        assert there is not None
        assert there["metadata"]["uid"]

    async def test_create_twice(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0))
        before = await kube.get("Job", namespace, "mnist-0")
        again = job("mnist-0", 5)
        again["metadata"]["namespace"] = namespace
        assert await kube.create(again) is None
        after = await kube.get("Job", namespace, "mnist-0")
        assert before is not None
        assert after is not None
        for key in ("uid", "labels"):  # the status is its controller's
            assert after["metadata"][key] == before["metadata"][key]

    async def test_select_by_label(self, kube: KubeApi, namespace: str) -> None:
        jobs = [
            job("mnist-0", 0),
            job("mnist-1", 1),
            job("mnist-1-1", 1, study="mnist-1"),
            job("mnist-r", 2, role="x"),
        ]
        await self.create(kube, namespace, *jobs)

        async def selected(labels: str) -> set[str]:
            return {found["metadata"]["name"] for found in await kube.select("Job", namespace, labels=labels)}

        assert await selected(f"{names.LABEL_STUDY}=mnist") == {"mnist-0", "mnist-1", "mnist-r"}
        assert await selected(f"{names.LABEL_STUDY}=mnist,{names.LABEL_ROLE}=trial") == {"mnist-0", "mnist-1"}
        assert await selected(f"{names.LABEL_STUDY}=mnist,{names.LABEL_TRIAL} in (1,2,3)") == {
            "mnist-1",
            "mnist-r",
        }
        assert await selected(f"{names.LABEL_STUDY}=other") == set()

    async def test_select_in_all_namespaces(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0, study=namespace))
        found = await kube.select("Job", "", labels=f"{names.LABEL_STUDY}={namespace}")
        assert [item["metadata"]["name"] for item in found] == ["mnist-0"]

    async def test_select_leaves_out_what_succeeded(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0), job("mnist-1", 1), job("mnist-2", 2))
        start = "2026-11-21T12:00:00Z"
        await self.set_job_status(
            kube, namespace, "mnist-1",
            succeeded=1, startTime=start, completionTime=start,
            conditions=[{"type": kind, "status": "True", "lastTransitionTime": start, "message": "",
                         "reason": "CompletionsReached"} for kind in ("SuccessCriteriaMet", "Complete")],
        )  # fmt: skip
        await self.set_job_status(kube, namespace, "mnist-2", failed=1, startTime=start)
        found = await kube.select("Job", namespace, fields="status.successful=0")
        assert {item["metadata"]["name"] for item in found} == {"mnist-0", "mnist-2"}

    async def test_select_events_of_an_object(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0))
        there = await kube.get("Job", namespace, "mnist-0")
        assert there is not None
        about = {"kind": "Job", "name": "mnist-0", "namespace": namespace, "uid": there["metadata"]["uid"]}
        for name, kind in (("e1", "Warning"), ("e2", "Normal")):
            await kube.record_event(event(name, namespace, about, type=kind))
        fields = f"involvedObject.uid={there['metadata']['uid']},type=Warning"
        found = await kube.select("Event", namespace, fields=fields)
        assert [item["metadata"]["name"] for item in found] == ["e1"]

    async def test_delete_job(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0))
        await kube.delete_job(namespace, "mnist-0")
        async with asyncio.timeout(120):
            while job_there := await kube.get("Job", namespace, "mnist-0"):
                assert job_there["metadata"]["deletionTimestamp"], (
                    "there, but being deleted: its pods go first"
                )
                await asyncio.sleep(0.05)
        await kube.delete_job(namespace, "mnist-0")

    async def test_delete_pod_now(self, kube: KubeApi, namespace: str) -> None:
        """A pod of a node that is not there stays, being deleted, until it is deleted without waiting."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "lost", "namespace": namespace},
            "spec": {"nodeName": "nowhere", "containers": [{"name": "main", "image": "none"}]},
        }
        await kube.create(pod)
        assert await kube.get("Pod", namespace, "lost")
        await kube.delete_pod_now(namespace, "lost")
        assert await kube.get("Pod", namespace, "lost") is None
        await kube.delete_pod_now(namespace, "lost")

    async def test_patch(self, kube: KubeApi, namespace: str) -> None:
        await self.create(kube, namespace, job("mnist-0", 0))
        before = await kube.get("Job", namespace, "mnist-0")
        await kube.patch("Job", namespace, "mnist-0", "spec", backoffLimit=5)
        after = await kube.get("Job", namespace, "mnist-0")
        assert before is not None
        assert after is not None
        assert after["spec"] == before["spec"] | {"backoffLimit": 5}
        await kube.patch("Job", namespace, "gone", "spec", backoffLimit=5)

    async def test_replace(self, kube: KubeApi, namespace: str) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "leader"},
            "spec": {"holderIdentity": "a"},
        }
        await self.create(kube, namespace, lease)
        before = await kube.get("Lease", namespace, "leader")
        assert before is not None
        after = await kube.replace({**before, "spec": {"holderIdentity": "b"}})
        assert after == await kube.get("Lease", namespace, "leader")
        assert after["spec"] == {"holderIdentity": "b"}
        with pytest.raises(KubeError) as refused:
            await kube.replace({**before, "spec": {"holderIdentity": "c"}})
        assert refused.value.status == 409

    async def test_replace_status(self, kube: KubeApi, namespace: str) -> None:
        study = await self.create_study(kube, namespace)
        await kube.replace_status({**study, "status": {"phase": "Running", "progress": "0/10"}})
        after = await kube.get(names.KIND, namespace, "mnist")
        assert after is not None
        assert after["status"] == {"phase": "Running", "progress": "0/10"}
        assert after["spec"] == study["spec"]
        assert after["metadata"]["generation"] == study["metadata"]["generation"]
        await kube.replace_status({**after, "status": {"phase": "Completed"}})
        last = await kube.get(names.KIND, namespace, "mnist")
        assert last is not None
        assert last["status"] == {"phase": "Completed"}, "fields that are left out are gone"

    async def test_replace_status_of_a_changed_study(self, kube: KubeApi, namespace: str) -> None:
        study = await self.create_study(kube, namespace)
        await kube.replace_status({**study, "status": {"phase": "Running"}})
        with pytest.raises(KubeError) as refused:
            await kube.replace_status({**study, "status": {"phase": "Failed"}})
        assert refused.value.status == 409

    async def test_replace_status_of_a_study_that_is_gone(self, kube: KubeApi, namespace: str) -> None:
        gone = body()
        gone["metadata"]["namespace"] = namespace
        with pytest.raises(KubeError) as refused:
            await kube.replace_status({**gone, "status": {"phase": "Running"}})
        assert refused.value.status in (404, 409)

    async def test_an_event_again_is_the_same_event(self, kube: KubeApi, namespace: str) -> None:
        about = {"kind": names.KIND, "apiVersion": names.API_VERSION, "name": "mnist", "namespace": namespace}
        await kube.record_event(event("pruned", namespace, about, count=1, message="one"))
        await kube.record_event(event("pruned", namespace, about, count=3, message="three"))
        [found] = await kube.select("Event", namespace)
        assert (found["count"], found["message"]) == (3, "three")


def event(name: str, namespace: str, about: Json, **fields: Any) -> Json:
    moment = "2026-11-21T12:00:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about,
        "reason": "Tested",
        "message": "m",
        "count": 1,
        "type": "Normal",
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        **fields,
    }
