"""How often the cluster's nodes and waiting pods are listed."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

from tuning_operator.kube.ports.jobs.capacity import Nodes
from tuning_operator.kube.ports.kube_api import KubeApi

NOW = datetime(2026, 11, 27, tzinfo=UTC)


class Sizes:
    """An API server whose nodes grow by a GPU each time that they are listed."""

    gpus = 0

    async def largest_nodes(self) -> Mapping[str, str] | None:
        self.gpus += 1
        return {"nvidia.com/gpu": str(self.gpus)}


async def test_nodes_are_listed_again_after_a_minute() -> None:
    now = NOW
    nodes = Nodes(cast("KubeApi", Sizes()), lambda: now)
    assert await nodes.largest() == {"nvidia.com/gpu": "1"}
    now = NOW + timedelta(seconds=60)
    assert await nodes.largest() == {"nvidia.com/gpu": "1"}, "remembered for a minute"
    now = NOW + timedelta(seconds=61)
    assert await nodes.largest() == {"nvidia.com/gpu": "2"}
