"""The cluster of the end-to-end tests, and the page that `make faults` writes from its results."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import cluster, image, kubectl, pytest_collection_modifyitems, pytest_sessionstart
from tests.faults.cluster import FAULTS, name_of
from tests.faults.report import PAGE, Result, write

__all__ = ["cluster", "image", "kubectl", "pytest_collection_modifyitems", "pytest_sessionstart"]

RESULTS: list[Result] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help=f"update docs/{PAGE.name} from the results")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Update the page, including the faults that a study did not survive."""
    if session.config.getoption("--write-page"):
        write(RESULTS, [name_of(fault) for fault in FAULTS])
