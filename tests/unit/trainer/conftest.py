from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from tests.unit.trainer.pod import Pod
from tests.unit.trainer.twin import Twin, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


@pytest.fixture
def twin(study: optuna.Study) -> Twin:
    return Twin(study)


@pytest.fixture
def pod(twin: Twin, tmp_path: Path) -> Iterator[Pod]:
    with serving(twin) as url:
        yield Pod(tmp_path, url)


@pytest.fixture
def refit(pod: Pod, twin: Twin) -> Pod:
    """A refit's pod: the study is finished, its best x is 0.25."""
    twin.study.set_user_attr("data", "v1")
    twin.trial.suggest_float("x", 0.25, 0.25)
    twin.study.tell(twin.trial, 0.5)
    twin.finished = twin.study.trials
    twin.trial = twin.study.ask()
    twin.final = True
    pod.environ["TUNING_ROLE"] = "final"
    return pod
