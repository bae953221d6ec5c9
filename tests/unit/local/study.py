"""A small study on this machine and the command `tuning`, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tuning_operator.local.home import Home, StudyFolder
from tuning_operator.local.processes import marked
from tuning_operator.local.server import reading
from tuning_operator.protocol import FinishedStudy
from tuning_operator.resource import names

TUNING = str(Path(sys.executable).with_name("tuning"))
SECONDS = 600

CODE = """
import os, pathlib, time

seen = pathlib.Path(os.environ["SEEN"])

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    with (seen / f"started-{trial.number}").open("a") as file:
        file.write(f"{x}\\n")
    while (seen / "hold").exists():
        time.sleep(0.01)
    return x

def final(trial):
    pathlib.Path("model").write_text(str(trial.params["x"]))
    trial.set_user_attr("model", str(pathlib.Path("model").resolve()))
"""


class LocalStudy:
    """A study whose trials wait while `hold` is there, and what became of it."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.source, self.seen = folder / "source", folder / "seen"
        self.source.mkdir()
        self.seen.mkdir()
        self.home = folder / "home"
        (self.source / "train.py").write_text(CODE)
        self.write(**spec)

    def write(self, **spec: Any) -> None:
        self.write_body(self.body(**spec))

    def write_body(self, body: dict[str, Any]) -> None:
        (self.source / "study.yaml").write_text(yaml.safe_dump(body))
        kustomization = {
            "resources": ["study.yaml"],
            "configMapGenerator": [{"name": "code", "files": ["train.py"]}],
        }
        (self.source / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    def body(self, **spec: Any) -> dict[str, Any]:
        container = {"name": "trainer", "image": "any", "env": [{"name": "SEEN", "value": str(self.seen)}]}
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "small"},
            "spec": {
                "objectives": [{"metric": "x", "direction": "maximize"}],
                "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
                "sampler": {"name": "RandomSampler", "args": {"seed": 1}},
                "maxTrials": 4,
                "parallelism": 2,
                "trial": {
                    "objective": "train:objective",
                    "source": {"configMap": "code"},
                    "template": {"spec": {"containers": [container]}},
                },
                **spec,
            },
        }

    @property
    def folder(self) -> StudyFolder:
        return Home(self.home).study("small")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder.path / "study.json").read_text())["status"]
        return found

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `tuning run` in a process group of its own."""
        return self.start_tuning("run", str(self.source), *arguments)

    def start_tuning(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            [TUNING, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=self._environ,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code of `tuning run`, and what it printed."""
        return finished(self.start(*arguments))

    def tuning(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TUNING, *arguments], capture_output=True, text=True, env=self._environ, timeout=SECONDS
        )

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, "TUNING_HOME": str(self.home)}

    def hold(self) -> None:
        """Have trials wait once they have reported."""
        (self.seen / "hold").touch()

    def let_go(self) -> None:
        (self.seen / "hold").unlink()

    def started(self) -> dict[int, list[float]]:
        """Return the parameter of each start of a trial's code, by the trial's number."""
        files = self.seen.glob("started-*")
        return {int(f.name.split("-")[1]): [float(x) for x in f.read_text().split()] for f in files}

    def record(self) -> FinishedStudy:
        from tuning_operator.cli.local.studies import fetch, parsed

        with reading(self.folder) as address:
            return parsed(fetch(address, "small"))

    def nothing_runs(self) -> bool:
        return not list(marked(self.folder.mark)) and not (self.folder.database / "postmaster.pid").exists()


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a command and all that is in its process group, as `kill -9` does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.02)
