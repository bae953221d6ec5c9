"""The limit on the trials of a namespace: it holds whatever happens, and studies share it fairly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_operator.kube.loop.reconciler import Reconciler
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.plan.wake import LIMIT_CHECK
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.namespace_limit import Claim, NamespaceLimit, share
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.status.conditions import find
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import TuningStudy

from tests.support.memory import mentions
from tests.unit.kube.builders import NOW, ask, body, decision, running_status, seen, study, summary
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.world import RUNTIME, World

LIMIT = 8


@pytest.mark.parametrize(
    ("claims", "shares"),
    [
        ({"a": (0, 20)}, {"a": 8}),
        ({"a": (0, 3), "b": (0, 4)}, {"a": 3, "b": 4}),
        ({"a": (0, 20), "b": (0, 20)}, {"a": 4, "b": 4}),
        ({"a": (0, 2), "b": (0, 20), "c": (0, 20)}, {"a": 2, "b": 3, "c": 3}),
        ({"a": (8, 20), "b": (0, 20)}, {"a": 4, "b": 0}),  # b waits until trials of a have ended
        ({"a": (6, 20), "b": (1, 20)}, {"a": 4, "b": 2}),
        ({"a": (4, 4), "b": (0, 20)}, {"a": 4, "b": 4}),
    ],
)  # fmt: skip
def test_shares(claims: dict[str, tuple[int, int]], shares: dict[str, int]) -> None:
    given = {name: Claim(*claim) for name, claim in claims.items()}
    assert {name: share(LIMIT, name, given) for name in given} == shares


class Namespace:
    """Studies with 20 trials at a time, and the operator's passes over them."""

    def __init__(self, count: int) -> None:
        self.kube = FakeKube()
        self.names = [f"study-{number}" for number in range(count)]
        self.running = dict.fromkeys(self.names, 0)
        self.over: set[str] = set()
        """Those that have reached maxTrials; a higher one resumes them."""
        self.phases = dict.fromkeys(self.names, "Running")
        """As of their last passes."""
        self.restart()

    def restart(self) -> None:
        """The operator knows nothing but the status of the studies."""
        self.limit = NamespaceLimit(self.kube, LIMIT)

    def study(self, name: str) -> TuningStudy:
        status = running_status(phase=self.phases[name])
        given = study(status=status, parallelism=20, maxTrials=1 if name in self.over else 1000)
        return given.model_copy(update={"metadata": {**given.metadata, "name": name}})

    async def pass_(self, name: str) -> None:
        given = self.study(name)
        observed = seen(summary(*range(self.running[name]), complete=1))
        limit = await self.limit.allowed(given, observed, NOW)
        self.phases[name] = "Completed" if name in self.over else "Running"
        if name not in self.over:
            self.running[name] = max(self.running[name], 20 if limit is None else limit)
        written = body(parallelism=20)
        written["metadata"] |= {"name": name, "namespace": given.metadata["namespace"]}
        written["status"] = {"trials": {"running": self.running[name]}}
        self.kube.put(written)


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["pass", "pass", "end", "restart", "over", "resume"]), st.integers(0, 3)),
        max_size=60,
    ),
)
@settings(max_examples=100, deadline=None)
async def test_histories(count: int, events: list[tuple[str, int]]) -> None:
    namespace = Namespace(count)
    for what, number in events:
        name = namespace.names[number % count]
        if what == "pass":
            await namespace.pass_(name)
        elif what == "end":
            namespace.running[name] = max(0, namespace.running[name] - 1)
        elif what == "restart":
            namespace.restart()
        elif what == "over":
            namespace.over.add(name)
            namespace.running[name] = 0
        else:
            namespace.over.discard(name)
        assert sum(namespace.running.values()) <= LIMIT
    for _ in range(20):
        for name in namespace.names:
            namespace.running[name] = max(0, namespace.running[name] - 1)
            await namespace.pass_(name)
            assert sum(namespace.running.values()) <= LIMIT
    there = [namespace.running[name] for name in namespace.names if name not in namespace.over]
    if there:
        assert max(there) - min(there) <= 2
        assert sum(there) >= LIMIT - len(there)


async def test_a_study_that_is_gone_takes_nothing() -> None:
    namespace = Namespace(2)
    await namespace.pass_("study-0")
    await namespace.pass_("study-1")
    assert namespace.running == {"study-0": 8, "study-1": 0}
    namespace.limit.forget(StudyKey("ml", "study-0"))
    await namespace.pass_("study-1")
    assert namespace.running["study-1"] == 8
    namespace.limit.forget(StudyKey("ml", "study-1"))
    assert not mentions(namespace.limit, "ml"), "an empty namespace takes no memory"


@pytest.mark.parametrize(
    ("spec", "status", "counts"),
    [
        ({}, {"installation": "b/b"}, False),
        ({"installation": "b/b"}, {"installation": "a/a"}, False),
        ({"installation": "a/a"}, {"installation": "b/b"}, True),
        ({}, {"installation": "a/a"}, True),
        ({}, {}, True),
    ],
)
async def test_studies_of_another_installation_take_nothing(
    spec: dict[str, str], status: dict[str, str], counts: bool
) -> None:
    """Its operator counts them, and this one would never see them end."""
    kube = FakeKube()
    kube.put(body("other", status={**status, "trials": {"running": 6}}, **spec))
    mine = study(parallelism=20, maxTrials=100)
    limit = NamespaceLimit(kube, LIMIT, "a/a")
    assert await limit.allowed(mine, seen(summary()), NOW) == (LIMIT - 6 if counts else LIMIT)


async def test_a_study_that_is_handed_over_takes_nothing() -> None:
    world = World(parallelism=20, maxTrials=100)
    limit = NamespaceLimit(world.kube, LIMIT, "a/a")
    runs = JobRuns(world.kube, lambda _: RUNTIME, world.clock)
    observer = Observer(world.kube, runs, world.server, check, limit)
    actor = Actor(runs, world.server)
    world.reconciler = Reconciler(world.kube, world.server, observer, actor, world.clock, "a/a")
    await world.settle()
    assert len(world.alive()) == LIMIT
    other = study(parallelism=20, maxTrials=100)
    other = other.model_copy(update={"metadata": {**other.metadata, "name": "other"}})
    assert await limit.allowed(other, seen(summary()), NOW) == 0
    world.edit(installation="b/b")
    await world.settle()
    assert await limit.allowed(other, seen(summary()), NOW) == LIMIT


async def test_suspended_and_refused_studies_want_nothing() -> None:
    kube = FakeKube()
    limit = NamespaceLimit(kube, LIMIT)
    suspended = study(parallelism=20, maxTrials=100, suspend=True)
    assert await limit.allowed(suspended, seen(summary(0, 1)), NOW) is None
    other = study(parallelism=20, maxTrials=100)
    other = other.model_copy(update={"metadata": {**other.metadata, "name": "other"}})
    assert await limit.allowed(other, seen(summary()), NOW) == LIMIT - 2


def test_what_is_decided_and_shown() -> None:
    runs = {0: Run("running"), 1: Run("running")}
    held = decision(study(parallelism=5, maxTrials=10), seen(summary(0, 1), runs, limit=2), NOW)
    assert (held.actions, held.requeue_after) == ((), LIMIT_CHECK.total_seconds())
    stalled = find(held.status.conditions, "Stalled")
    assert stalled
    assert (stalled.status, stalled.reason) == ("False", "NamespaceLimit")
    assert "At most 2 trials of this study may run at present" in stalled.message
    more = decision(study(parallelism=5, maxTrials=10), seen(summary(0, 1), runs, limit=3), NOW)
    assert more.actions == (ask(3, 10),)
