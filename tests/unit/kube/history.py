"""Random histories of a study: what its users and its cluster do, which calls fail, and what must hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy

from tests.unit.kube.faults import KUBE_ERRORS, SERVER_ERRORS, Faults
from tests.unit.kube.world import KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.unit.kube.world import World

ERRORS = KUBE_ERRORS | SERVER_ERRORS
EVENTS = [
    "tick", "tick", "tick", "tick", "time passes", "restart", "quota", "admission denies",
    "suspend", "parallelism", "more trials", "fewer trials",
]  # fmt: skip
"""What happens to any study."""
FAULTS = st.dictionaries(
    st.integers(0, 100), st.tuples(st.sampled_from(sorted(ERRORS)), st.booleans()), max_size=8
)
"""By the number of the call: its error, and whether it comes after the effect."""


def steps(*events: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Return histories of EVENTS and these events, each with a number that chooses what it happens to."""
    return st.lists(st.tuples(st.sampled_from([*EVENTS, *events]), st.integers(0, 5)), max_size=50)


class History(ABC):
    """A world, and the most that the user has asked for. Each kind of study adds its events and its end."""

    def __init__(self, world: World, *, parallelism: int = 2, max_trials: int = 6) -> None:
        self.world = world
        self.parallelism = self.most_parallelism = parallelism
        self.max_trials = self.most_trials = max_trials

    @property
    def study(self) -> TuningStudy:
        return TuningStudy.model_validate(self.world.kube.study())

    async def play(self, events: Iterable[tuple[str, int]], planned: Mapping[int, tuple[str, bool]]) -> None:
        """Let everything happen, with faults; then the study must come to a clean end."""
        faults = Faults({call: (ERRORS[error](), late) for call, (error, late) in planned.items()})
        self.world.start_operator(faults)
        for event, pick in events:
            await self.step(event, pick)
            self.check()
        await self.end_well()

    def check(self) -> None:
        """After every step, whatever happened."""
        assert len(self.world.server.trials.get(KEY, [])) <= self.most_trials
        assert len(self.world.server.running(KEY)) <= self.most_parallelism

    async def step(self, event: str, pick: int) -> None:
        """Let one event happen to the trial, worker or setting that `pick` chooses."""
        self._cluster(event, pick)
        self._user(event, pick)
        self.happens(event, pick)
        for _ in range(pick // 2 + 1 if event == "tick" else 0):
            await self.world.tick()
            self.check()

    def _cluster(self, event: str, pick: int) -> None:
        match event:
            case "time passes":
                self.world.advance(10 * (pick + 1))
            case "restart":
                self.world.start_operator()
            case "quota":
                self.world.quota = pick
            case "admission denies":
                self.world.denied = pick % 2 == 0

    def _user(self, event: str, pick: int) -> None:
        match event:
            case "suspend":
                self.world.edit(suspend=pick % 2 == 0)
            case "parallelism":
                self.parallelism = pick % 4 + 1
                self.most_parallelism = max(self.most_parallelism, self.parallelism)
                self.world.edit(parallelism=self.parallelism)
            case "more trials":
                self.max_trials = max(self.max_trials, len(self.world.server.trials.get(KEY, []))) + 1
                self.most_trials = max(self.most_trials, self.max_trials)
                self.world.edit(maxTrials=self.max_trials)
            case "fewer trials":
                self.max_trials = 1
                self.world.edit(maxTrials=1)

    @abstractmethod
    def happens(self, event: str, pick: int) -> None:
        """Let an event of this kind of study happen."""

    @abstractmethod
    def check_grace(self) -> None:
        """No run outlives its work by more than its grace."""

    async def end_what_lingers(self) -> None:
        """Also while Jobs are refused: what ends a run never waits for what starts one."""
        grace = seconds(self.study.spec.trial.prune_grace) + 1
        for _ in range(2):
            await self.world.settle()
            self.world.advance(grace)
        await self.world.settle()
        self.check_grace()

    async def end_well(self) -> None:
        """From here on no call fails, and nobody interferes; Jobs are refused for a while longer."""
        self.world.start_operator()
        self.world.edit(suspend=False)
        await self.end_what_lingers()
        self.world.quota, self.world.denied = None, False
        await self.complete()

    @abstractmethod
    async def complete(self) -> None:
        """Let all pods start and complete."""

    async def check_rest(self) -> None:
        """All has ended, and the operator leaves it as it is."""
        assert self.world.status["phase"] in ("Completed", "Failed")
        assert self.world.server.running(KEY) == [], "nothing is left RUNNING"
        assert self.max_trials <= len(self.world.server.trials[KEY]) <= self.most_trials
        before = dict(self.world.kube.objects)
        assert await self.world.tick() == float("inf")
        assert self.world.kube.objects == before, "a pass over a study at rest changes nothing"
