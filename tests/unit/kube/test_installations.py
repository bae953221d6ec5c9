"""Several installations that watch the same namespace: exactly one serves a study."""

from __future__ import annotations

import asyncio

import pytest
from tuning_operator.resource import names

from tests.unit.kube.world import KEY, World

A, B = "tuning-a/tuning-operator", "tuning-b/tuning-operator"


def installed(name: str, first: World | None = None) -> World:
    """An installation with its own database, beside another one."""
    world = World(maxTrials=2, parallelism=2)
    if first:
        world.kube = first.kube
    world.installation = name
    world.start_operator()
    return world


async def test_the_first_one_serves_the_study() -> None:
    first = installed(A)
    await first.settle()
    second = installed(B, first)
    await second.settle()
    assert second.server.definitions == {}
    assert first.status["installation"] == A
    contested = first.condition("Contested")
    assert (contested["status"], contested["reason"]) == ("True", "ServedByAnother")
    assert f"leaves this study to the installation {A}" in contested["message"]
    assert ("ServedByAnother", 1) in first.kube.events()
    for number in (0, 1):
        first.succeed(number)
    for world in (first, second, first, second):
        await world.settle()
    assert first.status["phase"] == "Completed"
    assert first.condition("Contested")["status"] == "True"
    version = first.kube.study()["metadata"]["resourceVersion"]
    await first.settle()
    await second.settle()
    assert first.kube.study()["metadata"]["resourceVersion"] == version, "they come to rest"


async def test_the_condition_goes_with_the_other_installation() -> None:
    first = installed(A)
    await first.settle()
    await installed(B, first).settle()
    first.advance(3601)
    await first.settle()
    assert first.condition("Contested") == {}


async def test_two_claims_at_the_same_moment() -> None:
    first = installed(A)
    second = installed(B, first)
    for _ in range(20):
        await asyncio.gather(first.tick(), second.tick())
    served = [world for world in (first, second) if KEY in world.server.trials]
    assert [world.installation for world in served] == [first.status["installation"]]
    assert first.alive() == [0, 1]


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_study_can_name_its_installation(claimed: bool) -> None:
    """Also one that another installation served, for example one that was removed."""
    first = installed(A)
    if claimed:
        await first.settle()
    first.kube.edit(names.KIND, "ml", "mnist", installation=B)
    await first.settle()
    assert first.condition("Contested")["status"] == "True"
    second = installed(B, first)
    await second.settle()
    assert second.status["installation"] == B
    assert KEY in second.server.trials
