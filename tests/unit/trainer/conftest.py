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
