"""Jobs as runs, on the fake Kubernetes (tests/api runs the same suite on a real API server)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tuning_operator.kube.jobs.runtime import trainer_name
from tuning_operator.kube.plan.work import Trial, Work, Worker
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.jobs.study_objects import MAX_SELECTED
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.runs import RunRefused, key_of
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.times import rfc3339

from tests.support.memory import mentions
from tests.unit.kube.builders import NOW, ago, body, job, pod, study, terminated, waiting
from tests.unit.kube.fake_kube import FakeKube, Json
from tests.unit.kube.faults import Faults
from tests.unit.kube.runs_contract import SECONDS, RunsContract, watching
from tests.unit.kube.world import COMPLETE, FAILED, RUNTIME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestJobRuns(RunsContract):
    @pytest.fixture
    def kube(self) -> FakeKube:
        return FakeKube()

    @pytest.fixture
    def runs(self, kube: FakeKube) -> JobRuns:
        self._kube = kube
        return JobRuns(kube, lambda _: RUNTIME, lambda: NOW, ["ml"])

    @pytest.fixture
    def study(self) -> TuningStudy:
        return study(refit={})

    async def begin(self, study: TuningStudy, work: Work) -> None:
        self._put_pod(work, phase="Running")
        self._kube.set_status("Job", "ml", work.job_name("mnist"), active=1, ready=1)

    async def end(self, study: TuningStudy, work: Work, exit_code: int) -> None:
        status: dict[str, Any] = {"succeeded": 1, "conditions": COMPLETE}
        ended: dict[str, Any] = {"phase": "Succeeded"}
        if exit_code:
            status, ended = {"failed": 1, "conditions": FAILED}, terminated(exit_code)
        self._put_pod(work, **ended)
        self._kube.set_status("Job", "ml", work.job_name("mnist"), active=0, ready=0, **status)

    def _put_pod(self, work: Work, **status: Any) -> None:
        name = work.job_name("mnist")
        body = self._kube.objects["Job", "ml", name]
        shown = pod(0, **status)
        shown["metadata"] |= {
            "name": f"{name}-x",
            "uid": f"pod-of-{name}",
            "ownerReferences": [{"kind": "Job", "name": name, "uid": body["metadata"]["uid"]}],
            "labels": body["metadata"]["labels"],
        }
        self._kube.put({**shown, "kind": "Pod"})


class TestWatchedJobRuns(TestJobRuns):
    """As in the operator: what runs is known from the watch."""

    @pytest.fixture
    async def runs(self, kube: FakeKube) -> AsyncIterator[JobRuns]:
        self._kube = kube
        runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW, ["ml"])
        async with watching(runs, lambda _: None), asyncio.timeout(SECONDS):
            while runs._mirror.select("Job", StudyKey("ml", "mnist")) is None:  # noqa: ASYNC110  until it is listed
                await asyncio.sleep(0)
            yield runs


async def test_a_pass_over_runs_that_are_watched_requests_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kube, changed = FakeKube(), asyncio.Queue[StudyKey]()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    works = {Trial(n) for n in range(20)}
    manifest = TuningStudy.model_validate(body())
    await runs.start(manifest, Trial(0))
    async with watching(runs, changed.put_nowait), asyncio.timeout(SECONDS):
        await changed.get()  # everything has been listed
        for work in works:
            await runs.start(manifest, work)
            kube.set_status("Job", "ml", work.job_name("mnist"), active=1, ready=1)
        for _ in range(2 * len(works) - 1):
            await changed.get()
        monkeypatch.setattr(kube, "select", None)
        found = await runs.list_runs(study(), works)
    assert {work: run.state for work, run in found.items()} == dict.fromkeys(works, "running")


@pytest.mark.parametrize("ready", [0, 1])
@pytest.mark.parametrize(
    ("pods", "ended"),
    [
        pytest.param([pod(0, phase="Succeeded")], True, id="succeeded"),
        pytest.param([pod(0, phase="Failed")], True, id="failed"),
        pytest.param([pod(0, phase="Running")], False, id="runs"),
        pytest.param([pod(0, phase="Pending")], False, id="another one starts"),
    ],
)
async def test_the_pods_of_finished_work_show_its_end_before_its_job(
    pods: list[Json], ended: bool, ready: int
) -> None:
    """A thousand Jobs that end together wait for their controller for minutes, and would be deleted."""
    kube = FakeKube()
    for item in [job(0, active=1, ready=ready), *({**found, "kind": "Pod"} for found in pods)]:
        kube.put(item)
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    found = await runs.list_runs(study(), ())
    assert (found[Trial(0)].state == "ended") is ended
    assert (await runs.list_runs(study(), {Trial(0)}))[Trial(0)].state != "ended", "its result is missing"


async def test_a_job_without_a_pod_is_not_over() -> None:
    kube = FakeKube()
    kube.put(job(0))
    found = await JobRuns(kube, lambda _: RUNTIME, lambda: NOW).list_runs(study(), ())
    assert found[Trial(0)].state == "starting", "it would get a pod"


async def test_what_an_unchanged_job_shows_depends_on_the_study() -> None:
    kube, changed = FakeKube(), asyncio.Event()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    given = study()
    async with watching(runs, lambda _: changed.set()), asyncio.timeout(SECONDS):
        await runs.start(given, Trial(0))
        await changed.wait()
        changed.clear()
        kube.set_status("Job", "ml", "mnist-0", active=1, ready=1)
        await changed.wait()
        edited = study(trial={"objective": "train:other"})
        again = given.model_copy(update={"metadata": {**given.metadata, "uid": "of another study"}})
        found = [(await runs.list_runs(each, {Trial(0)}))[Trial(0)] for each in (given, edited, given, again)]
    assert [run.outdated for run in found] == [False, True, False, False]
    assert [run.state for run in found] == ["running", "running", "running", "stopping"]


async def test_a_job_that_is_gone_is_stopped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a watch that lags reports the deletion, the copy showed a Job that runs."""
    kube, key, changed = FakeKube(), StudyKey("ml", "mnist"), asyncio.Event()
    kube.put(job(7))
    monkeypatch.setattr(kube, "watch", silence)
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    async with watching(runs, lambda _: changed.set()), asyncio.timeout(SECONDS):
        await changed.wait()
        kube.remove("Job", "ml", "mnist-7")
        assert set(await runs.list_runs(study(), ())) == {Trial(7)}
        await runs.stop(key, Trial(7))
        assert await runs.list_runs(study(), ()) == {}


async def silence(*_: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    await asyncio.Event().wait()
    yield "BOOKMARK", {}


async def test_the_number_of_requests_does_not_depend_on_the_number_of_runs() -> None:
    counts = []
    for number in (1, MAX_SELECTED, 3 * MAX_SELECTED):
        kube, faults = FakeKube(), Faults()
        runs = JobRuns(faults.around(kube), lambda _: RUNTIME, lambda: NOW)
        works = {Trial(n) for n in range(number)}
        for work in works:
            kube.put(job(work.number))
        found = await runs.list_runs(study(), works)
        assert set(found) == works
        counts.append(faults.calls.count("select"))
    assert counts == [3, 3, 3], "the Jobs, their pods, the Events"


SCHEDULED = {"spec": {"nodeName": "node-1"}}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/8 nodes"}
ON_ITS_NODE = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(ago(1))}]
SET_UP = [{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": rfc3339(ago(9))}]


@pytest.mark.parametrize(
    ("found", "events"),
    [
        pytest.param([job()], True, id="no pod: it may be refused"),
        pytest.param([{**job(), "spec": {"suspend": True}}], False, id="no pod: the Job is in a queue"),
        pytest.param([job(), pod()], False, id="the scheduler has not looked at the pod"),
        pytest.param([job(), pod(conditions=[UNSCHEDULABLE])], False, id="no node has room"),
        pytest.param([job(), pod(**SCHEDULED)], True, id="the node does not set the pod up"),
        pytest.param([job(), pod(**SCHEDULED, conditions=ON_ITS_NODE)], False, id="it just got a node"),
        pytest.param([job(), pod(**SCHEDULED, conditions=SET_UP, **waiting("ErrImagePull"))], False,
                     id="the status has the reason"),
        pytest.param([job(), pod(**SCHEDULED, conditions=SET_UP, **waiting("ImagePullBackOff"))], True,
                     id="the status does not have the last attempt's reason"),
        pytest.param([job(), pod(**SCHEDULED, conditions=SET_UP, **waiting("CreateContainerError"))], True,
                     id="the status does not have the first attempt's time"),
        pytest.param([job(ready=1), pod(**SCHEDULED)], False, id="it runs"),
    ],
)  # fmt: skip
async def test_events_are_read_where_no_status_explains_what_a_run_waits_for(
    found: list[dict[str, Any]], events: bool
) -> None:
    kube = SlowEvents()
    for each in found:
        kube.put({"kind": "Pod", **each})
    await JobRuns(kube, lambda _: RUNTIME, kube.clock).list_runs(study(), {Trial(0)})
    assert kube.lists == events


@pytest.mark.parametrize(("duration", "lists"), [(0, 12), (2, 2)])
async def test_events_of_a_namespace_are_read_at_intervals(duration: int, lists: int) -> None:
    """For each list, the API server reads all of them."""
    kube = SlowEvents(duration)
    runs = JobRuns(kube, lambda _: RUNTIME, kube.clock)
    for number in range(60):
        kube.put(job(number))
        await runs.list_runs(study(), {Trial(number)})
        kube.now += timedelta(seconds=1)
    assert kube.lists == lists


async def test_a_run_is_examined_again_when_it_changes_and_when_it_is_time() -> None:
    kube, reasons = SlowEvents(), []

    async def look(given: TuningStudy) -> None:
        run = (await runs.list_runs(given, {Trial(0)}))[Trial(0)]
        reasons.append(run.diagnosis.failure.category if run.diagnosis else run.outdated)

    kube.put({"kind": "Pod", **pod(**SCHEDULED, phase="Pending")})
    runs = JobRuns(kube, lambda _: RUNTIME, kube.clock)
    await runs.start(study(), Trial(0))
    created = kube.objects["Job", "ml", "mnist-0"]["metadata"]
    created["creationTimestamp"] = rfc3339(ago(20))
    await look(study())
    await look(study(trial={"timeout": "1h"}))
    about = {"kind": "Pod", "uid": "pod-0"}
    text = {"reason": "FailedCreatePodSandBox", "message": "no network", "type": "Warning"}
    metadata = {"name": "e", "namespace": "ml"}
    kube.put({"kind": "Event", "metadata": metadata, "involvedObject": about, **text})
    await look(study())
    kube.now += timedelta(seconds=10)
    await look(study())
    kube.set_status("Pod", "ml", "mnist-0-abcde", **waiting("ErrImagePull"))
    await look(study())
    assert reasons == [False, True, False, "Node", "ImagePull"]


async def test_a_run_whose_pod_shows_that_it_runs_is_examined_again_when_it_changes() -> None:
    """Its Job doesn't show it: the Job's controller may be behind, or another container is not ready."""
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    statuses = [{"name": name, "image": "i", "state": {"running": {}}} for name in ("trainer", "proxy")]
    kube.put(job(0, active=1, ready=0))
    kube.put({"kind": "Pod", **pod(0, phase="Running", containerStatuses=statuses)})
    first, second = [(await runs.list_runs(study(), {Trial(0)}))[Trial(0)] for _ in range(2)]
    assert first.state == "running"
    assert second is first
    statuses[1]["state"] = {"terminated": {"exitCode": 1}}
    kube.set_status("Pod", "ml", "mnist-0-abcde", containerStatuses=statuses)
    third = (await runs.list_runs(study(), {Trial(0)}))[Trial(0)]
    assert third.diagnosis
    assert third.diagnosis.failure.category == "SidecarNotRunning"


class SlowEvents(FakeKube):
    """It takes seconds to list Events."""

    def __init__(self, seconds: int = 0) -> None:
        super().__init__()
        self.now, self.seconds, self.lists = NOW, seconds, 0

    def clock(self) -> datetime:
        return self.now

    async def select(self, kind: str, namespace: str, *, labels: str = "", fields: str = "") -> list[Json]:
        if kind == "Event":
            self.lists += 1
            self.now += timedelta(seconds=self.seconds)
        return await super().select(kind, namespace, labels=labels, fields=fields)


async def test_a_stop_is_requested_by_an_annotation() -> None:
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
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


async def test_workers_say_which_trials_to_stop() -> None:
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    await runs.start(TuningStudy.model_validate(body()), Worker(0))
    annotations = kube.objects["Job", "ml", "mnist-w0"]["metadata"]["annotations"]
    annotations["tuning.dev/stop"] = "3,12,x"
    assert (await runs.list_runs(study(), []))[Worker(0)].trials_to_stop == {3, 12}


async def test_a_worker_of_another_study_server_is_outdated() -> None:
    """As after the study was handed over to another installation: it would get no trial."""
    kube, changed, runtime = FakeKube(), asyncio.Event(), RUNTIME
    runs = JobRuns(kube, lambda _: runtime, lambda: NOW)
    async with watching(runs, lambda _: changed.set()), asyncio.timeout(SECONDS):
        for slot in (0, 1):
            await runs.start(study(), Worker(slot))
            kube.set_status("Job", "ml", f"mnist-w{slot}", active=1, ready=1)
        await changed.wait()
        del kube.objects["Job", "ml", "mnist-w1"]["metadata"]["annotations"]["tuning.dev/study-server"]
        changed.clear()
        kube.set_status("Job", "ml", "mnist-w1", active=1, ready=1)
        await changed.wait()
        before = await runs.list_runs(study(), [])
        runtime = replace(RUNTIME, server_url="https://studies.other:8443")
        after = await runs.list_runs(study(), [])
    assert {work: run.outdated for work, run in before.items()} == {Worker(0): False, Worker(1): False}
    assert {work: run.outdated for work, run in after.items()} == {Worker(0): True, Worker(1): False}


async def test_an_accepted_study_has_the_servers_address() -> None:
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    for _ in range(2):
        assert await runs.check(study()) == ()
    ca, config = (
        one for (kind, *_), one in sorted(kube.objects.items(), reverse=True) if kind == "ConfigMap"
    )
    assert config["data"] == {"server-url": RUNTIME.server_url, "ca-config-map": ca["metadata"]["name"]}
    assert ca["data"] == {"ca.crt": "PEM"}


@pytest.mark.parametrize("work", [Trial(0), Worker(0)])
async def test_running_pods_get_a_new_ca(work: Work) -> None:
    """Their ConfigMap is mounted, so it is updated; one request is enough for a namespace."""
    kube, faults, runtime = FakeKube(), Faults(), RUNTIME
    runs = JobRuns(faults.around(kube), lambda _: runtime, lambda: NOW)
    await runs.start(study(), work)
    faults.calls.clear()
    runtime = replace(RUNTIME, ca="RENEWED")
    for _ in range(2):
        await runs.list_runs(study(), {work} - {Worker(0)})  # its trials have no runs of their own
    assert kube.objects["ConfigMap", "ml", "study-server-ca"]["data"] == {"ca.crt": "RENEWED"}
    assert faults.calls.count("patch") == 1
    other = study().model_copy(update={"metadata": {**study().metadata, "name": "other", "uid": "other"}})
    await runs.start(other, Trial(0))
    assert faults.calls.count("patch") == 1
    assert kube.named("ConfigMap") == {
        "study-server-ca",
        trainer_name("mnist", RUNTIME),
        trainer_name("other", RUNTIME),
    }


@pytest.mark.parametrize(
    ("call", "kind"), [("patch", "ConfigMap"), ("create", "ConfigMap"), ("get", "Namespace")]
)
async def test_no_study_waits_for_the_requests_of_another_namespace(
    monkeypatch: pytest.MonkeyPatch, call: str, kind: str
) -> None:
    """An admission webhook, for example, takes up to half a minute to fail, and that at each start."""
    kube, hangs = FakeKube(), asyncio.Event()
    request = getattr(kube, call)

    async def requested(*args: Any, **fields: Any) -> Any:
        about = args if call != "create" else (args[0]["kind"], args[0]["metadata"]["namespace"])
        if about[0] == kind and "broken" in about:
            hangs.set()
            await asyncio.Event().wait()
        return await request(*args, **fields)

    monkeypatch.setattr(kube, call, requested)
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    broken = study().model_copy(update={"metadata": {**study().metadata, "namespace": "broken"}})
    start = asyncio.create_task(runs.start(broken, Trial(0)))
    async with asyncio.timeout(SECONDS):
        await hangs.wait()
        assert await runs.check(study()) == ()
        await runs.start(study(), Trial(0))
        assert set(await runs.list_runs(study(), {Trial(0)})) == {Trial(0)}
    start.cancel()


async def test_nothing_is_remembered_of_a_namespace_whose_studies_are_gone() -> None:
    """Some teams create a namespace for each experiment."""
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    key = StudyKey("experiment-1", "mnist")
    given = study().model_copy(update={"metadata": {**study().metadata, "namespace": key.namespace}})
    assert await runs.check(given) == ()
    await runs.start(given, Trial(0))
    kube.admit = exceed_quota
    with pytest.raises(RunRefused):
        await runs.start(given, Trial(1))
    await runs.list_runs(given, {Trial(0)})
    assert mentions(runs, key.namespace)
    kube.remove("Job", key.namespace, "mnist-0")
    await runs.stop(key, Trial(0))  # as the watch would, it drops what is gone
    runs.forget(key)
    assert not mentions(runs, key.namespace)


async def test_a_study_that_is_gone_costs_the_others_of_its_namespace_no_requests() -> None:
    """A study that another installation serves is dropped at each of its changes."""
    faults = Faults()
    runs = JobRuns(faults.around(FakeKube()), lambda _: RUNTIME, lambda: NOW)
    one, other = study(), study()
    other.metadata["name"] = "other"
    for given in (one, other):
        await runs.start(given, Trial(0))
        await runs.list_runs(given, {Trial(0)})
    runs.forget(key_of(one))
    faults.calls.clear()
    await runs.start(other, Trial(1))
    assert faults.calls == ["create"], "of the Job: the CA and the Namespace are known"


def exceed_quota(made: Json) -> None:
    if made["kind"] == "Job":
        raise KubeError(403, "Forbidden", "exceeded quota: q, requested: count/jobs.batch=1, limited: 1")


async def test_pods_meet_the_standard_that_their_namespace_enforces() -> None:
    """Unless the template says otherwise; elsewhere, images that run as root still work."""
    kube = FakeKube()
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    own = {"capabilities": {"add": ["NET_BIND_SERVICE"]}, "runAsUser": 7}
    containers = [{"name": "trainer", "image": "i"}, {"name": "proxy", "image": "p", "securityContext": own}]
    spec = {"containers": containers, "initContainers": [{"name": "fetch", "image": "f"}]}
    await runs.start(study(trial={"template": {"spec": spec}}), Trial(0))
    assert "securityContext" not in kube.objects["Job", "ml", "mnist-0"]["spec"]["template"]["spec"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.namespace = {"labels": labels}
    runs = JobRuns(kube, lambda _: RUNTIME, lambda: NOW)
    spec["securityContext"] = {"runAsNonRoot": True, "fsGroup": 7}
    await runs.start(study(trial={"template": {"spec": spec}}), Trial(1))
    pod = kube.objects["Job", "ml", "mnist-1"]["spec"]["template"]["spec"]
    seccomp = {"type": "RuntimeDefault"}
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": seccomp, "fsGroup": 7}
    least = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    trainer, proxy = pod["containers"]
    assert trainer["securityContext"] == pod["initContainers"][0]["securityContext"] == least
    assert proxy["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "runAsUser": 7,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }
