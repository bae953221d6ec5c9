"""Passes over a study: what the user sees when things go well, and when they do not."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from tuning_operator.kube.loop.result import ActionsFailed
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Problem, TellRequest
from tuning_operator.resource import names
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import NOW, ago, body, failed_job, job, pod, terminated, waiting
from tests.unit.kube.faults import Faults
from tests.unit.kube.world import COMPLETE, FAILED, KEY, RUNTIME, World


def job_quota_used_up() -> KubeError:
    return KubeError(403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: q, count/jobs.batch=1')


async def test_a_study_runs_to_its_end() -> None:
    world = World(maxTrials=5, parallelism=2)
    await world.settle()
    assert world.alive() == [0, 1]
    assert world.status["phase"] == "Running"
    for number in range(5):
        world.begin(number)
        world.succeed(number, value=number / 10)
        await world.settle()
        assert len(world.alive()) == min(2, 4 - number)
    assert world.status["phase"] == "Completed"
    assert world.status["progress"] == "5/5"
    assert world.status["best"]["number"] == 4
    assert world.status["trials"] == {
        "total": 5,
        "pending": 0,
        "running": 0,
        "complete": 5,
        "pruned": 0,
        "failed": 0,
    }
    assert {"Started", "NewBest", "Completed"} <= {reason for reason, _ in world.kube.events()}


@pytest.mark.parametrize(("hours", "wait"), [(1e-12, 0.1), (1e9, 365 * 86_400)])
async def test_a_wait_for_this_moment_does_not_spin_and_a_long_one_has_an_end(
    hours: float, wait: float
) -> None:
    world = World(maxGpuHours=hours)
    await world.settle()
    world.begin(0)
    assert await world.tick() == wait


async def test_a_quiet_study_costs_no_write() -> None:
    world = World()
    await world.settle()
    version = world.kube.study()["metadata"]["resourceVersion"]
    for _ in range(3):
        assert await world.tick() == float("inf")
    assert world.kube.study()["metadata"]["resourceVersion"] == version


async def test_the_definition_is_declared_once_a_generation() -> None:
    world, faults = World(), Faults()
    world.start_operator(faults)
    await world.settle()
    assert faults.calls.count("declare") == 1
    world.edit(sampler={"name": "RandomSampler"})
    await world.settle()
    assert faults.calls.count("declare") == 2
    assert world.server.definitions[KEY].sampler.name == "RandomSampler"


async def test_pods_find_their_trainer() -> None:
    world = World()
    await world.settle()
    volumes = world.jobs[0]["spec"]["template"]["spec"]["volumes"]
    mounted = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    assert mounted == world.kube.named("ConfigMap")


async def test_an_initial_trial_outside_its_range_is_reported() -> None:
    world, faults = World(initialTrials=[{"x": 0.5}, {"x": 99}]), Faults()
    world.start_operator(faults)
    await world.settle()
    message = world.condition("Accepted")["message"]
    assert "spec.initialTrials[1].x" in message
    assert "99" in message
    assert "declare" not in faults.calls


async def test_a_study_that_the_server_lost_is_declared_again() -> None:
    world = World()
    await world.settle()
    world.server.trials.clear()
    await world.settle()
    assert KEY in world.server.trials


async def test_a_refused_study_is_reported_and_tried_again() -> None:
    world = World()
    world.server.refuses = [
        Problem(field="sampler.args.sede", message="TPESampler has no sede: did you mean seed?")
    ]
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], world.status["phase"]) == ("False", "Pending")
    assert "spec.sampler.args.sede: TPESampler has no sede" in accepted["message"]
    assert world.jobs == {}
    world.server.refuses = []
    world.edit(sampler={"name": "TPESampler", "args": {"seed": 1}})
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.alive() == [0, 1]


async def test_a_spec_that_cannot_be_read_is_reported() -> None:
    world = World()
    world.edit(maxTrails=3)
    await world.tick()
    assert "maxTrails" in world.condition("Accepted")["message"]
    assert world.jobs == {}


async def test_a_name_too_long_for_its_pods_is_reported() -> None:
    world = World()
    world.kube.objects.clear()
    world.kube.put(body("m" * 46))
    await world.reconciler.reconcile(type(KEY)("ml", "m" * 46))
    [accepted] = [c for c in world.kube.study("m" * 46)["status"]["conditions"] if c["type"] == "Accepted"]
    assert "metadata.name" in accepted["message"]
    assert "46" in accepted["message"]


async def test_the_server_away_is_reported_and_nothing_is_lost() -> None:
    world = World()
    await world.settle()
    faults = Faults({n: (StudyServerUnavailable("ConnectError"), False) for n in range(100)})
    working = world.reconciler
    world.start_operator()
    world.reconciler._observer._server = faults.around(world.server)
    with pytest.raises(StudyServerUnavailable):
        await world.reconciler.reconcile(KEY)
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "StudyServerUnavailable")
    assert world.status["phase"] == "Running"
    assert world.alive() == [0, 1]
    world.reconciler = working
    await world.settle()
    assert world.condition("Stalled")["status"] == "False"


async def test_a_study_that_is_over_does_not_wait_for_the_server() -> None:
    world = World(parallelism=1, maxTrials=1)
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.reconciler._observer._server = Faults({0: (StudyServerUnavailable("ConnectError"), False)}).around(
        world.server
    )
    with pytest.raises(StudyServerUnavailable):
        await world.reconciler.reconcile(KEY)
    assert world.condition("Stalled")["status"] == "False"


async def test_a_result_that_a_pod_could_not_send_is_recorded_when_the_server_is_back() -> None:
    """The study server is away for longer than the pod waits."""
    world = World(parallelism=1, maxTrials=1, refit={"retries": 2})
    await world.settle()
    world.begin(0)
    world.start_operator(Faults({0: (StudyServerUnavailable("ConnectError"), False)}))
    result = TellRequest(state="COMPLETE", values=[0.7], reported=[(3, 0.5)])
    left = terminated(1, message=result.model_dump_json(by_alias=True))
    world.kube.put({**pod(0, **left), "kind": "Pod"})
    world.end_job(0, failed=1, conditions=FAILED)
    await world.tick()
    assert world.server.running(KEY) != []
    await world.settle()
    assert [(t.state, t.values) for t in world.server.trials[KEY]] == [("COMPLETE", [0.7])]
    assert world.refit_lives()
    world.kube.put({**refit_pod(world, **left), "kind": "Pod"})
    world.kube.set_status("Job", "ml", "mnist-refit", active=0, ready=0, failed=1)
    await world.settle()
    assert world.server.refits[KEY].state == "COMPLETE"
    assert world.refit is None, "its Job would train again"


async def test_a_result_of_a_completed_pod_that_the_record_lost_is_recorded() -> None:
    """As after a failover to a standby that lacks the last seconds."""
    world = World(parallelism=1, maxTrials=1)
    await world.settle()
    message = TellRequest(state="PRUNED").model_dump_json(by_alias=True)
    ended = terminated(0, "Completed", message)
    world.kube.put({**pod(0, **{**ended, "phase": "Succeeded"}), "kind": "Pod"})
    world.end_job(0, succeeded=1, conditions=COMPLETE)
    await world.settle()
    assert [t.state for t in world.server.trials[KEY]] == ["PRUNED"]


async def test_a_failed_list_is_never_no_jobs() -> None:
    world = World()
    await world.settle()
    before = dict(world.kube.objects)
    world.start_operator(Faults({1: (KubeError(500, "", "etcd is away"), False)}))
    with pytest.raises(KubeError):
        await world.reconciler.reconcile(KEY)
    assert world.kube.objects == before


async def test_a_rejected_status_write_is_repeated() -> None:
    world = World(maxTrials=1)
    await world.settle()
    world.succeed(0)
    faults = Faults()
    world.start_operator(faults)
    await world.tick()
    writes = faults.calls.index("replace_status")
    world = World(maxTrials=1)
    await world.settle()
    world.succeed(0)
    world.start_operator(Faults({writes: (KubeError(422, "Invalid", "status.best is invalid"), False)}))
    with pytest.raises(KubeError):
        await world.reconciler.reconcile(KEY)
    assert "Completed" not in {reason for reason, _ in world.kube.events()}, "recorded before it was true"
    await world.settle()
    assert world.status["phase"] == "Completed"
    assert "Completed" in {reason for reason, _ in world.kube.events()}


async def test_a_refused_event_is_no_failed_pass() -> None:
    world = World()
    faults = Faults()
    world.start_operator(faults)
    await world.tick()
    first = faults.calls.index("record_event")
    world = World()
    world.start_operator(Faults({first: (KubeError(403, "Forbidden", "events are forbidden"), False)}))
    assert await world.tick() == 0
    assert world.status["phase"] == "Running"


async def test_a_crashed_pod_is_a_failed_trial() -> None:
    world = World(parallelism=1)
    await world.settle()
    world.crash(0)
    world.kube.put({**pod(0, **terminated(137, "OOMKilled")), "kind": "Pod"})
    await world.settle()
    ended = world.server.trials[KEY][0]
    assert (ended.state, ended.failure.category if ended.failure else None) == ("FAIL", "OutOfMemory")
    assert world.alive() == [1]
    assert ("TrialFailed", 1) in world.kube.events()


async def test_a_failure_is_a_warning_event() -> None:
    world = World(maxTrials=2, parallelism=1)
    await world.settle()
    world.crash(0)
    await world.settle()
    world.succeed(1)
    await world.settle()
    events = (item for (kind, _, _), item in world.kube.objects.items() if kind == "Event")
    assert {event["reason"]: event["type"] for event in events} == {
        "Started": "Normal",
        "TrialFailed": "Warning",
        "NewBest": "Normal",
        "Completed": "Normal",
    }


async def test_a_pod_that_exits_0_without_a_result_is_a_failed_trial() -> None:
    world = World(parallelism=1)
    await world.settle()
    world.end_job(0, succeeded=1, conditions=[{"type": "Complete", "status": "True"}])
    await world.settle()
    failure = world.server.trials[KEY][0].failure
    assert failure is not None
    assert failure.category == "NoResult"


async def test_a_deleted_job_comes_back_with_the_same_trial() -> None:
    world = World(parallelism=1)
    await world.settle()
    world.delete_job(0)
    await world.settle()
    assert world.alive() == [0]
    assert len(world.server.trials[KEY]) == 1


async def test_an_unpullable_image_is_reported_and_given_up() -> None:
    world = World(parallelism=1, maxTrials=1)
    await world.settle()
    world.fail_pull(0)
    assert await world.tick() == 300
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ImagePull")
    assert "python:3.12" in stalled["message"]
    world.advance(301)
    await world.settle()
    assert world.status["phase"] == "Failed"
    assert "python:3.12" in world.condition("Failed")["message"]
    assert world.alive() == []


async def test_a_job_that_the_api_server_refuses_is_reported() -> None:
    world = World()
    world.quota = 0
    await world.tick()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "Quota")
    assert "exceeded quota" in stalled["message"]
    world.quota = None
    await world.settle()
    assert world.alive() == [0, 1]
    assert world.condition("Stalled")["status"] == "False"


async def test_a_refused_job_keeps_no_other_action_from_being_done() -> None:
    """A finished trial whose pod hangs holds the quota that its successor needs."""
    world = World(maxTrials=4, parallelism=2)
    world.quota = 2
    await world.settle()
    for number in (0, 1):
        world.begin(number)
    world.server.end(KEY, 0, "COMPLETE", 0.5)
    await world.settle()
    assert world.condition("Stalled")["reason"] == "Quota"
    assert world.alive() == [0, 1]
    world.advance(31)
    await world.settle()
    await world.settle()
    assert world.alive() == [1, 2]
    assert world.condition("Stalled")["status"] == "False"


async def test_all_refusals_of_a_pass_are_reported_as_one() -> None:
    world = World(parallelism=3)
    world.denied = True
    with pytest.raises(ActionsFailed, match=r"mnist-0.* \(and 2 other errors\)"):
        await world.reconciler.reconcile(KEY)
    assert "mnist-0" in world.condition("Stalled")["message"]
    assert len(world.server.running(KEY)) == 3


async def test_a_template_that_kubernetes_would_refuse_is_reported_before_any_trial() -> None:
    world = World()
    unknown = 'strict decoding error: unknown field "spec.template.spec.nodeSelecter"'
    world.kube.invalid = (400, "BadRequest", f'Job in version "v1" cannot be handled as a Job: {unknown}')
    await world.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False"
    assert accepted["message"] == (
        "spec.trial.template.spec.nodeSelecter: Kubernetes has no field nodeSelecter here: "
        "did you mean nodeSelector?"
    )
    assert world.jobs == {}
    assert KEY not in world.server.trials
    world.kube.invalid = None
    world.edit(maxTrials=9)
    await world.settle()
    assert world.alive() == [0, 1]


@pytest.mark.parametrize("status", [403, 409])
async def test_what_may_be_allowed_later_is_no_reason_to_refuse_a_study(status: int) -> None:
    world = World()
    world.kube.invalid = (status, "", "exceeded quota")
    await world.settle()
    assert world.alive() == [0, 1]


async def test_a_corrected_template_reaches_a_trial_that_cannot_start() -> None:
    world = World(parallelism=1)
    await world.settle()
    trial = body()["spec"]["trial"]
    trial["template"]["spec"]["containers"][0]["image"] = "python:3.13"
    world.edit(trial=trial)
    await world.settle()
    [container] = world.jobs[0]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "python:3.13"
    assert [t.state for t in world.server.trials[KEY]] == ["RUNNING"], "at no cost to the trial"
    world.begin(0)
    world.edit(trial=body()["spec"]["trial"])
    await world.settle()
    [container] = world.jobs[0]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "python:3.13", "it runs"


async def test_a_rejected_edit_replaces_no_run() -> None:
    """A trial that has not started would otherwise start with what was rejected."""
    world = World(parallelism=1)
    await world.settle()
    image = world.jobs[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    trial = body()["spec"]["trial"]
    trial["template"]["spec"]["containers"][0]["image"] = "python:3.13"
    world.server.refuses = [Problem(field="sampler.args.sede", message="TPESampler has no sede.")]
    world.edit(trial=trial)
    await world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert world.jobs[0]["spec"]["template"]["spec"]["containers"][0]["image"] == image
    world.server.refuses = []
    world.edit(trial=trial)
    await world.settle()
    assert world.jobs[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "python:3.13"


async def test_finished_jobs_make_room_in_a_quota_on_jobs() -> None:
    """The quota counts Jobs that have finished, too."""
    world = World(maxTrials=6, parallelism=1)

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == "Job" and len(world.jobs) >= 3:
            quota = "requested: count/jobs.batch=1, used: count/jobs.batch=3, limited: count/jobs.batch=3"
            raise KubeError(403, "Forbidden", f'jobs.batch "x" is forbidden: exceeded quota: jobs, {quota}')

    world.kube.admit = admit
    for number in range(6):
        await world.settle()
        await world.settle()
        world.begin(number)
        world.succeed(number)
    await world.settle()
    assert world.status["phase"] == "Completed"
    assert world.status["progress"] == "6/6"


async def test_starts_make_room_in_a_quota_on_jobs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One list of all Jobs serves all of them, and no study is stalled while Jobs can be deleted."""
    world = World(maxTrials=200, parallelism=16)
    lists, together = [], [0]
    select = world.kube.select

    async def counted(
        kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[dict[str, Any]]:
        if (kind, labels, fields) != ("Job", names.LABEL_STUDY, ""):
            return await select(kind, namespace, labels=labels, fields=fields)
        together[0] += 1
        lists.append(together[0])
        for _ in range(100):
            await asyncio.sleep(0)
        found = await select(kind, namespace, labels=labels)
        together[0] -= 1
        return found

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == "Job" and len(world.jobs) >= 20:
            raise job_quota_used_up()

    monkeypatch.setattr(world.kube, "select", counted)
    world.kube.admit = admit
    for _ in range(400):
        await world.tick()
        assert world.condition("Stalled").get("status") != "True"
        world.advance(1)
        for number in world.alive():
            world.succeed(number)
        if world.status["phase"] == "Completed":
            break
    assert world.status["progress"] == "200/200"
    assert set(lists) == {1}, "one at a time"
    assert len(lists) < 40, "not one for each of 200 trials"
    assert "Quota" not in dict(world.kube.events())


@pytest.mark.parametrize(
    ("name", "owned"), [("my-debug-copy", True), ("my-debug-copy", False), ("mnist-0", False)]
)
async def test_a_copy_of_a_job_is_not_deleted_to_make_room(name: str, owned: bool) -> None:
    world = World()
    copied = job(0, succeeded=1, conditions=COMPLETE)
    copied["metadata"]["name"] = name
    if not owned:
        del copied["metadata"]["ownerReferences"]
    world.kube.put(copied)

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == "Job":
            raise job_quota_used_up()

    world.kube.admit = admit
    for _ in range(5):
        await world.tick()
        world.advance(3)
    assert world.kube.named("Job") == {name}
    assert world.condition("Stalled")["reason"] == "Quota"


async def test_jobs_that_failed_and_those_of_other_studies_make_room_in_a_quota() -> None:
    """Failed ones only after a while, since people read their logs; none that has not ended."""
    world = World(maxTrials=2, parallelism=2)
    quota = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == "Job" and len(world.kube.named("Job")) >= 3:
            raise KubeError(403, "Forbidden", quota)

    ended = [{**FAILED[0], "lastTransitionTime": rfc3339(NOW)}]
    world.kube.put(job(5, name="failed", failed=1, conditions=ended))
    world.kube.put(job(6, name="done", succeeded=1, conditions=COMPLETE))
    world.kube.put(job(7, name="runs", active=1))
    world.kube.admit = admit
    await world.settle()
    assert world.kube.named("Job") - {"mnist-0", "mnist-1"} == {"failed-5", "runs-7"}
    world.advance(2)
    await world.settle()
    assert world.condition("Stalled")["reason"] == "Quota"
    world.advance(601)
    for _ in range(2):
        await world.settle()
    assert world.kube.named("Job") == {"mnist-1", "runs-7", "mnist-0"}


async def test_finished_jobs_that_do_not_go_away_make_no_room_in_a_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finalizer keeps the 16 oldest: others are deleted in their place, and then the study is stalled."""
    world = World()
    stuck = {f"old-{number}" for number in range(16)}
    for number in range(17):
        old = job(number, name="old", succeeded=1, conditions=COMPLETE)
        old["metadata"]["creationTimestamp"] = rfc3339(ago(3600 - number))
        world.kube.put(old)
    deleted: list[str] = []
    delete_job = world.kube.delete_job

    async def delete(namespace: str, name: str) -> dict[str, Any] | None:
        deleted.append(name)
        if name not in stuck:
            return await delete_job(namespace, name)
        fields = {**world.jobs_named(name)["metadata"], "deletionTimestamp": rfc3339(world.now)}
        world.kube.put({**world.jobs_named(name), "metadata": fields})
        return world.jobs_named(name)

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == "Job" and len(world.kube.named("Job")) >= 17:
            raise job_quota_used_up()

    monkeypatch.setattr(world.kube, "delete_job", delete)
    world.kube.admit = admit
    for _ in range(8):
        await world.tick()
        world.advance(3)
    assert set(deleted) == stuck, "they get time to go away"
    assert world.condition("Stalled").get("status") != "True"
    for _ in range(10):
        await world.tick()
        world.advance(3)
    [started] = world.kube.named("Job") - stuck
    assert started in ("mnist-0", "mnist-1")
    assert world.condition("Stalled")["reason"] == "Quota"
    assert len(deleted) == 17, "each once"


async def test_what_an_ask_brings_is_started_in_the_same_pass() -> None:
    world = World(maxTrials=40, parallelism=40)
    assert await world.tick() == 0
    assert world.alive() == list(range(40)), "over three requests, of 16 trials at most"


async def test_the_trainer_is_sent_once_for_all_trials_of_a_study() -> None:
    world, faults = World(parallelism=5), Faults()
    world.start_operator(faults)
    await world.settle()
    assert faults.calls.count("create") == 7, "five Jobs, and a ConfigMap each with the trainer and the CA"


@pytest.mark.parametrize("volume", ["tuning-trainer", "tuning-ca"])
async def test_a_deleted_config_map_of_the_operator_is_created_again(volume: str) -> None:
    world = World(parallelism=1)
    await world.settle()
    names = world.kube.named("ConfigMap")
    [name] = (name for name in names if (name == RUNTIME.ca_config_map) == (volume == "tuning-ca"))
    world.kube.remove("ConfigMap", "ml", name)
    waits = pod(0, spec={"nodeName": "node-1"}, phase="Pending", **waiting("ContainerCreating"))
    world.kube.put({**waits, "kind": "Pod"})
    message = f'MountVolume.SetUp failed for volume "{volume}" : configmap "{name}" not found'
    world.kube.put(warning(waits, "FailedMount", message))
    await world.settle()
    assert world.kube.named("ConfigMap") == names
    assert [t.state for t in world.server.trials[KEY]] == ["RUNNING"]


@pytest.mark.parametrize("volume", ["tuning-trainer", "tuning-ca"])
async def test_a_job_that_waits_for_a_deleted_config_map_of_an_earlier_release_is_replaced(
    volume: str,
) -> None:
    """This release creates the ConfigMaps that its own Jobs mount, and no others."""

    def mounted() -> str:
        volumes = world.jobs[0]["spec"]["template"]["spec"]["volumes"]
        return str(next(each["configMap"]["name"] for each in volumes if each["name"] == volume))

    world = World(parallelism=1)
    await world.settle()
    before = mounted()
    world.runtime = dataclasses.replace(RUNTIME, trainer=b"of this release", ca_config_map="of-this-release")
    world.start_operator()
    world.kube.remove("ConfigMap", "ml", before)
    waits = pod(0, spec={"nodeName": "node-1"}, phase="Pending", **waiting("ContainerCreating"))
    waits["metadata"]["ownerReferences"] = [world.owner(0)]
    world.kube.put({**waits, "kind": "Pod"})
    message = f'MountVolume.SetUp failed for volume "{volume}" : configmap "{before}" not found'
    world.kube.put(warning(waits, "FailedMount", message))
    await world.settle()
    assert mounted() != before
    assert mounted() in world.kube.named("ConfigMap")
    assert [t.state for t in world.server.trials[KEY]] == ["RUNNING"]


BROKEN_WEBHOOK = KubeError(
    500,
    "InternalError",
    'Internal error occurred: failed calling webhook "jobs.policy.io": failed to call webhook: Post '
    '"https://policy.policy.svc:443/jobs?timeout=10s": dial tcp 10.0.0.9:443: connect: connection refused',
)


@pytest.mark.parametrize("kind", ["Job", "ConfigMap"])
@pytest.mark.parametrize("new", [True, False])
async def test_an_admission_webhook_that_does_not_work_is_reported(kind: str, new: bool) -> None:
    world = World(maxTrials=5, parallelism=1)
    if not new:
        await world.settle()
        world.begin(0)
        await world.settle()
        world.kube.remove("ConfigMap", "ml", RUNTIME.ca_config_map)
        world.succeed(0)

    def admit(created: dict[str, Any]) -> None:
        if created["kind"] == kind:
            raise BROKEN_WEBHOOK

    world.kube.admit = admit
    if kind == "Job":
        world.kube.invalid = (BROKEN_WEBHOOK.status, BROKEN_WEBHOOK.reason, BROKEN_WEBHOOK.message)
    world.start_operator()
    await world.settle()
    await world.settle()
    assert world.alive() == []
    assert world.status["progress"] == ("0/5" if new else "1/5")
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "JobRefused")
    assert "connection refused. The admission webhook jobs.policy.io is failing: ask" in stalled["message"]
    world.kube.admit, world.kube.invalid = lambda _: None, None
    await world.settle()
    assert world.alive() == [int(not new)]
    assert world.condition("Stalled")["status"] == "False"


def refuse_config_maps(created: dict[str, Any]) -> None:
    if created["kind"] == "ConfigMap":
        raise KubeError(403, "Forbidden", "exceeded quota: own, requested: count/configmaps=1")


async def test_config_maps_that_exist_are_enough_when_a_quota_refuses_to_create_them() -> None:
    """A quota or a policy is asked before the API server looks whether they exist."""
    world = World(maxTrials=3, parallelism=1)
    await world.settle()
    world.begin(0)
    await world.settle()
    world.kube.admit = refuse_config_maps
    world.start_operator()
    world.succeed(0)
    await world.settle()
    assert world.status["progress"] == "1/3"
    assert world.alive() == [1]
    assert world.condition("Stalled")["status"] == "False"


async def test_without_the_ca_trials_are_looked_after_and_none_starts() -> None:
    world = World(maxTrials=3, parallelism=1)
    await world.settle()
    world.begin(0)
    await world.settle()
    world.kube.remove("ConfigMap", "ml", RUNTIME.ca_config_map)
    world.kube.admit = refuse_config_maps
    world.start_operator()
    await world.settle()
    assert world.condition("Stalled")["status"] == "False"
    world.succeed(0)
    await world.settle()
    assert world.status["progress"] == "1/3"
    assert world.alive() == []
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "Quota")
    assert "count/configmaps" in stalled["message"]
    world.kube.admit = lambda _: None
    await world.settle()
    assert world.alive() == [1]
    assert world.condition("Stalled")["status"] == "False"


async def test_a_trainer_that_is_missing_and_refused_is_reported() -> None:
    """As after an upgrade of the operator, which brings another trainer."""
    world = World(maxTrials=3, parallelism=1)
    await world.settle()
    world.begin(0)
    await world.settle()
    [name] = world.kube.named("ConfigMap") - {RUNTIME.ca_config_map}
    world.kube.remove("ConfigMap", "ml", name)
    world.kube.admit = refuse_config_maps
    world.start_operator()
    world.succeed(0)
    await world.settle()
    waits = pod(1, spec={"nodeName": "node-1"}, phase="Pending", **waiting("ContainerCreating"))
    world.kube.put({**waits, "kind": "Pod"})
    message = f'MountVolume.SetUp failed for volume "tuning-trainer" : configmap "{name}" not found'
    world.kube.put(warning(waits, "FailedMount", message))
    await world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "Quota")
    assert "count/configmaps" in stalled["message"]
    world.kube.admit = lambda _: None
    await world.settle()
    assert name in world.kube.named("ConfigMap")


async def test_a_new_study_whose_trainer_is_refused_has_no_job() -> None:
    """Its pod would hold a GPU, and wait for the trainer."""
    world = World()
    world.kube.admit = refuse_config_maps
    await world.settle()
    await world.settle()
    assert world.jobs == {}
    assert world.condition("Stalled")["reason"] == "Quota"


async def test_a_copied_job_is_not_the_trials() -> None:
    """Someone copies a Job to debug it, labels and all; it fails, and so does its pod."""
    world = World(parallelism=1)
    await world.settle()
    failed = pod(0, **waiting("ImagePullBackOff"))
    failed["metadata"]["ownerReferences"][0]["name"] = "mnist-0-debug"
    world.kube.put({**failed, "kind": "Pod"})
    copied = {**failed_job(0), "metadata": {**failed_job(0)["metadata"], "name": "mnist-0-debug"}}
    world.kube.put(copied)
    odd = job(0)
    odd["metadata"]["labels"][names.LABEL_TRIAL] = "best"
    world.kube.put({**odd, "metadata": {**odd["metadata"], "name": "mnist-best"}})
    await world.settle()
    assert [t.state for t in world.server.trials[KEY]] == ["RUNNING"]
    assert world.condition("Stalled")["reason"] == "Progressing"


async def test_a_suspended_job_is_reported_though_others_run() -> None:
    """A user has suspended one; it keeps its slot, so the study says so."""
    world = World(parallelism=2)
    await world.settle()
    world.begin(1)
    world.kube.edit("Job", "ml", "mnist-0", suspend=True)
    suspended = [{"type": "Suspended", "status": "True", "lastTransitionTime": rfc3339(world.now)}]
    world.kube.set_status("Job", "ml", "mnist-0", conditions=suspended)
    await world.tick()
    world.advance(31)
    await world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("False", "Queued")
    assert "Trial 0 waits while others run: Job mnist-0 is suspended" in stalled["message"]
    assert '`kubectl patch job mnist-0 -p \'{"spec":{"suspend":false}}\'`' in stalled["message"]


async def test_a_young_job_is_not_diagnosed_yet() -> None:
    world, faults = World(parallelism=1), Faults()
    await world.settle()
    stuck = pod(0, age=0, phase="Pending", **waiting("ImagePullBackOff"))
    world.kube.put({**stuck, "kind": "Pod"})
    fresh = world.jobs_named("mnist-0")
    fresh["metadata"]["creationTimestamp"] = rfc3339(world.now)
    world.start_operator(faults)
    assert await world.tick() == 3.0
    assert faults.calls.count("select") == 1, "the Jobs; no pods, no Events"
    assert world.condition("Stalled")["status"] == "False"
    world.advance(3)
    await world.tick()
    assert world.condition("Stalled")["reason"] == "ImagePull"


def warning(pod: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Event",
        "metadata": {"name": f"{pod['metadata']['name']}.1", "namespace": "ml"},
        "involvedObject": {"kind": "Pod", "uid": pod["metadata"]["uid"]},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": rfc3339(NOW),
    }


async def test_a_job_of_someone_else_is_left_alone_and_reported() -> None:
    world = World(parallelism=1)
    theirs = job(0)
    theirs["metadata"] |= {"ownerReferences": [], "labels": {}}
    world.kube.put(theirs)
    await world.settle()
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert world.jobs_named("mnist-0")["metadata"]["labels"] == {}


async def test_the_jobs_of_a_deleted_study_of_the_same_name_are_waited_for() -> None:
    world = World(parallelism=1)
    old = job(0)
    old["metadata"]["ownerReferences"][0]["uid"] = "of-the-deleted-study"
    world.kube.put(old)
    await world.settle()
    assert world.condition("Stalled")["status"] == "False"
    world.kube.remove("Job", "ml", "mnist-0")
    await world.settle()
    assert world.alive() == [0]


async def test_a_deleted_study_ends_in_the_record() -> None:
    world = World()
    await world.settle()
    world.kube.remove(names.KIND, "ml", "mnist")
    assert await world.tick() is None
    assert world.server.forgotten == [KEY]
    assert world.server.namespaces_deleted == 0
    for metadata in ({"uid": "namespace-uid", "deletionTimestamp": "2026-01-01T00:00:00Z"}, {}):
        world.kube.namespace = metadata
        await world.tick()
    assert world.server.namespaces_deleted == 2
    assert world.jobs == {}
    assert not world.server.running(KEY)


async def test_a_study_restored_from_a_backup_gets_its_trainer() -> None:
    """Its ConfigMap went with the study that was deleted."""
    world = World(parallelism=1)
    await world.settle()
    restored = body(parallelism=1)
    world.kube.remove(names.KIND, "ml", "mnist")
    assert world.kube.named("ConfigMap") == {RUNTIME.ca_config_map}, "which is the namespace's"
    await world.tick()
    world.kube.put(restored)
    await world.settle()
    volumes = world.jobs[1]["spec"]["template"]["spec"]["volumes"]
    assert world.kube.named("ConfigMap") == {v["configMap"]["name"] for v in volumes if "configMap" in v}


async def test_a_study_being_deleted_starts_nothing() -> None:
    world = World()
    given = body()
    given["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    world.kube.put(given)
    assert await world.tick() is None
    assert world.jobs == {}


async def test_a_pruned_trials_pod_that_goes_on_is_deleted() -> None:
    world = World(parallelism=1)
    await world.settle()
    world.begin(0)
    world.server.end(KEY, 0, "PRUNED")
    await world.settle()
    assert world.alive() == [0, 1]
    world.advance(31)
    await world.settle()
    assert world.alive() == [1]


async def test_a_pod_that_goes_on_is_deleted_once_while_trials_start() -> None:
    world, faults = World(parallelism=1, maxTrials=50), Faults()
    world.start_operator(faults)
    await world.settle()
    world.begin(0)
    world.server.end(KEY, 0, "PRUNED")
    await world.settle()
    world.kube.slow = {"mnist-0"}
    world.advance(31)
    world.edit(parallelism=40)
    assert await world.tick() == 0
    assert world.alive() == list(range(41)), "over three requests, and trial 0 takes its time to end"
    assert faults.calls.count("delete_job") == 1


async def test_a_sampler_with_nothing_left_does_not_spin() -> None:
    world = World()
    world.server.per_ask = 0
    assert await world.tick() == 0
    for _ in range(3):
        assert await world.tick() == 1.0, "a back-off"


async def test_a_refit_from_the_best_trial_to_its_model() -> None:
    world = World(maxTrials=2, parallelism=1, refit={"retries": 1}, warmStart={"study": "earlier"})
    await world.settle()
    assert world.server.definitions[KEY].warm_start == "earlier"
    for value in (0.7, 0.3):
        world.succeed(world.alive()[0], value=value)
        await world.settle()
    assert world.status["phase"] == "Completed"
    assert world.status["refit"] == {"phase": "Pending", "job": "mnist-refit", "trial": 0}
    world.begin_refit()
    await world.settle()
    assert world.status["refit"]["phase"] == "Running"
    world.fail_attempt()
    world.kube.put({**refit_pod(world, **terminated(1)), "kind": "Pod"})
    await world.settle()
    assert world.status["refit"]["phase"] == "Pending"
    assert "ValueError: boom" in world.status["refit"]["message"]
    world.begin_refit()
    world.complete_refit(model="/models/mnist.pt")
    await world.settle()
    assert world.status["refit"] == {
        "phase": "Completed", "job": "mnist-refit", "trial": 0, "values": [0.9], "model": "/models/mnist.pt",
    }  # fmt: skip
    assert {"RefitStarted", "RefitCompleted"} <= {reason for reason, _ in world.kube.events()}
    assert world.status["trials"]["total"] == 2, "a refit is no trial"


async def test_a_study_is_over_when_nothing_of_it_runs_any_more() -> None:
    world = World(maxTrials=1, parallelism=1, refit={})

    async def over() -> bool:
        await world.settle()
        return (await world.reconciler.reconcile(KEY)).over

    assert not await over(), "a trial is running"
    world.begin(0)
    world.server.end(KEY, 0, "COMPLETE", 0.5)
    assert not await over(), "the refit has not begun"
    assert world.status["phase"] == "Completed"
    world.begin_refit()
    assert not await over(), "the refit is running"
    world.complete_refit()
    assert not await over(), "the trial's pod has not ended"
    world.end_job(0, succeeded=1, conditions=COMPLETE)
    assert await over()
    world.edit(maxTrials=2)
    assert not await over(), "it was resumed"


async def test_a_refit_without_a_report_is_diagnosed_from_its_pod() -> None:
    world = World(maxTrials=1, parallelism=1, refit={})
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.kube.put({**refit_pod(world, **terminated(137, "OOMKilled")), "kind": "Pod"})
    world.end_refit(failed=3, conditions=FAILED)
    await world.settle()
    assert world.status["refit"]["phase"] == "Failed"
    assert "spec.trial.template" in world.status["refit"]["message"], "the refit has none of its own"
    assert world.status["phase"] == "Completed"
    assert ("RefitFailed", 1) in world.kube.events()


async def test_a_refit_whose_job_is_refused_is_reported_with_the_refit() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "image": "i"}]}}
    world = World(maxTrials=1, parallelism=1, refit={"template": template})
    await world.settle()
    world.succeed(0)
    world.denied = True
    await world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "JobRefused")
    message = world.status["refit"]["message"]
    assert "The refit's Job is refused: admission webhook" in message
    assert "spec.refit.template" in message
    assert "for the Job's own labels and annotations, in spec.trial.job" in message
    world.denied = False
    await world.settle()
    assert world.refit_lives()
    assert world.condition("Stalled")["status"] == "False"


async def test_of_several_refusals_the_one_that_is_reported_is_shown_where_it_belongs() -> None:
    """A study is resumed while its refit is under way; the Jobs of a trial and of the refit are refused."""
    world = World(maxTrials=1, parallelism=1, refit={})
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.remove_refit()
    world.edit(maxTrials=2)
    world.denied = True
    for _ in range(3):
        await world.tick()
    assert [trial.number for trial in world.server.running(KEY)] == [1]
    assert "The refit's Job is refused" in world.condition("Stalled")["message"]
    assert "The refit's Job is refused" in world.status["refit"]["message"]


def refit_pod(world: World, **status: object) -> dict[str, Any]:
    assert world.refit
    made = pod(0, **status)
    made["metadata"]["labels"] = dict(world.refit["metadata"]["labels"])
    made["metadata"]["ownerReferences"][0]["name"] = "mnist-refit"
    return made


async def replace(world: World, *, seen: bool = True, **spec: Any) -> None:
    """Delete the study and create it again, as `kubectl replace --force` does."""
    world.kube.remove(names.KIND, "ml", "mnist")
    if seen:
        assert await world.tick() is None
    again = body(**spec)
    again["metadata"]["uid"] = "5a3d3f2e-0000-4000-8000-000000000002"
    world.kube.put(again)
    await world.settle()


@pytest.mark.parametrize("seen", [True, False])
async def test_a_study_that_is_replaced_completes(seen: bool) -> None:
    """Whether the operator sees that it is gone or not, its trials are no failures of the new one."""
    spec = {"maxTrials": 6, "parallelism": 2, "maxFailedTrials": 0}
    world = World(**spec)
    await world.settle()
    world.begin(0)
    world.succeed(0)
    await world.settle()
    await replace(world, seen=seen, **spec)
    assert world.alive() == [3, 4]
    assert world.status["phase"] == "Running"
    for number in (3, 4, 5):
        world.begin(number)
        world.succeed(number)
        await world.settle()
    assert world.condition("Complete")["status"] == "True"
    assert (world.status["trials"]["complete"], world.status["trials"]["pruned"]) == (4, 2)
    assert world.status["trials"]["failed"] == 0
    stopped = [trial.failure and trial.failure.category for trial in world.server.trials[KEY][1:3]]
    assert stopped == ["StudyDeleted", "StudyDeleted"]


@pytest.mark.parametrize("seen", [True, False])
async def test_the_refit_of_a_study_that_is_replaced_starts_again(seen: bool) -> None:
    spec: dict[str, Any] = {"maxTrials": 1, "parallelism": 1, "refit": {}}
    world = World(**spec)
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.begin_refit()
    await world.settle()
    assert world.status["refit"]["phase"] == "Running"
    await replace(world, seen=seen, **spec)
    assert world.status["phase"] == "Completed"
    assert world.status["refit"]["phase"] == "Pending"
    world.begin_refit()
    world.complete_refit()
    await world.settle()
    assert world.status["refit"]["phase"] == "Completed"


async def test_a_record_that_is_continued_is_reported() -> None:
    world = World(maxTrials=2, parallelism=1)
    await world.settle()
    assert world.condition("Accepted")["reason"] == "Valid"
    world.succeed(0)
    await world.settle()
    await replace(world, maxTrials=3, parallelism=1)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("True", "RecordContinued")
    assert accepted["message"] == (
        "The spec is valid. The study continues the record of an earlier TuningStudy of this name, whose "
        "2 trials count towards maxTrials and maxFailedTrials. To start from scratch instead, delete this "
        "TuningStudy and apply it again with existingRecord: Replace, which deletes the record, or under "
        "another name."
    )
    world.succeed(2)
    await world.settle()
    assert world.condition("Accepted") == accepted
    assert ("RecordContinued", 1) in world.kube.events()


async def test_a_record_that_cannot_be_continued_is_not_shown_as_the_studys() -> None:
    world = World(maxTrials=1, parallelism=1)
    await world.settle()
    world.succeed(0)
    await world.settle()
    world.server.refuses = [Problem(field="searchSpace[0]", message="trial 0 has x = 4, set existingRecord")]
    await replace(world, maxTrials=1, parallelism=1)
    assert (
        world.condition("Accepted")["message"] == "spec.searchSpace[0]: trial 0 has x = 4, set existingRecord"
    )
    assert world.status["phase"] == "Pending"
    assert "best" not in world.status
    assert world.condition("Complete") == {}
    world.server.refuses = []
    world.edit(existingRecord="Replace")
    await world.settle()
    assert world.server.definitions[KEY].existing_record == "Replace"
    assert world.condition("Accepted")["status"] == "True"
