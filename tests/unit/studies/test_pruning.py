"""Each decision is that of Optuna's own pruner, and so is what it leaves in the record."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from tuning_operator.studies.pruning import make_pruning
from tuning_operator.studies.pruning.percentile import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

NAME = "ml/twins"
"""Hyperband's brackets follow from the study's name."""
PATIENCE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Optuna and numpy warn of every NaN, and these tests report many."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    optuna.logging.set_verbosity(verbosity)


# Histories of studies -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A trial reports a value and asks whether to stop; it starts if it has not yet."""

    trial: int
    step: int
    value: float


@dataclass(frozen=True)
class End:
    """A trial ends."""

    trial: int
    state: TrialState
    value: float


@dataclass(frozen=True)
class Added:
    """Another process adds a trial to the record."""

    reports: dict[int, float]
    state: TrialState


@dataclass(frozen=True)
class Restart:
    """The server restarts, and plain Optuna takes over the other record."""


@dataclass(frozen=True)
class Recount:
    """The server takes in all trials again, for the same pruner."""


Event = Report | End | Added | Restart | Recount

FINITE = (0.0, 0.25, 0.5, 1.0, 2.0, -1.0)
"""Few, so that there are ties."""
ODD = (math.nan, math.inf, -math.inf)
ENDS = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Historian:
    """Makes up a history from a few numbers that Hypothesis draws: drawing single events would be slow."""

    seed: int
    trials: int
    width: int
    oddity: float
    """How many of the values are NaN or infinite."""

    def history(self) -> list[Event]:
        """Return the events of many trials at the same time, mixed with those of other processes."""
        rng = random.Random(self.seed)
        lives = [self._life(rng, trial) for trial in range(self.trials)]
        events: list[Event] = []
        running: list[list[Event]] = []
        while lives or running:
            while lives and len(running) < self.width:
                running.append(lives.pop(0))
            life = rng.choice(running)
            events.append(life.pop(0))
            running = [other for other in running if other]
        for _ in range(rng.choice([0, 1, 4])):
            reports = {rng.randrange(12): self._value(rng) for _ in range(rng.randrange(6))}
            other = rng.choice([Restart(), Recount(), Added(reports, rng.choice(ENDS))])
            events.insert(rng.randrange(len(events) + 1), other)
        return events

    def _life(self, rng: random.Random, trial: int) -> list[Event]:
        """Make up one trial: mostly one report a step, in order; some never end."""
        count = rng.randrange(13)
        steps = range(count) if rng.random() < 0.7 else rng.sample(range(30), count)
        events: list[Event] = [Report(trial, step, self._value(rng)) for step in steps]
        if rng.random() < 0.85 or not events:
            events.append(End(trial, rng.choice(ENDS), rng.choice(FINITE) + rng.random()))
        return events

    def _value(self, rng: random.Random) -> float:
        if rng.random() < self.oddity:
            return rng.choice(ODD)
        return rng.choice(FINITE) if rng.random() < 0.5 else rng.uniform(-3, 3)


histories = st.builds(
    Historian,
    seed=st.integers(0, 2**32),
    trials=st.integers(1, 40),
    width=st.integers(1, 8),
    oddity=st.sampled_from([0, 0.05, 0.3, 1]),
).map(Historian.history)


# Two records of one history -----------------------------------------------------------------------------


def new_study(direction: str) -> Study:
    return optuna.create_study(
        study_name=NAME, direction=direction, storage=optuna.storages.InMemoryStorage()
    )


@dataclass
class Side:
    """A record, and the pruner that decides on it."""

    study: Study
    trials: dict[int, int] = field(default_factory=dict)
    decide: Callable[[FrozenTrial], bool] = lambda trial: False
    note: Callable[[FrozenTrial], None] = lambda trial: None

    def use_optuna(self, pruner: BasePruner) -> None:
        self.study.pruner = pruner
        self.decide = lambda trial: bool(pruner.prune(self.study, trial))
        self.note = lambda trial: None

    def use_ours(self, pruner: BasePruner) -> None:
        self.study.pruner = pruner
        pruning = make_pruning(pruner, self.study)
        self.decide, self.note = pruning.should_prune, pruning.note

    def play(self, event: Event) -> object:
        """Make the event happen; return the decision, if it asks for one."""
        match event:
            case Report(number, step, value):
                return self._report(number, step, value)
            case End(number, state, value):
                self._end(number, state, value)
            case Added():
                self._add(event)
        return None

    def _report(self, number: int, step: int, value: float) -> object:
        storage = self.study._storage
        if number not in self.trials:
            self.trials[number] = self.study.ask()._trial_id
        storage.set_trial_intermediate_value(self.trials[number], step, value)
        return self.decide(storage.get_trial(self.trials[number]))

    def _end(self, number: int, state: TrialState, value: float) -> None:
        if number not in self.trials:
            self.trials[number] = self.study.ask()._trial_id
        trial = self.study._storage.get_trial(self.trials[number])
        if state == TrialState.COMPLETE:
            self.study.tell(trial.number, value)
        else:
            self.study.tell(trial.number, state=state)
        self.note(self.study._storage.get_trial(self.trials[number]))
        self.note(self.study._storage.get_trial(self.trials[number]))  # twice is allowed

    def _add(self, event: Added) -> None:
        value = 1.0 if event.state == TrialState.COMPLETE else None
        trial = optuna.trial.create_trial(state=event.state, value=value, intermediate_values=event.reports)
        self.study.add_trial(trial)
        self.note(self.study.get_trials(deepcopy=False)[-1])

    def record(self) -> str:
        """Return all that must be the same; as text, in which NaN equals NaN."""
        return repr([(t.state, t.intermediate_values, t.system_attrs) for t in self.study.trials])


def check_same(history: Sequence[Event], direction: str, make: Callable[[], BasePruner]) -> int:
    """Replay a history twice, with Optuna's decisions and ours, which swap records at a restart.

    Returns:
        how often a trial was asked to stop.
    """
    one, other = Side(new_study(direction)), Side(new_study(direction))
    optunas, ours, pruned = one, other, 0
    optunas.use_optuna(make())
    ours.use_ours(make())
    for event in history:
        if isinstance(event, Restart):
            optunas, ours = ours, optunas
            optunas.use_optuna(make())
            ours.use_ours(make())
            continue
        if isinstance(event, Recount):
            ours.use_ours(ours.study.pruner)
            continue
        expected = optunas.play(event)
        assert ours.play(event) == expected, event
        pruned += expected is True
    assert one.record() == other.record()
    return pruned


# Pruners --------------------------------------------------------------------------------------------------

percentile_args = {
    "n_startup_trials": st.integers(0, 5),
    "n_warmup_steps": st.integers(0, 8),
    "interval_steps": st.integers(1, 6),
    "n_min_trials": st.integers(1, 4),
}
percents = st.one_of(st.floats(0, 100), st.sampled_from([0, 25, 50, 75.0, 100]))
medians = st.fixed_dictionaries({}, optional=percentile_args)
percentiles = st.fixed_dictionaries({"percentile": percents}, optional=percentile_args)
halvings = st.one_of(
    st.fixed_dictionaries(
        {"min_resource": st.integers(1, 4)},
        optional={
            "reduction_factor": st.integers(2, 4),
            "min_early_stopping_rate": st.integers(0, 2),
            "bootstrap_count": st.integers(0, 4),
        },
    ),
    st.fixed_dictionaries({}, optional={"reduction_factor": st.integers(2, 4)}),
)
hyperbands = st.one_of(
    st.fixed_dictionaries(
        {"max_resource": st.integers(4, 30)},
        optional={
            "min_resource": st.integers(1, 3),
            "reduction_factor": st.integers(2, 4),
            "bootstrap_count": st.integers(0, 3),
        },
    ),
    st.fixed_dictionaries({}, optional={"min_resource": st.integers(1, 12)}),
)
thresholds = st.fixed_dictionaries(
    {"lower": st.floats(-5, 0), "upper": st.floats(0, 5)},
    optional={"n_warmup_steps": st.integers(0, 5), "interval_steps": st.integers(1, 4)},
)
wilcoxons = st.fixed_dictionaries(
    {}, optional={"p_threshold": st.floats(0, 1), "n_startup_steps": st.integers(0, 4)}
)

Args = dict[str, Any]
PRUNERS: dict[str, tuple[Callable[..., BasePruner], st.SearchStrategy[Args]]] = {
    "Median": (optuna.pruners.MedianPruner, medians),
    "Percentile": (optuna.pruners.PercentilePruner, percentiles),
    "SuccessiveHalving": (optuna.pruners.SuccessiveHalvingPruner, halvings),
    "Hyperband": (optuna.pruners.HyperbandPruner, hyperbands),
    "Threshold": (optuna.pruners.ThresholdPruner, thresholds),
    "Wilcoxon": (optuna.pruners.WilcoxonPruner, wilcoxons),
    "Nop": (optuna.pruners.NopPruner, st.just({})),
}
directions = st.sampled_from(["minimize", "maximize"])


@pytest.mark.parametrize("kind", PRUNERS)
def test_each_decision_is_optunas(kind: str) -> None:
    make, args = PRUNERS[kind]

    @settings(PATIENCE, max_examples=4 if kind == "Wilcoxon" else 100)
    @given(histories, directions, args)
    def check(history: list[Event], direction: str, given_args: Args) -> None:
        check_same(history, direction, lambda: make(**given_args))

    check()


@pytest.mark.parametrize("wrapped", [*PRUNERS, None])
def test_each_decision_is_optunas_with_patience(wrapped: str | None) -> None:
    make, args = PRUNERS[wrapped] if wrapped else (None, st.just({}))

    def patient(given_args: Args, patience: int, min_delta: float) -> BasePruner:
        return optuna.pruners.PatientPruner(make(**given_args) if make else None, patience, min_delta)

    @settings(PATIENCE, max_examples=2 if wrapped == "Wilcoxon" else 30)
    @given(histories, directions, args, st.integers(0, 3), st.sampled_from([0.0, 0.5]))
    def check(
        history: list[Event], direction: str, given_args: Args, patience: int, min_delta: float
    ) -> None:
        check_same(history, direction, lambda: patient(given_args, patience, min_delta))

    check()


SEEN_TO_PRUNE: dict[str, Args] = {
    "Median": {"n_startup_trials": 2, "n_warmup_steps": 1, "interval_steps": 2},
    "Percentile": {"percentile": 30.0, "n_startup_trials": 2, "n_min_trials": 3},
    "SuccessiveHalving": {"min_resource": 1, "reduction_factor": 2},
    "Hyperband": {"min_resource": 1, "max_resource": 12, "reduction_factor": 2},
    "Threshold": {"upper": 1.5, "lower": -1.5},
    "Wilcoxon": {"p_threshold": 0.3},
}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("kind", SEEN_TO_PRUNE)
def test_a_long_study_is_pruned_as_by_optuna(kind: str, direction: str) -> None:
    """The random histories above may prune little; here both prune hundreds of times."""
    rng = np.random.default_rng(7)
    history: list[Event] = []
    for first in range(0, 160, 4):
        lanes = range(first, first + 4)
        levels = rng.normal(size=4)
        for step in range(12):
            history += [Report(n, step, float(levels[n - first] + rng.normal(scale=0.3))) for n in lanes]
        history += [
            End(n, TrialState.COMPLETE if n % 5 else TrialState.PRUNED, levels[n - first]) for n in lanes
        ]
        if first % 40 == 20:
            history.append(Restart())
    if kind == "Wilcoxon":  # each decision takes SciPy a millisecond
        history = history[: len(history) // 8]
    make, _ = PRUNERS[kind]
    assert check_same(history, direction, lambda: make(**SEEN_TO_PRUNE[kind])) > 50


@PATIENCE
@given(st.lists(st.one_of(st.floats(), st.sampled_from(FINITE + ODD)), max_size=30), percents)
def test_quantile_is_numpys(several: list[float], percent: float) -> None:
    ordered = sorted(value for value in several if not math.isnan(value))
    expected = np.nanpercentile(np.array([*several, math.nan]), percent)
    np.testing.assert_array_equal(quantile(ordered, percent / 100), expected)


def test_hyperband_without_room_for_a_bracket_prunes_nothing() -> None:
    """The estimate of `auto` can be below min_resource; Optuna's pruner has no brackets then."""
    one = End(0, TrialState.COMPLETE, 1.0)
    history = [Report(0, 1, 1.0), one, Report(1, 9, 2.0), Report(1, 10, 2.0), Restart(), Report(1, 11, 2.0)]
    assert check_same(history, "minimize", lambda: optuna.pruners.HyperbandPruner(min_resource=5)) == 0


def test_the_estimate_of_auto_stays() -> None:
    """Longer trials that come later do not move the rungs."""
    short = [Report(0, 100, 1.0), Report(0, 200, 1.0), End(0, TrialState.COMPLETE, 1.0), Report(1, 1, 2.0)]
    long = [Report(1, 900, 0.0), End(1, TrialState.COMPLETE, 0.0)]
    later = [Report(2, 2, 1.0), Report(3, 2, 2.0)]
    make = optuna.pruners.SuccessiveHalvingPruner
    assert check_same([*short, *long, Recount(), *later], "minimize", make) == 2
    assert check_same([*short, *long, Restart(), *later], "minimize", make) == 0


def test_a_trial_that_has_ended_takes_no_rung() -> None:
    study = new_study("minimize")
    pruning = make_pruning(optuna.pruners.SuccessiveHalvingPruner(min_resource=1), study)
    trial = study.ask()
    trial.report(1.0, 1)
    before = study._storage.get_trial(trial._trial_id)
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        pruning.should_prune(before)
    worse = study.ask()
    worse.report(2.0, 1)
    assert not pruning.should_prune(study._storage.get_trial(worse._trial_id)), "no one else is at the rung"


def test_the_sampler_sees_hyperbands_brackets() -> None:
    """Optuna's samplers are shown the trials of one bracket, once the study's pruner has any."""
    pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    study = new_study("minimize")
    study.pruner = pruner
    pruning = make_pruning(pruner, study)
    trial = study.ask()
    trial.report(1.0, 0)
    pruning.should_prune(study._storage.get_trial(trial._trial_id))
    plain = optuna.pruners.HyperbandPruner(max_resource=9)
    plain._try_initialization(study)
    numbers = [optuna.trial.create_trial(state=TrialState.FAIL) for _ in range(20)]
    for number, frozen in enumerate(numbers):
        frozen.number = number
    assert [pruner._get_bracket_id(study, t) for t in numbers] == [
        plain._get_bracket_id(study, t) for t in numbers
    ]
    assert len({plain._get_bracket_id(study, t) for t in numbers}) == 3
