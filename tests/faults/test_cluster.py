"""Whatever fails on a cluster: a study ends as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.e2e.kit import Kubectl
from tests.faults.cluster import FAULTS
from tests.faults.fault import Fault


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS.parameters())
def test_fault(fault: Fault, kubectl: Kubectl, image: str) -> None:
    fault.check(kubectl, image)
