"""GPSampler as the other samplers in tests/unit/studies: `make gp` runs this in an image with PyTorch."""

from __future__ import annotations

import pytest
import torch  # noqa: F401  the import takes seconds, longer than a request should take
from tuning_operator.protocol import StudyDefinition
from tuning_operator.studies.definition.samplers import problems_of

from tests.unit.studies import test_engine_parity as parity

GP = ("GPSampler", {"seed": 1, "n_startup_trials": 5})
SAMPLERS = {
    "GP": GP,
    "deterministic": ("GPSampler", {"seed": 1, "n_startup_trials": 5, "deterministic_objective": True}),
    "fixed GP": (
        "PartialFixedSampler",
        {"fixed_params": {"x": 0.5}, "base_sampler": {"name": GP[0], "args": GP[1]}},
    ),
}


@pytest.fixture(autouse=True)
def _samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "SAMPLERS", parity.SAMPLERS | SAMPLERS)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "define-by-run"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_are_those_of_optimize(sampler: str, declared: bool) -> None:
    parity.check_parity(sampler, declared)


def test_several_objectives_and_constraints() -> None:
    parity.test_several_objectives_and_constraints("GP")


def test_a_wrong_argument_is_named() -> None:
    definition = StudyDefinition.model_validate(
        {
            "objectives": [{"metric": "loss", "direction": "minimize"}],
            "sampler": {"name": "GPSampler", "args": {"deterministic": True}},
        }
    )
    assert [problem.field for problem in problems_of(definition)] == ["sampler.args.deterministic"]
