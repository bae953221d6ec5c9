"""The guard: a process that ends a study's processes when the command that runs it is killed.

`python -m tuning_operator.local.guard FOLDER MARK` reads its standard input, whose other end only the command
holds: at its end, the command is gone, for whatever reason.
"""

import subprocess
import sys
from pathlib import Path

from tuning_operator.local import postgres
from tuning_operator.local.home import StudyFolder
from tuning_operator.local.processes import sweep

GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL: without the study server, trials can't report anything any more."""


class Guard:
    """The guard of a study, as its command sees it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @classmethod
    def start(cls, folder: StudyFolder, mark: str, lock: int) -> "Guard":
        """Start it; it keeps the lock (a file descriptor) until it is done."""
        command = [sys.executable, "-m", "tuning_operator.local.guard", str(folder.path), mark]
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=[lock]
        )
        return cls(process)

    def end(self) -> None:
        """Let it end; it finds nothing to do."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Wait for the command's end, then end what it has left."""
    folder, mark = StudyFolder(Path(sys.argv[1])), sys.argv[2]
    sys.stdin.buffer.read()
    sweep(mark, GRACE_SECONDS)
    postgres.stop(folder.database)
    folder.address.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
