"""Whatever happens to a node: a study ends on the others as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.e2e.kit import Kubectl
from tests.faults.fault import Fault
from tests.faults.nodes import FAULTS


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS.parameters())
def test_fault(fault: Fault, on_three_nodes: Kubectl, image: str) -> None:
    fault.check(on_three_nodes, image)
