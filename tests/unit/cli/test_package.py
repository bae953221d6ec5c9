"""The package kubectl-tuning: its wheel in an environment of its own, without what the servers need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from tests.unit.cli.cluster import Cluster

ROOT = Path(__file__).parents[3]
KREW = ROOT / "kubectl-tuning" / "krew"
SERVERS = ("aiohttp", "fastapi", "kopf", "kubernetes", "numpy", "optuna", "psycopg2", "sqlalchemy", "uvicorn")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the commands of the installed wheel."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv is not on the PATH"
    folder = tmp_path_factory.mktemp("installed")
    locked, wheels, environment = folder / "requirements.txt", folder / "wheels", folder / "venv"
    export = ["export", "--locked", "--package=kubectl-tuning", "--no-dev", "--no-emit-workspace"]
    python = f"--python={environment / 'bin' / 'python'}"
    for command in (
        ["build", "--wheel", "--all-packages", f"--out-dir={wheels}"],
        [*export, f"--output-file={locked}"],
        ["venv", f"--python={sys.executable}", environment],
        ["pip", "install", python, "--requirements", locked],
    ):
        subprocess.run([uv, "--quiet", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([uv, "--quiet", "pip", "install", python, "--no-deps", *wheels.glob("*.whl")], check=True)
    return environment / "bin"


def run(programs: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [programs / program, *arguments], capture_output=True, text=True, check=False, cwd=programs
    )


def test_the_commands_need_nothing_of_the_servers(programs: Path, mnist: Cluster) -> None:
    missing = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    assert run(programs, "python", "-c", missing, *SERVERS).stdout == "\n"
    assert "Exit codes" in run(programs, "kubectl-tuning", "--help").stdout
    trials = run(programs, "kubectl-tuning", "trials", "mnist")
    assert "CUDA out of memory" in run(programs, "kubectl-tuning", "trial", "mnist", "2").stdout
    assert [line.split()[:2] for line in trials.stdout.splitlines()[1:3]] == [
        ["0", "complete"],
        ["1", "pruned"],
    ]
    assert run(programs, "kubectl-tuning", "export", "mnist", "--format", "csv").stdout == "mnist.csv\n"
    completed = run(programs, "kubectl_complete-tuning", "tri")
    assert completed.stdout.split() == ["trials", "trial", ":4"]


def test_commands_start_without_what_only_some_need() -> None:
    code = (
        "import sys; from tuning_operator.cli import tuning; tuning.connect_local(None).list_studies()\n"
        "print(*{'httpx', 'pydantic', 'yaml'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_what_needs_an_extra_says_which(programs: Path, cluster: Cluster) -> None:
    example = ROOT / "examples" / "digits"

    def how(extra: str) -> str:
        return (
            f"install kubectl-tuning with the extra {extra}, for example uv tool install "
            f"'./kubectl-tuning[{extra}]' in a checkout (see docs/guide/kubectl-plugin.md)"
        )

    plotted = run(programs, "kubectl-tuning", "plot", "mnist")
    assert plotted.stderr == f"error: optuna and plotly are not installed: {how('plot')}\n"
    exported = run(programs, "kubectl-tuning", "export", "mnist")
    assert exported.stderr == f"error: optuna is not installed: {how('plot')}\n"
    ran = run(programs, "tuning", "run", str(example))
    assert ran.stderr == f"error: The local mode is not installed: {how('run')}.\n"
    checked = run(programs, "kubectl-tuning", "validate", str(example))
    assert checked.returncode == 0
    assert "Sampler and pruner arguments were not checked" in checked.stderr
    assert how("plot") in checked.stderr


def test_the_manifest_of_krew_has_what_krew_requires() -> None:
    plugin = yaml.safe_load((KREW / "tuning.yaml").read_text())
    assert (plugin["kind"], plugin["metadata"]["name"]) == ("Plugin", "tuning")
    spec = plugin["spec"]
    assert len(spec["shortDescription"]) <= 50
    (platform,) = spec["platforms"]
    assert {"uri", "sha256", "bin", "files", "selector"} <= platform.keys()
    script = KREW / platform["bin"]
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
