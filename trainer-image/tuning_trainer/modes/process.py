"""A program in a process group of its own: its output passed on line by line, its end awaited or forced."""

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

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_LIMIT = 65536  # bytes; a longer line comes in pieces
KEPT_LINES = 40
PIPES_GRACE = 2.0  # seconds to read what is left when the program is gone but a child of it holds its pipes


class Event(NamedTuple):
    """Something the program did: a line on its standard output, or (None) its end."""

    line: str | None


class Program:
    """A running program."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines of both its outputs."""
        self._events: queue.Queue[Event] = queue.Queue()
        self._process = subprocess.Popen(  # noqa: S603  to run the user's program is what this is for
            arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._pumps = [
            self._pump(self._process.stdout, sys.stdout.buffer, self._events.put),
            self._pump(self._process.stderr, sys.stderr.buffer, None),
        ]
        threading.Thread(target=self._await_end, daemon=True).start()

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event, or None if there is none for some time. The end comes last."""
        with contextlib.suppress(queue.Empty):
            return self._events.get(timeout=seconds)
        return None

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
        self._events.put(Event(None))

    def _pump(
        self, source: IO[bytes] | None, sink: IO[bytes], tell: Callable[[Event], None] | None
    ) -> threading.Thread:
        assert source is not None  # noqa: S101  both are pipes
        thread = threading.Thread(target=self._copy, args=(source, sink, tell), daemon=True)
        thread.start()
        return thread

    def _copy(self, source: IO[bytes], sink: IO[bytes], tell: Callable[[Event], None] | None) -> None:
        while line := source.readline(LINE_LIMIT):
            sink.write(line)
            sink.flush()
            text = line.decode(errors="replace")
            self.last_lines.append(text)
            if tell is not None:
                tell(Event(text))
