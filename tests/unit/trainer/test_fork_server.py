"""The fork server learns of each trial's end, whenever the signal comes and whichever thread gets it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

SECONDS = 60
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


@pytest.mark.parametrize(
    ("before", "in_parent"),
    [(RECEIVES_LATE, ""), (HAS_A_THREAD, "if pid: forks[-1]()")],
    ids=["just before it waits", "before fork has returned, in another thread"],
)
def test_a_trial_that_ends_at_any_moment_is_reported(before: str, in_parent: str) -> None:
    ours, theirs = socket.socketpair()
    code = SERVER.format(before=before, in_parent=in_parent)
    command = [sys.executable, "-c", code, str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as server:
        theirs.close()
        ours.settimeout(SECONDS)
        lines = ours.makefile("r")
        try:
            for number in range(2):
                ours.sendall(json.dumps([number, {}, None, False, None]).encode() + b"\n")
                started, ended = next(lines).split(), next(lines).split()
                assert started[:2] == ["started", str(number)]
                assert ended == ["ended", started[2], "0"]
        finally:
            server.kill()
