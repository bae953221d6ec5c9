"""The fork server learns of each trial's end, and a trial's processes end as Python's do."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 240
SERVER = """
import ctypes, functools, operator, os, signal, socket, sys, threading
from tuning_trainer.worker import fork_server

libc = ctypes.CDLL(None)
wait = libc.waitid  # unlike os.waitid, no handler runs in it
forks = []
fork = os.fork

def noted():
    pid = fork()
    forks.append(functools.partial(wait, os.P_PID, pid, None, os.WEXITED | os.WNOWAIT))
    {in_parent}
    return pid

os.fork = noted
{before}
fork_server.ForkServer(int(sys.argv[1]), ["command"], lambda _: 0, []).serve()
"""
RECEIVES_LATE = """
class Late(socket.socket):
    "Waits for the last trial's end just before it receives: no Python code runs between the two."

    def recv(self, *arguments):
        return [*map(operator.call, [*forks[-1:], functools.partial(super().recv, *arguments)])][-1]

    def recv_into(self, *arguments):
        return [*map(operator.call, [*forks[-1:], functools.partial(super().recv_into, *arguments)])][-1]

fork_server.socket.socket = Late
"""
HAS_A_THREAD = "threading.Thread(target=threading.Event().wait, daemon=True).start()"


FORKS = """
import atexit, os, sys
from tuning_trainer.worker import fork_server

def main(_):
    pid = os.fork()
    if pid == 0:
        atexit.register(print, "goodbye")
        raise {error}
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

fork_server.ForkServer(int(sys.argv[1]), ["command"], main, []).serve()
"""


class Server:
    """A fork server that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r")

    def run(self, number: int, output: Path | None = None) -> int:
        """Run a trial and return its status, as os.waitpid does."""
        order = [number, {}, None, False, None if output is None else str(output)]
        self._connection.sendall(json.dumps(order).encode() + b"\n")
        started, ended = next(self._lines).split(), next(self._lines).split()
        assert started[:2] == ["started", str(number)]
        assert ended[:2] == ["ended", started[2]]
        return int(ended[2])


@contextlib.contextmanager
def serving(code: str) -> Iterator[Server]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", code, str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(SECONDS)
        try:
            yield Server(ours)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("before", "in_parent"),
    [(RECEIVES_LATE, ""), (HAS_A_THREAD, "if pid: forks[-1]()")],
    ids=["just before it waits", "before fork has returned, in another thread"],
)
def test_a_trial_that_ends_at_any_moment_is_reported(before: str, in_parent: str) -> None:
    with serving(SERVER.format(before=before, in_parent=in_parent)) as server:
        assert [server.run(number) for number in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ("SystemExit", 0, ""),
        ("SystemExit('no data')", 1, "no data"),
        ("ValueError('no data')", 1, "Traceback"),
    ],
)
def test_a_process_that_a_trial_forks_ends_as_python_does(
    tmp_path: Path, error: str, code: int, says: str
) -> None:
    output = tmp_path / "output"
    with serving(FORKS.format(error=error)) as server:
        assert server.run(0, output) == code << 8
    shown = output.read_text()
    assert says in shown
    assert "goodbye" in shown
