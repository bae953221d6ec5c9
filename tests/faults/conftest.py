"""The cluster of the end-to-end tests, and the page that `make faults` writes from its results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import cluster, image, kubectl, pytest_collection_modifyitems, pytest_sessionstart
from tests.faults.cluster import FAULTS
from tests.faults.report import PAGE, RESULTS, Result, write

__all__ = ["cluster", "image", "kubectl", "pytest_collection_modifyitems", "pytest_sessionstart"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help=f"update docs/{PAGE.name} from the results")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Update the page, including the faults that a study did not survive."""
    if session.config.getoption("--write-page"):
        write([*RESULTS, *_marked(session)], [fault.test for fault in FAULTS])


def _marked(session: pytest.Session) -> Iterator[Result]:
    """Yield the results of the tests in other folders that are marked as faults."""
    reports = session.config.pluginmanager.get_plugin("terminalreporter").stats
    failed = {report.nodeid for outcome in ("failed", "error") for report in reports.get(outcome, ())}
    passed = {report.nodeid for report in reports.get("passed", ())}
    for item in session.items:
        if (mark := item.get_closest_marker("fault")) and item.nodeid in failed | passed:
            violations = ("failed",) if item.nodeid in failed else ()
            yield Result(*mark.args, f"{item.path.stem}: {item.name}", violations, None)
