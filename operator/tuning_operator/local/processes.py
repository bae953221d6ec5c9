"""Processes of a study's runs: every one of them carries a mark in its environment, by which it is found."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from tuning_trainer.failure import LOCAL

MARK = LOCAL
"""The variable with the mark. Programs that a run starts inherit it, also those in sessions of their own."""
POLL_SECONDS = 0.05


def marked(prefix: str) -> Iterator[psutil.Process]:
    """Yield the processes of this user whose mark starts with `prefix`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK, "").startswith(prefix):
                yield process


def sweep(prefix: str, grace: float = 0.0) -> None:
    """End all processes with such a mark: SIGTERM, and SIGKILL after the grace period (seconds)."""
    deadline = time.monotonic() + grace
    if grace:
        for process in marked(prefix):
            with contextlib.suppress(psutil.Error):
                process.terminate()
    while found := list(marked(prefix)):
        if time.monotonic() >= deadline:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(POLL_SECONDS)


class Program:
    """A program that was started in a process group of its own, and its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self._process, self._mark = process, mark

    @classmethod
    async def start(
        cls, command: Sequence[str], folder: Path, environ: Mapping[str, str], mark: str, log: Path
    ) -> "Program":
        """Start it. Raises OSError."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={**environ, MARK: mark},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, mark)

    async def end(self) -> int:
        """Wait for its end, then end what it has left behind; return the exit code, 128 + N for signal N."""
        code = await self._process.wait()
        await asyncio.to_thread(sweep, self._mark)
        return code if code >= 0 else 128 - code

    async def stop(self, grace: float) -> None:
        """End it: SIGTERM, and SIGKILL after the grace period (seconds)."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            self.kill()
        await self.end()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
