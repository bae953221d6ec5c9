"""The process that trials are forked from: it has one thread, imports the user's code once, never uses CUDA.

Each line that it receives is an Order. It sends the lines `started NUMBER PID` and `ended PID STATUS`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tuning_trainer.log import log
from tuning_trainer.stopping import EXIT_GRACE, exit_within
from tuning_trainer.worker import orphans
from tuning_trainer.worker.preload import Preloaded
from tuning_trainer.workspace import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST_TO_END = "1000"
"""Where memory runs out, the kernel ends a trial's process rather than the fork server or the supervisor."""
MODULES = (
    "tuning_trainer.runner",
    "tuning_trainer.modes.{mode}",
    "tuning_trainer.worker.gpu_memory",
    "ctypes",
    "ssl",
)
"""What each trial needs of the runtime: Python compiles what it imports from a zip file each time."""
RECEIVED_BYTES = 65536


class Order(NamedTuple):
    """A trial to start."""

    number: int
    environ: dict[str, str]
    """Variables that differ from those of the pod."""
    directory: str | None
    """The working directory; None: that of the pod."""
    isolated: bool
    """Whether the working directory shall have links to the files of the pod's."""
    output: str | None
    """A file or a named pipe for the output; None: that of the pod."""


class ForkServer:
    """Forks a process for each order."""

    def __init__(
        self, descriptor: int, arguments: list[str], main: Callable[[list[str]], int], command: list[str]
    ) -> None:
        """Nothing is imported yet.

        Args:
            descriptor: of the socket to the supervisor.
            arguments: the command line of the runtime.
            main: runs the trial that the environment describes; returns the exit code.
            command: starts the runtime in another interpreter.
        """
        self._arguments, self._main, self._command = arguments, main, command
        self._connection = socket.socket(fileno=descriptor)
        self._connection.set_inheritable(False)
        self._preloaded: Preloaded | None = None
        self._trials: set[int] = set()
        """The processes of the trials that run."""
        self._wakes, self._woken = os.pipe()
        """Python writes each signal to the second one as it comes, and runs its handler only later."""
        os.set_blocking(self._woken, False)

    def serve(self) -> None:
        """Return when the supervisor has closed the connection; SIGTERM ends it while it imports the code."""
        for module in MODULES:
            with contextlib.suppress(ImportError):  # some images lack ssl or ctypes
                importlib.import_module(module.format(mode=self._arguments[0]))
        source = prepare(os.environ.get("TUNING_SOURCE") or None)
        for line in self._lines():
            if self._preloaded is None and self._arguments[0] != "command":
                self._preload(source)
            self._handle_signals()  # the user's code may have changed them
            self._fork(Order(*json.loads(line)))

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines that come; report the trials that end in between.

        A trial may end just before this process waits: its signal does not interrupt that, but the pipe does.
        """
        waiting, received = select.poll(), b""
        waiting.register(self._connection, select.POLLIN)
        waiting.register(self._wakes, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in waiting.poll()]
            if self._wakes in ready:
                os.read(self._wakes, RECEIVED_BYTES)
                self._reap()
            if self._connection.fileno() in ready:
                more = self._connection.recv(RECEIVED_BYTES)
                if not more:
                    return
                *lines, received = (received + more).split(b"\n")
                yield from lines

    def _handle_signals(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the trials' processes
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, nothing is written to the pipe
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    def _preload(self, source: str | None) -> None:
        orphans.adopt()  # what the code starts in the background is for all trials
        self._preloaded = Preloaded(self._arguments[0], self._arguments[1:], source)
        orphans.adopt(wanted=False)
        if self._preloaded.obstacle:
            log(
                f"the code {self._preloaded.obstacle} when it is imported, so each trial gets a new "
                "interpreter and imports it again"
            )
        gc.collect()
        gc.freeze()  # the memory that trials share stays shared

    def _fork(self, order: Order) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the trial gets it once it handles it
        pid = os.fork()
        if pid == 0:
            self._run(order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._trials.add(pid)
        self._connection.sendall(f"started {order.number} {pid}\n".encode())

    def _reap(self) -> None:
        """Report the trials that have ended; other processes belong to the user's code, which awaits them."""
        for trial in list(self._trials):
            pid, status = os.waitpid(trial, os.WNOHANG)
            if pid:
                self._trials.remove(pid)
                self._connection.sendall(f"ended {pid} {status}\n".encode())

    def _run(self, order: Order) -> NoReturn:
        """Be the trial's process."""
        code = 1
        try:
            os.setsid()
            self._release()
            orphans.adopt()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            _enter(order)
            if self._preloaded and self._preloaded.obstacle:
                os.execve(self._command[0], self._command, os.environ)  # noqa: S606
            _forget_exit_functions()
            if self._preloaded:
                self._preloaded.reseed()
            try:
                code = self._main(self._arguments)
                exit_within(EXIT_GRACE, code)
            except SystemExit as end:  # of a process that the user's code has forked, as other exceptions
                code = _exit_code(end)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            _exit_as_python_does()
        finally:
            os._exit(code)

    def _release(self) -> None:
        """Have nothing more of the fork server's connection and signals."""
        self._connection.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wakes)
        os.close(self._woken)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _enter(order: Order) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_END)
    os.environ.update(order.environ)
    tempfile.tempdir = None
    if order.output is not None:
        output = os.open(order.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    if order.directory is not None:
        if order.isolated:
            for entry in Path.cwd().iterdir():
                Path(order.directory, entry.name).symlink_to(entry)
        os.chdir(order.directory)
        os.environ["PWD"] = order.directory


def _forget_exit_functions() -> None:
    """Exit functions from before the fork belong to the fork server: they would delete what trials share."""
    atexit._clear()  # noqa: SLF001
    for info in weakref.finalize._registry.values():  # type: ignore[attr-defined]  # noqa: SLF001
        info.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # noqa: SLF001


def _exit_code(end: SystemExit) -> int:
    """Return the exit code for an exception as Python does: it prints one that is not a number."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


def _exit_as_python_does() -> None:
    """Wait for threads and call exit functions; the interpreter itself need not be taken down."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    atexit._run_exitfuncs()  # noqa: SLF001
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing._exit_function()  # noqa: SLF001
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
