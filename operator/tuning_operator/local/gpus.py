"""The GPUs on this machine, shared by all studies that run on it."""

import asyncio
import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tuning_operator.local.locks import try_lock

POLL_SECONDS = 0.2
"""How often a waiting trial looks whether another process has freed a GPU."""
DETECTION_SECONDS = 20.0


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them: those in it, otherwise those of nvidia-smi."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        devices = [device.strip() for device in chosen.split(",") if device.strip()]
        return devices[: devices.index("-1")] if "-1" in devices else devices
    return devices_in(_listing(shutil.which("nvidia-smi", path=environ.get("PATH"))))


@functools.cache  # it takes a second or more on some machines
def _listing(program: str | None) -> str:
    """Return the output of `nvidia-smi -L`; nothing if there is no such program, or it fails."""
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-L"], capture_output=True, text=True, check=True, timeout=DETECTION_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # a driver that does not work has no GPU to offer
        return ""
    return done.stdout


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


def lock_names(devices: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each device's lock: its UUID, since other machines may share the lock files.

    They, or containers on this machine, may have another GPU with the same number.
    """
    if not devices:
        return {}
    listing = _listing(shutil.which("nvidia-smi", path=environ.get("PATH")))
    uuids = dict(re.findall(r"^GPU (\d+):.*\(UUID: (GPU-[^)]+)\)", listing, re.MULTILINE))
    names: dict[str, str] = {}
    for device in devices:
        # CUDA accepts the beginning of a UUID.
        whole = [uuid for uuid in uuids.values() if device.startswith("GPU-") and uuid.startswith(device)]
        number = f"{socket.gethostname()}-{device}" if device.isdecimal() else device
        names[device] = whole[0] if whole else uuids.get(device, number)
    return names


class Gpus:
    """Lends GPUs to runs, in the order of their requests. A lock file for each keeps other processes off."""

    def __init__(self, locks: Mapping[str, str], folder: Path) -> None:
        """Begin with all GPUs.

        Args:
            locks: the GPUs, with the name of the lock of each.
            folder: has the lock files; those who share GPUs must use the same one.
        """
        self.devices = tuple(locks)
        self._names, self._folder = locks, folder
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
        name = self._names[device].replace(os.sep, "_")
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context((self._folder / f"{name}.lock").open("w"))
            if not try_lock(lock):
                return None
            stack.pop_all()
        return lock
