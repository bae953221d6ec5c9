"""Jobs as runs keep their contract on a real API server with real controllers; the test is the kubelet."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.plan.work import Work
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.kubernetes import KubernetesApi
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy

from tests.unit.kube.builders import body
from tests.unit.kube.runs_contract import SECONDS, RunsContract, watching


@pytest.mark.usefixtures("api")
class TestRealJobRuns(RunsContract):
    @pytest.fixture
    async def connection(self, kubeconfig: Path) -> AsyncIterator[client.ApiClient]:
        async with await config.new_client_from_config(config_file=str(kubeconfig)) as connection:
            self._connection = connection
            yield connection

    @pytest.fixture
    async def study(self, connection: client.ApiClient) -> AsyncIterator[TuningStudy]:
        namespace, core = f"runs-{uuid.uuid4().hex[:8]}", client.CoreV1Api(connection)
        await core.create_namespace({"metadata": {"name": namespace}})
        kube, manifest = KubernetesApi(connection, Metrics(lambda: 0).requests), body(refit={})
        manifest["metadata"] = {"name": "mnist", "namespace": namespace}
        assert await kube.create(manifest)
        yield TuningStudy.model_validate(await kube.get(names.KIND, namespace, "mnist"))
        await core.delete_namespace(namespace)

    @pytest.fixture
    async def runs(self, connection: client.ApiClient) -> AsyncIterator[JobRuns]:
        runtime = Runtime(b"zip", "https://studies.tuning:8443", "PEM")
        kube = KubernetesApi(connection, Metrics(lambda: 0).requests)
        runs = JobRuns(kube, lambda _: runtime, lambda: datetime.now(UTC))
        async with watching(runs, lambda _: None):
            yield runs

    async def test_check_finds_misspelt_fields_and_invalid_values(
        self, runs: JobRuns, study: TuningStudy
    ) -> None:
        container = {"name": "trainer", "image": "i", "resource": {}, "volumeMount": []}
        misspelt = with_template(study, {"containers": [container], "nodeSelecter": {"gpu": "h200"}})
        assert {problem.field: problem.message for problem in await runs.check(misspelt)} == {
            "trial.template.spec.containers[0].resource":
                "Kubernetes has no field resource here: did you mean resources?",
            "trial.template.spec.containers[0].volumeMount":
                "Kubernetes has no field volumeMount here: did you mean volumeMounts?",
            "trial.template.spec.nodeSelecter":
                "Kubernetes has no field nodeSelecter here: did you mean nodeSelector?",
        }  # fmt: skip
        invalid = with_template(study, {"containers": [{"name": "trainer", "image": ""}]})
        [problem] = await runs.check(invalid)
        assert problem.field == "trial.template.spec.containers[0].image"
        assert problem.message == "Required value"
        assert await runs.check(study) == ()
        assert await runs.list_runs(study, set()) == {}, "nothing was created"

    async def begin(self, study: TuningStudy, work: Work) -> None:
        await self._patch_pod(study, work, {"phase": "Running", "conditions": [_ready("True")]})

    async def end(self, study: TuningStudy, work: Work, exit_code: int) -> None:
        terminated = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed"}
        container = {
            "name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0,
            "state": {"terminated": terminated},
        }  # fmt: skip
        phase = "Failed" if exit_code else "Succeeded"
        status = {"phase": phase, "conditions": [_ready("False")], "containerStatuses": [container]}
        await self._patch_pod(study, work, status)

    async def _patch_pod(self, study: TuningStudy, work: Work, status: dict[str, Any]) -> None:
        core, namespace = client.CoreV1Api(self._connection), study.metadata["namespace"]
        labels = ",".join(f"{key}={value}" for key, value in work.labels.items())
        async with asyncio.timeout(SECONDS):
            while True:
                found = (await core.list_namespaced_pod(namespace, label_selector=labels)).items
                if found:
                    break
                await asyncio.sleep(0.05)
        await core.patch_namespaced_pod_status(found[0].metadata.name, namespace, {"status": status})


def with_template(study: TuningStudy, pod: dict[str, Any]) -> TuningStudy:
    trial = study.spec.trial.model_copy(update={"template": {"spec": pod}})
    return study.model_copy(update={"spec": study.spec.model_copy(update={"trial": trial})})


def _ready(status: str) -> dict[str, str]:
    return {"type": "Ready", "status": status, "lastTransitionTime": "2026-11-21T12:00:00Z"}
