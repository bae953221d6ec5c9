"""What a study's trials have used, and what pruning has saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.usage import gpus, usage
from tuning_operator.protocol import Durations

from tests.unit.kube.builders import (
    GPU,
    NOW,
    Decision,
    ago,
    decision,
    running_status,
    seen,
    study,
    summary,
    trial,
)

if TYPE_CHECKING:
    from tuning_operator.resource.study import TuningStudyStatus


def test_pruned_trials_would_have_run_as_long_as_complete_ones() -> None:
    record = summary(complete=2, pruned=3, fail=1, durations=Durations(complete=200, pruned=60, fail=10))
    limits = {"resources": {"limits": {GPU: "2"}}}
    template = {"spec": {"containers": [{"name": "trainer", **limits}, {"name": "logger"}]}}
    found = usage(study(trial={"template": template}), record)
    assert (found.trial_seconds, found.gpu_seconds, found.saved_gpu_seconds) == (270, 540, 2 * (300 - 60))


def test_nothing_is_saved_before_a_trial_is_complete() -> None:
    assert usage(study(), summary(pruned=1, durations=Durations(pruned=60))).saved_gpu_seconds == 0


def test_an_amount_that_is_none_counts_nothing() -> None:
    """The API server refuses it when the first Job is created."""
    containers = [{"name": "trainer", "resources": {"limits": {GPU: "one"}}}]
    template = {"spec": {"containers": containers}}
    assert usage(study(trial={"template": template}), summary(durations=Durations(fail=60))).gpu_seconds == 0


def test_the_status_changes_only_when_a_trial_ends() -> None:
    now = trial(0, started=ago(1000))
    status = decision(study(), seen(summary(now), {0: Run("running")}), NOW).status
    assert status.usage
    assert status.usage.gpu_seconds == 0


def test_a_change_of_the_gpus_applies_to_later_trials_only() -> None:
    hour = 3600.0

    def passed(gpus: int, hours: float, status: TuningStudyStatus) -> Decision:
        given = study(maxGpuHours=100, maxTrials=1000, trial={"gpus": gpus, "template": None}, status=status)
        now = trial(30, started=ago(600))
        record = summary(now, complete=30, durations=Durations(complete=hours * hour))
        return decision(given, seen(record, {30: Run("running")}), NOW)

    def used(made: Decision) -> float:
        assert made.status.usage
        return made.status.usage.gpu_seconds / hour

    at_one = passed(1, 30, running_status())
    at_four = passed(4, 30, at_one.status)
    assert used(at_one) == used(at_four) == 30
    assert at_four.plan.verdict is None
    for _ in range(3):
        at_four = passed(4, 32, at_four.status)
        assert used(at_four) == 38
    assert used(passed(1, 33, at_four.status)) == 39
    over = passed(4, 47.5, at_four.status)
    assert used(over) == 100
    assert over.plan.verdict
    assert over.plan.verdict.reason == "GpuHoursUsed"


def test_many_short_trials_that_share_a_gpu_are_not_rounded_away() -> None:
    status = running_status()
    trials = {"reusePods": True, "trialsPerPod": 4, "gpus": 1, "template": None}
    for number in range(1, 101):
        record = summary(complete=number, durations=Durations(complete=1.1 * number))
        status = status.model_copy(update={"usage": usage(study(trial=trials, status=status), record)})
    assert status.usage
    assert status.usage.gpu_seconds == round(110 / 4)


@pytest.mark.parametrize("seconds", [0.3, 1.1, 5.6])
def test_short_trials_are_not_rounded_away_after_a_change_of_the_gpus(seconds: float) -> None:
    status = running_status()
    trials = {"reusePods": True, "trialsPerPod": 2, "gpus": 1, "template": None}
    for number in range(1, 2001):
        shared = trials if number <= 500 else {**trials, "trialsPerPod": 4}
        record = summary(complete=number, durations=Durations(complete=seconds * number))
        before = status.usage.gpu_seconds if status.usage else 0
        status = status.model_copy(update={"usage": usage(study(trial=shared, status=status), record)})
        assert status.usage
        assert 0 <= status.usage.gpu_seconds - before <= seconds / 2 + 1, "no jumps"
    assert status.usage
    assert status.usage.gpu_seconds == pytest.approx(seconds * (500 / 2 + 1500 / 4), abs=1)


def test_what_was_saved_before_a_change_of_the_gpus_stays() -> None:
    record = summary(complete=2, pruned=3, durations=Durations(complete=2000, pruned=600))
    status = running_status()
    for count in (1, 8):
        given = study(trial={"gpus": count, "template": None}, status=status)
        status = status.model_copy(update={"usage": usage(given, record)})
        assert status.usage
        assert status.usage.saved_gpu_seconds == 2400


@pytest.mark.parametrize(
    ("resource", "is_gpu"),
    [
        ("nvidia.com/gpu", True),
        ("nvidia.com/gpu.shared", True),
        ("nvidia.com/mig-1g.5gb", True),
        ("amd.com/gpu", True),
        ("mthreads.com/vgpu", True),
        ("gpu.intel.com/i915", True),
        ("gpu.intel.com/xe", True),
        ("habana.ai/gaudi", True),
        ("gpu.intel.com/millicores", False),
        ("gpu.intel.com/i915_monitoring", False),
        ("nvidia.com/gpumem", False),
        ("cpu", False),
    ],
)
def test_the_resources_that_are_gpus(resource: str, is_gpu: bool) -> None:
    container = {"name": "trainer", "image": "any", "resources": {"limits": {resource: 1}}}
    trial = {"template": {"spec": {"containers": [container]}}}
    assert gpus(study(trial=trial)) == is_gpu
