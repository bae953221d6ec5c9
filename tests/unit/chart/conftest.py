"""The chart, rendered by Helm without a cluster."""

from pathlib import Path

import pytest

from dev.cluster import programs
from tests.unit.chart.helm import Chart

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def chart() -> Chart:
    return Chart(programs.helm(), ROOT / "charts" / "tuning-operator")
