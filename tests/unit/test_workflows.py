"""The workflows of GitHub Actions are valid."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from dev.cluster.programs import program

ROOT = Path(__file__).parents[2]


def test_actionlint_finds_nothing() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
    assert workflows
    done = subprocess.run(
        [program("actionlint"), "-no-color", *workflows],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("released", [True, False])
def test_a_release_has_the_tags_version_and_a_registry_in_lower_case(tmp_path: Path, released: bool) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
    (script,) = (step["run"] for step in workflow["jobs"]["version"]["steps"] if "run" in step)
    version = tomllib.loads((ROOT / "operator" / "pyproject.toml").read_text())["project"]["version"]
    outputs = tmp_path / "outputs"
    runner = {
        "GITHUB_REF_NAME": f"v{version}" if released else f"v{version}.1",
        "GITHUB_REPOSITORY_OWNER": "Example-Org",
        "GITHUB_OUTPUT": str(outputs),
    }
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env=os.environ | runner,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == released, done.stdout + done.stderr
    if released:
        assert outputs.read_text().splitlines() == [f"version={version}", "registry=ghcr.io/example-org"]
