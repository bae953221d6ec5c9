"""The workflows of GitHub Actions are valid."""

from __future__ import annotations

import subprocess
from pathlib import Path

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
