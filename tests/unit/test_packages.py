"""The published packages."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    project["name"]: project
    for path in ROOT.glob("*/pyproject.toml")
    if (project := tomllib.loads(path.read_text())["project"])
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_package_requires_the_others_in_its_own_version(name: str) -> None:
    """They are released together; an upgrade of one that left another as it is would not work."""
    project = PROJECTS[name]
    extras = project.get("optional-dependencies", {}).values()
    for requirement in itertools.chain(project.get("dependencies", ()), *extras):
        if (found := re.match(r"[\w-]+", requirement)) and found[0] in PROJECTS.keys() - {name}:
            assert requirement.endswith(f"=={project['version']}")
