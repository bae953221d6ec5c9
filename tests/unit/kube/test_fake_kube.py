"""The fake keeps the contract that a real API server keeps (tests/api runs the same suite)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.kube.contract import KubeApiContract
from tests.unit.kube.fake_kube import FakeKube


class TestFakeKube(KubeApiContract):
    @pytest.fixture
    def kube(self) -> FakeKube:
        return FakeKube()

    @pytest.fixture
    def namespace(self) -> str:
        return "ml"

    async def set_job_status(self, kube: Any, namespace: str, name: str, **status: Any) -> None:
        kube.set_status("Job", namespace, name, **status)
