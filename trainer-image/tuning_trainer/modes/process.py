"""A program in its own process group: passes on and reads its output by lines, awaits or forces its end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO, TYPE_CHECKING, NamedTuple

from tuning_trainer.log import pass_on

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_LINE = (
    1 << 20
)  # bytes; a longer one is passed on but not read: a part of it could end within a number
LONGEST_BAR = (
    1 << 16
)  # bytes of a line that is redrawn with carriage returns: of a longer one the last half is read
KEPT_LINES, KEPT_WIDTH = 40, 4096
PIPES_GRACE = (
    2.0  # seconds to read the rest when the program has ended but one of its children holds its pipes
)


class Line(NamedTuple):
    """A line that the program wrote."""

    text: str
    on_error: bool
    """Whether it was written to standard error."""


class Program:
    """A running program."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines of both its outputs."""
        self._lines: queue.Queue[Line | None] = queue.Queue()  # None: the end
        self._process = subprocess.Popen(  # noqa: S603  running the user's program is the purpose
            arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._pumps = [
            self._pump(self._process.stdout, sys.stdout.buffer, on_error=False),
            self._pump(self._process.stderr, sys.stderr.buffer, on_error=True),
        ]
        threading.Thread(target=self._await_end, daemon=True).start()

    def new_lines(self, seconds: float) -> tuple[list[Line], bool]:
        """Return the lines written since the last call, and whether the program has ended.

        Waits for some time if there are none.
        """
        lines: list[Line] = []
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=seconds)
            while line is not None:
                lines.append(line)
                line = self._lines.get_nowait()
            return lines, True
        return lines, False

    def signal(self, number: int) -> None:
        """Send a signal to the program and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stop(self, grace: float) -> None:
        """End the program: SIGTERM, and SIGKILL after the grace period (seconds)."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        self.signal(signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def _await_end(self) -> None:
        self._process.wait()
        give_up = time.monotonic() + PIPES_GRACE
        for pump in self._pumps:
            pump.join(max(give_up - time.monotonic(), 0))
        self._lines.put(None)

    def _pump(self, source: IO[bytes] | None, sink: IO[bytes], *, on_error: bool) -> threading.Thread:
        assert source is not None  # noqa: S101  both are pipes
        thread = threading.Thread(target=self._copy, args=(source, sink, on_error), daemon=True)
        thread.start()
        return thread

    def _copy(self, source: IO[bytes], sink: IO[bytes], on_error: bool) -> None:
        for line in _lines(_passed_on(source, sink)):
            text = line.decode(errors="replace")
            self.last_lines.append(text[-KEPT_WIDTH:])
            self._lines.put(Line(text, on_error))


def _passed_on(source: IO[bytes], sink: IO[bytes]) -> Iterator[bytes]:
    while chunk := os.read(source.fileno(), 65536):
        pass_on(chunk, sink)
        yield chunk


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield whole lines, the last one also without its end; leave out those that are too long."""
    rest, too_long = b"", False
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not too_long:
                yield line + b"\n"
            too_long = False
        if len(rest) > LONGEST_BAR:
            rest = rest[rest.find(b"\r", len(rest) - LONGEST_BAR // 2) + 1 :]
        too_long = too_long or len(rest) > LONGEST_LINE
        rest = b"" if too_long else rest
    if rest and not too_long:
        yield rest
