"""The GPUs of this machine, shared by all studies that run on it."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.2
"""How often a waiting trial looks whether another process has freed a GPU."""
DETECTION_SECONDS = 20.0


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them: those in it, otherwise those of nvidia-smi."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        devices = [device.strip() for device in chosen.split(",") if device.strip()]
        return devices[: devices.index("-1")] if "-1" in devices else devices
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-L"], capture_output=True, text=True, check=True, timeout=DETECTION_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # a driver that does not work has no GPU to offer
        return []
    return devices_in(done.stdout)


def devices_in(listing: str) -> list[str]:
    """Return the devices in the output of `nvidia-smi -L`: of a GPU with MIG, its instances."""
    devices: list[str] = []
    for line in listing.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            devices.append(gpu[1])
        elif mig := re.search(r"UUID: (MIG-[^)]+)\)", line):
            if devices and not devices[-1].startswith("MIG-"):
                devices.pop()
            devices.append(mig[1])
    return devices


class Gpus:
    """Lends GPUs to runs, in the order of their requests. A lock file for each keeps other processes off."""

    def __init__(self, devices: Sequence[str], folder: Path) -> None:
        """`folder` has the lock files; those who share GPUs must use the same one."""
        self.devices = tuple(devices)
        self._folder = folder
        self._lent: set[str] = set()
        self._next = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lend(self, count: int) -> AsyncIterator[tuple[str, ...]]:
        """Wait until so many GPUs are free, and lend them during the block."""
        if not count:
            yield ()
            return
        async with self._next:  # the first in the queue gets what is free, however much it needs
            while (locks := self._lock(count)) is None:  # noqa: ASYNC110  other processes free them, too
                await asyncio.sleep(POLL_SECONDS)
        self._lent |= locks.keys()
        try:
            yield tuple(locks)
        finally:
            self._lent -= locks.keys()
            for lock in locks.values():
                lock.close()

    def _lock(self, count: int) -> dict[str, IO[str]] | None:
        """Return the locks of so many free GPUs; None if there are not enough."""
        locks: dict[str, IO[str]] = {}
        for device in self.devices:
            if len(locks) == count:
                break
            if device not in self._lent and (lock := self._try(device)):
                locks[device] = lock
        if len(locks) == count:
            return locks
        for lock in locks.values():
            lock.close()
        return None

    def _try(self, device: str) -> IO[str] | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / f"{device.replace(os.sep, '_')}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock
