"""The chart, rendered by Helm without a cluster."""

from tests.unit.chart.helm import chart as chart
