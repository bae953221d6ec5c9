"""The chart as Helm renders it, without a cluster."""

from pathlib import Path

import pytest

from dev.cluster.programs import found_or_built
from tests.unit.chart.helm import Chart

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def chart() -> Chart:
    return Chart(found_or_built("helm"), ROOT / "charts" / "tuning-operator")
