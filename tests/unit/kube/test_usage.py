"""What a study's trials have used, and what pruning has saved."""

from __future__ import annotations

import pytest
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.usage import gpus, usage
from tuning_operator.protocol import Durations

from tests.unit.kube.builders import GPU, NOW, ago, decision, seen, study, summary, trial


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
