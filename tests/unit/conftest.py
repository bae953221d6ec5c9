"""What unit tests share: settings for slow machines, and programs that are built on a fresh machine."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from dev.cluster import programs

# Hypothesis without its limits of time: an example takes long on a machine that is busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

BUILT = {"chart", "kustomize"}
"""Fixtures that build Helm or kubectl on a fresh machine, which takes minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if BUILT.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(600, func_only=True))


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[dict[str, Any]]]:
    """Return a function that returns the objects of a folder with a kustomization."""
    kubectl = programs.kubectl()

    def objects(folder: Path) -> list[dict[str, Any]]:
        command = [kubectl, "kustomize", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        return list(yaml.safe_load_all(done.stdout))

    return objects
