"""Whatever happens to a database of CloudNativePG: a study ends as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.e2e.kit import SYSTEM, Kubectl
from tests.faults.cloudnativepg import FAULTS, wait_until_healthy
from tests.faults.fault import Fault


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("cloudnativepg")
@pytest.mark.parametrize("fault", FAULTS.parameters())
def test_fault(fault: Fault, kubectl: Kubectl, image: str) -> None:
    wait_until_healthy(kubectl.within(SYSTEM))
    fault.check(kubectl, image)
