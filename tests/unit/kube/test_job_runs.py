"""Jobs as runs, on the fake Kubernetes (tests/api runs the same suite on a real API server)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kopf
import pytest
from tuning_operator.kube.plan.work import Trial, Work
from tuning_operator.kube.ports.job_runs import MAX_SELECTED, JobRuns
from tuning_operator.resource.study import TuningStudy

from tests.unit.kube.builders import NOW, body, pod, study, terminated
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.faults import Faults
from tests.unit.kube.runs_contract import RunsContract
from tests.unit.kube.world import COMPLETE, FAILED, RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_operator.protocol import StudyKey


class TestJobRuns(RunsContract):
    @pytest.fixture
    def kube(self) -> FakeKube:
        return FakeKube()

    @pytest.fixture
    def registry(self) -> kopf.OperatorRegistry:
        return kopf.OperatorRegistry()

    @pytest.fixture
    def runs(self, kube: FakeKube, registry: kopf.OperatorRegistry) -> JobRuns:
        self._kube, self._registry = kube, registry
        return JobRuns(kube, registry, lambda: RUNTIME, lambda: NOW)

    @pytest.fixture
    def study(self) -> TuningStudy:
        return study(refit={})

    @pytest.fixture
    def changed(self, runs: JobRuns) -> Callable[[], set[StudyKey]]:
        seen: set[StudyKey] = set()
        runs.watch(seen.add)
        return lambda: seen

    async def begin(self, study: TuningStudy, work: Work) -> None:
        self._kube.set_status("Job", "ml", work.job_name("mnist"), active=1, ready=1)

    async def end(self, study: TuningStudy, work: Work, exit_code: int) -> None:
        name = work.job_name("mnist")
        status: dict[str, Any] = {"succeeded": 1, "conditions": COMPLETE}
        if exit_code:
            status = {"failed": 1, "conditions": FAILED}
            failed = pod(0, **terminated(exit_code))
            failed["metadata"] |= {
                "name": f"{name}-x",
                "labels": self._kube.objects["Job", "ml", name]["metadata"]["labels"],
            }
            self._kube.put({**failed, "kind": "Pod"})
        self._kube.set_status("Job", "ml", name, active=0, ready=0, **status)

    async def settle(self) -> None:
        for handler in self._registry._watching.get_all_handlers():
            for (kind, namespace, name), item in self._kube.objects.items():
                if f"{kind.lower()}s" == handler.selector.any_name:
                    labels = item["metadata"].get("labels", {})
                    await handler.fn(namespace=namespace, name=name, labels=labels)


async def test_the_number_of_requests_does_not_depend_on_the_number_of_runs() -> None:
    counts = []
    for number in (1, MAX_SELECTED, 3 * MAX_SELECTED):
        kube, faults = FakeKube(), Faults()
        runs = JobRuns(faults.around(kube), kopf.OperatorRegistry(), lambda: RUNTIME, lambda: NOW)
        works = {Trial(n) for n in range(number)}
        for work in works:
            await runs.start(TuningStudy.model_validate(body()), work)
        faults.calls.clear()
        found = await runs.list_runs(study(), works)
        assert set(found) == works
        counts.append(len(faults.calls))
    assert counts == [4, 4, 4], "the Jobs, their pods, the Events of Jobs, the Events of pods"


async def test_a_stop_is_requested_by_an_annotation() -> None:
    kube = FakeKube()
    runs = JobRuns(kube, kopf.OperatorRegistry(), lambda: RUNTIME, lambda: NOW)
    works = {Trial(0), Trial(1)}
    for work in works:
        await runs.start(TuningStudy.model_validate(body()), work)
        kube.set_status("Job", "ml", work.job_name("mnist"), active=1, ready=int(work.number == 0))
    for number in (0, 1):
        kube.objects["Job", "ml", f"mnist-{number}"]["metadata"]["annotations"]["tuning.dev/stop"] = "true"
    found = await runs.list_runs(study(), works)
    assert {run.stop_requested for run in found.values()} == {True}
    del kube.objects["Job", "ml", "mnist-0"]["metadata"]["annotations"]["tuning.dev/stop"]
    assert not (await runs.list_runs(study(), works))[Trial(0)].stop_requested
