"""Kubernetes quantities."""

from __future__ import annotations

from typing import Any

import pytest
from tuning_operator.resource.quantity import is_quantity, quantity


@pytest.mark.parametrize(
    ("amount", "number"),
    [
        ("500m", 0.5),
        (2, 2),
        (0.5, 0.5),
        ("4Gi", 4 * 1024**3),
        ("1k", 1000),
        ("1e3", 1000),
        ("1E", 10**18),
        (".5", 0.5),
        ("+1.", 1),
        ("1e30", 2**63 - 1),
        ("1e5000", 2**63 - 1),
        ("1e3000000", 2**63 - 1),
        ("1e-3000000", 0),
    ],
)
def test_quantities(amount: Any, number: float) -> None:
    assert is_quantity(amount)
    assert quantity(amount) == number


@pytest.mark.parametrize(
    "text", ["", "one", "nan", "inf", "1.5.2Gi", "1_000", "16 GB", "1e3k", "1e", "-1", "1e9999999999", True]
)
def test_what_is_no_quantity(text: Any) -> None:
    assert not is_quantity(text)
    assert quantity(text) == 0
