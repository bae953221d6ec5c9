"""Runs the tests of GPSampler in the study server's image with PyTorch: `python -m dev.gp`.

PyTorch is its build for CPUs, as in the image of a release. Where its index can't be reached, it is Debian's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from dev.cluster import engine, images
from dev.cluster.console import RequirementError, console, note, step
from dev.cluster.host_settings import base_with_settings
from dev.cluster.run import CommandError, run

ROOT = Path(__file__).parents[1]
IMAGE = "tuning-operator-gp:dev"
INDEX = "https://download.pytorch.org/whl/cpu"

DEBIAN_BASE = "tuning.dev/python-with-torch:dev"
DEBIAN_RECIPE = """\
FROM {base}
RUN apt-get update && \
 apt-get install --yes --no-install-recommends python3-torch python3-greenlet python3-venv && \
 rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/bin:${{PATH}}
"""
"""Debian's python3 comes first on PATH, because only that one has Debian's PyTorch."""


def build() -> None:
    """Build the image."""
    if reachable(f"{INDEX}/torch/"):
        arguments = {"TORCH_INDEX": INDEX}
    else:
        note(f"{INDEX} can't be reached here: building with Debian's PyTorch")
        images.ensure(images.PYTHON)
        recipe = DEBIAN_RECIPE.format(base=base_with_settings(images.PYTHON))
        with step("install Debian's PyTorch"), tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Dockerfile").write_text(recipe)
            engine.build("--network=host", f"--tag={DEBIAN_BASE}", folder)
        arguments = {images.BASE_ARGUMENT: DEBIAN_BASE}
    images.build(IMAGE, ROOT / "operator" / "Dockerfile", ROOT, **arguments)


def reachable(url: str) -> bool:
    """Return whether a page can be read."""
    try:
        with urllib.request.urlopen(url, timeout=20):
            return True
    except OSError:
        return False


def run_tests() -> int:
    """Run the tests with the image's packages, as an unprivileged container does; return their exit code."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        uv = os.environ["UV"]
        run(uv, "export", "--frozen", "--only-group=image-tests", f"--output-file={requirements}", cwd=ROOT)
        run(uv, "pip", "install", f"--target={folder}/packages", f"--requirements={requirements}")
        command = [
            *("docker", "run", "--rm", "--network=none", f"--user={os.getuid()}", "--entrypoint=python"),
            *(f"--volume={ROOT}:/src:ro", f"--volume={folder}/packages:/packages:ro", "--workdir=/src"),
            *("--env=PYTHONPATH=/opt/tuning:/packages", "--env=PYTHONDONTWRITEBYTECODE=1", IMAGE),
            *("-m", "pytest", "-p", "no:cacheprovider", "tests/gp"),
        ]
        return subprocess.run(command, check=False).returncode


def main() -> None:
    """Build the image and run the tests; expected errors are printed without a traceback."""
    try:
        build()
        sys.exit(run_tests())
    except (RequirementError, CommandError) as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
