"""Runs the runtime as a pod does: the zip file, started by some Python, with the pod's environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import IO, Any

from tuning_operator.trainer_archive import trainer_archive

BARE = (os.environ.get("TUNING_TEST_PYTHON", sys.executable), "-S", "-I")
"""A Python without any package: as in an image that has nothing of ours. TUNING_TEST_PYTHON names another."""
FULL = (sys.executable,)
"""A Python with Optuna."""


class Pod:
    """A folder with the zip, a token, the user's code and the termination log."""

    def __init__(self, folder: Path, url: str, **environ: str) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir(exist_ok=True)
        self.zip = folder / "trainer.zip"
        self.zip.write_bytes(trainer_archive().content)
        self.token = folder / "token"
        self.token.write_text("token-1\n")
        self.log = folder / "termination-log"
        self.log.touch()
        self.working_directory = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "TUNING_TRIAL_URL": url,
            "TUNING_TOKEN_FILE": str(self.token),
            "TUNING_STUDY": "ml/mnist",
            "TUNING_TRIAL_NUMBER": "0",
            "TUNING_SOURCE": str(self.source),
            "TUNING_TERMINATION_LOG": str(self.log),
            **environ,
        }

    def write(self, code: str, name: str = "train.py") -> None:
        (self.source / name).write_text(textwrap.dedent(code))

    def start(
        self, *arguments: str, python: tuple[str, ...] = FULL, output: int | IO[str] = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*python, str(self.zip), *(arguments or ("objective", "train:objective"))],
            cwd=self.working_directory,
            env=self.environ,
            stdout=output,
            stderr=output,
            text=True,
        )

    def run(self, *arguments: str, python: tuple[str, ...] = FULL, timeout: float = 240) -> Ended:
        process = self.start(*arguments, python=python)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return Ended(process.returncode, out, err)

    def termination(self) -> dict[str, Any]:
        return json.loads(self.log.read_bytes())


class Ended:
    """The exit code and the output of a pod that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def wait_until_gone(pid: int) -> None:
    """Wait until a process has ended, also if its parent has not heard of it yet."""
    give_up = time.monotonic() + 240
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while ") Z " not in (status := Path(f"/proc/{pid}/stat").read_text()):
            assert time.monotonic() < give_up, status
            time.sleep(0.01)
