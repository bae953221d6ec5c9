"""An operator that is older than the CRD, or than what wrote the status."""

from __future__ import annotations

from tuning_operator.resource import names

from tests.unit.kube.builders import body
from tests.unit.kube.world import World


async def test_a_running_study_continues_without_the_fields_of_a_newer_crd() -> None:
    world = World(maxTrials=3, parallelism=1)
    await world.settle()
    world.edit(colour="red", trial={**body()["spec"]["trial"], "shape": {"round": True}})
    for number in range(3):
        await world.settle()
        world.begin(number)
        world.succeed(number)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("True", "FieldsIgnored")
    assert "ignores what it does not know: spec.trial.shape, spec.colour. Upgrade" in accepted["message"]
    await world.settle()
    assert world.status["phase"] == "Completed"
    assert [count for reason, count in world.kube.events() if reason == "FieldsIgnored"] == [1]
    version = world.kube.study()["metadata"]["resourceVersion"]
    await world.settle()
    assert world.kube.study()["metadata"]["resourceVersion"] == version, "it comes to rest"


async def test_the_condition_goes_with_the_fields() -> None:
    world = World()
    await world.settle()
    world.edit(colour="red")
    await world.settle()
    del world.kube.study()["spec"]["colour"]
    world.edit(maxTrials=11)
    await world.settle()
    assert world.condition("Accepted")["reason"] == "Valid"


async def test_a_new_study_is_not_run_without_what_it_asks_for() -> None:
    world = World()
    world.edit(colour="red")
    await world.tick()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False"
    assert "spec.colour: this operator does not know the field" in accepted["message"]
    assert world.jobs == {}


async def test_a_running_study_is_not_run_with_a_value_that_cannot_be_read() -> None:
    """Such as a new choice of an enumeration: ignoring it would change what the study does."""
    world = World()
    await world.settle()
    world.edit(colour="red", deletionPolicy="Archive")
    await world.tick()
    assert world.condition("Accepted")["status"] == "False"
    assert "spec.deletionPolicy" in world.condition("Accepted")["message"]


async def test_a_status_that_a_newer_operator_wrote_keeps_what_is_known() -> None:
    world = World(timeout="1h")
    await world.settle()
    started = world.status["startTime"]
    trials = {**world.status["trials"], "paused": 3}
    refit = {"phase": "Cooling", "job": "mnist-final"}
    world.kube.set_status(names.KIND, "ml", "mnist", trials=trials, refit=refit, colour="red")
    world.advance(60)
    await world.settle()
    assert world.status["startTime"] == started
    assert "paused" not in world.status["trials"]
