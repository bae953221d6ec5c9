"""The pod's first process: gets trials from the study server, and has each run in a process of its own.

It runs no user code, so nothing that a trial does can end it. Its main thread takes one event after another;
two others wait for the study server and for the fork server, and one for each end that is being reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.exceptions import advice
from tuning_trainer.failure import Failure, termination_message
from tuning_trainer.log import log, log_end, log_prefix, pass_on, write_termination_message
from tuning_trainer.optuna_api.trial import PATIENCE
from tuning_trainer.stopping import EXIT_CODE
from tuning_trainer.temporary import new_folder, temporary_folder
from tuning_trainer.wire.client import Client, Refused, Unreachable
from tuning_trainer.worker import memory, orphans
from tuning_trainer.worker.fork_server import Order

if TYPE_CHECKING:
    from tuning_trainer.settings import Settings

WAIT = 25.0
"""Seconds that the study server waits for something to do before it replies."""
REPLY_SECONDS = 30.0
PRUNE_GRACE = 30.0  # seconds, if TUNING_CONFIG has no pruneGraceSeconds
STOP_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL for a trial that has ended in the record: Kubernetes' default."""
STOP_PATIENCE = 10.0
"""Seconds to wait for the study server while the pod is being stopped."""
ECHO_GRACE = 2.0
"""Seconds for the rest of the output at the end."""
PIPE, TERMINATION, VIEW = "output", "termination", "view.json"  # files in a trial's folder
TIMEOUT = Failure(
    "Timeout",
    "The trial ran longer than its timeout (spec.trial.timeout) and was stopped.",
    "Raise spec.trial.timeout, or make the trial faster.",
)
LOOK_EVERY = 0.1
"""Seconds between looks at the memory that trials use."""
NOT_FOUND = 404


class _Started(NamedTuple):
    number: int
    pid: int


class _Ended(NamedTuple):
    pid: int
    status: int


class _Place(NamedTuple):
    """Where a trial runs."""

    work: Path | None
    """The working directory; None: that of the pod."""
    isolated: bool
    """Whether it gets links to the files of the pod's working directory."""
    output: Path
    log: str
    """Where to find the output, for messages."""


@dataclass
class _Trial:
    """A trial of this pod: it waits, runs, or is over and still exits."""

    number: int
    started: str | None
    """When it started, by the record."""
    folder: Path
    """Its temporary folder."""
    pid: int | None = None
    over: bool = False
    """Whether it is known to have ended in the record."""
    log: str = ""
    """Where its output is, for messages."""
    ordered: float | None = None
    """When it was ordered from the fork server."""
    end_by: float | None = None
    """When to send the next signal."""
    shortage: Failure | None = None
    """Why it was ended for lack of memory."""
    signals: list[int] = field(default_factory=lambda: [signal.SIGTERM, signal.SIGKILL])
    """The signals still to send."""


class Supervisor:
    """Runs the trials of a pod."""

    def __init__(self, settings: Settings, command: list[str], descriptor: str) -> None:
        """Start nothing yet.

        Args:
            settings: the worker's.
            command: starts the runtime in another interpreter.
            descriptor: the environment variable for the fork server's socket.
        """
        self._settings, self._command, self._descriptor = settings, command, descriptor
        self._config = settings.config
        self._capacity = int(self._config.get("trialsPerPod", 1))
        self._memory: int | None = self._config.get("memoryLimit")
        self._study_url = settings.trial_url.rpartition("/workers/")[0]
        self._client = Client(settings.trial_url, settings.token_file, settings.ca_file)
        self._trials: dict[int, _Trial] = {}
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._taken = threading.Semaphore(0)
        self._fork_server: tuple[int, socket.socket] | None = None
        self._echoes: list[threading.Thread] = []
        self._reports: dict[int, threading.Thread] = {}
        """The threads that report ends which are not known to be in the record yet, by trial."""
        self._stopping = False
        self._exit_code = EXIT_CODE

    def run(self) -> int:
        """Run trials until the pod is stopped; return the exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self._events.put("stop"))
        orphans.adopt()
        threading.Thread(target=self._ask, daemon=True).start()
        while not (self._stopping and not any(trial.ordered is not None for trial in self._trials.values())):
            event = None
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=self._next_deadline())
            self._handle(event)
            self._meet_deadlines()
            self._limit_memory()
        self._kill_fork_server()
        give_up = time.monotonic() + STOP_PATIENCE
        for report in list(self._reports.values()):
            report.join(max(give_up - time.monotonic(), 0.0))
        for echo in self._echoes:
            echo.join(ECHO_GRACE)
        return self._exit_code

    # --- the study server

    def _ask(self) -> None:
        """Ask for what to do, again whenever the last reply was taken."""
        wait, was_reached = 0.0, False  # the first reply comes at once, since it shows that there is a server
        while True:
            body = {"running": self._running(), "capacity": self._capacity, "timeout": wait}
            try:
                reply = self._client.call(
                    "POST", "/trials", body, patience=PATIENCE, timeout=wait + REPLY_SECONDS
                )
            except Unreachable as error:
                if was_reached:
                    continue
                self._events.put(error)
                return
            except Refused as error:
                self._events.put(error)
                return
            wait, was_reached = WAIT, True
            self._events.put(reply)
            self._taken.acquire()

    def _running(self) -> list[int]:
        running = [trial.number for trial in list(self._trials.values()) if not trial.over]
        return sorted({*running, *list(self._reports)})

    def _take(self, reply: dict[str, Any]) -> None:
        now = time.monotonic()
        for number in reply["ended"]:
            self._reports.pop(number, None)
            trial = self._trials.get(number)
            if trial is None or trial.over:
                continue
            trial.over = True
            grace = float(self._config.get("pruneGraceSeconds", PRUNE_GRACE))
            trial.end_by = now if number in reply["stopped"] else now + grace
            if trial.ordered is None:
                self._forget(trial)
        for view in reply["start"]:
            number = view["trial"]["number"]
            if number not in self._trials and number not in self._reports:
                folder = Path(new_folder(f"tuning-trial-{number}-"))
                (folder / VIEW).write_text(json.dumps(view))
                self._trials[number] = _Trial(number, view["trial"].get("started"), folder)
        self._taken.release()

    def _tell(self, trial: _Trial, result: dict[str, Any]) -> None:
        """Have a thread report an end: an outage of the study server delays nothing else in the pod."""
        report = threading.Thread(target=self._report, args=(trial, result), daemon=True)
        self._reports[trial.number] = report
        report.start()

    def _report(self, trial: _Trial, result: dict[str, Any]) -> None:
        """Report the end of a trial that may have had no result; if it has one, that is kept."""
        url = f"{self._study_url}/trials/{trial.number}"
        client = Client(url, self._settings.token_file, self._settings.ca_file, reached=True)
        client.trial_started = trial.started
        try:
            patience = STOP_PATIENCE if self._stopping else PATIENCE
            client.call("POST", "/result", result, patience=patience)
        except (Refused, Unreachable) as error:
            log(f"the end of trial {trial.number} could not be reported: {error}")
        finally:
            client.close()
            self._reports.pop(trial.number, None)

    # --- events

    def _handle(self, event: Any) -> None:
        if event == "stop":
            self._stop()
        elif event == "fork server ended":
            self._fork_server_ended()
        elif isinstance(event, dict):
            self._take(event)
        elif isinstance(event, _Started):
            self._trials[event.number].pid = event.pid
            if self._stopping:
                _signal(event.pid, signal.SIGTERM)
        elif isinstance(event, _Ended):
            trial = next((trial for trial in self._trials.values() if trial.pid == event.pid), None)
            if trial is not None:
                self._end(trial, event.status)
        elif isinstance(event, (Refused, Unreachable)):
            self._give_up(event)
        self._start_next()

    def _start_next(self) -> None:
        """Order the trials that wait, as far as there is room beside those that run or still exit."""
        if self._stopping:
            return
        ordered = sum(trial.ordered is not None for trial in self._trials.values())
        waiting = [trial for trial in self._trials.values() if trial.ordered is None]
        for trial in waiting[: self._capacity - ordered]:
            self._order(trial)

    def _order(self, trial: _Trial) -> None:
        trial.ordered = time.monotonic()
        order = self._described(trial)
        if self._fork_server is None:
            self._fork_server = self._start_fork_server()
        with contextlib.suppress(OSError):  # it has just ended: the event comes
            self._fork_server[1].sendall(json.dumps(order).encode() + b"\n")

    def _described(self, trial: _Trial) -> Order:
        temporary, report = trial.folder / "tmp", trial.folder / TERMINATION
        temporary.mkdir()
        report.touch()
        place = self._place(trial)
        trial.log = place.log
        environ = {
            "TUNING_TRIAL_URL": f"{self._study_url}/trials/{trial.number}",
            "TUNING_TRIAL_NUMBER": str(trial.number),
            "TUNING_ROLE": "trial",
            "TUNING_TERMINATION_LOG": str(report),
            "TUNING_TRIAL_VIEW": str(trial.folder / VIEW),
            "TUNING_CONFIG": json.dumps({**self._config, "log": place.log}),
            "TMPDIR": str(temporary),
        }
        directory = None if place.work is None else str(place.work)
        return Order(trial.number, environ, directory, place.isolated, str(place.output))

    def _place(self, trial: _Trial) -> _Place:
        """Return where a trial runs: as in a pod of its own, or in the local mode in its folder."""
        pattern = self._config.get("trialFolder")
        if pattern is not None:
            folder = Path(pattern.format(trial=trial.number))
            folder.mkdir(parents=True, exist_ok=True)
            work = folder / "work" if self._settings.source else None
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
            return _Place(work, isolated=False, output=folder / "log", log=str(folder / "log"))
        pipe = trial.folder / PIPE
        os.mkfifo(pipe)
        echo = threading.Thread(target=_copy_lines, args=(pipe, trial.number), daemon=True)
        echo.start()
        self._echoes = [*filter(threading.Thread.is_alive, self._echoes), echo]
        work = trial.folder / "work" if _is_private(Path.cwd()) else None
        if work is not None:
            work.mkdir()
        return _Place(work, isolated=True, output=pipe, log=self._config.get("log", "the pod's log"))

    def _end(self, trial: _Trial, status: int) -> None:
        assert trial.pid is not None  # noqa: S101  it has run
        _kill_session(trial.pid)
        orphans.end(except_for=self._fork_server and self._fork_server[0])
        self._report_end(trial, status)
        self._forget(trial)

    def _report_end(self, trial: _Trial, status: int) -> None:
        """Report how a trial ended, unless it is over, or only its process has ended, with the pod."""
        left = _left_by(trial)
        if trial.over or (self._stopping and left is None):
            return
        if left is None:
            failure = trial.shortage or (TIMEOUT if self._is_late(trial) else _why_ended(trial, status))
            log(f"trial {trial.number}: FAIL: {failure.message}")
            left = {"state": "FAIL", "failure": failure.to_wire()}
        self._tell(trial, left)

    def _forget(self, trial: _Trial) -> None:
        del self._trials[trial.number]
        with contextlib.suppress(OSError):  # a trial that did not start has not opened it
            os.close(os.open(trial.folder / PIPE, os.O_WRONLY | os.O_NONBLOCK))
        shutil.rmtree(trial.folder, ignore_errors=True)

    def _give_up(self, error: Refused | Unreachable) -> None:
        """Leave: the study is gone, or nothing can be done here; trials that run get SIGTERM."""
        if isinstance(error, Refused) and error.status == NOT_FOUND:
            log("the study has ended")
        else:
            category = "StudyServerRefused" if isinstance(error, Refused) else "StudyServerUnreachable"
            failure = Failure(category, str(error), getattr(error, "remedy", None))
            log(f"{category}: {error}")
            write_termination_message(self._settings.termination_log, termination_message(failure))
            self._exit_code = 1
        self._stop()

    def _stop(self) -> None:
        """Let the trials' processes end as a pod's would; their trials stay with this slot."""
        self._stopping = True
        for trial in self._trials.values():
            if trial.pid is not None:
                _signal(trial.pid, signal.SIGTERM)
            elif trial.ordered is not None and self._fork_server:  # it forks, or still imports the code
                _signal(self._fork_server[0], signal.SIGTERM)

    # --- time

    def _next_deadline(self) -> float | None:
        moments = [moment for trial in self._trials.values() if (moment := self._deadline(trial)) is not None]
        left = max(min(moments) - time.monotonic(), 0.0) if moments else None
        if self._memory is None or not any(trial.pid for trial in self._trials.values()):
            return left
        return LOOK_EVERY if left is None else min(left, LOOK_EVERY)

    def _deadline(self, trial: _Trial) -> float | None:
        if trial.pid is not None:
            return trial.end_by if trial.signals else None
        seconds = self._config.get("timeoutSeconds")
        return trial.ordered + float(seconds) if trial.ordered is not None and seconds is not None else None

    def _meet_deadlines(self) -> None:
        now = time.monotonic()
        for trial in list(self._trials.values()):
            deadline = self._deadline(trial)
            if deadline is None or deadline > now:
                continue
            if trial.pid is None:  # its code is still being imported
                self._kill_fork_server()
                continue
            number = trial.signals.pop(0)
            _signal(trial.pid, number)
            if number == signal.SIGKILL:
                _kill_session(trial.pid)
            trial.end_by = now + STOP_GRACE

    def _limit_memory(self) -> None:
        """End a trial that uses more than its share of the pod's memory, before the kernel ends the pod."""
        if self._memory is None:
            return
        own = [os.getpid(), *([self._fork_server[0]] if self._fork_server else [])]
        share = (self._memory - sum(map(memory.used, own))) // self._capacity
        for trial in self._trials.values():
            if trial.pid is None or trial.shortage or memory.used_by_tree(trial.pid, share) <= share:
                continue
            megabytes = share // 2**20
            message = (
                f"The trial used more than its share of the memory limit, {megabytes} MiB, and was stopped."
            )
            remedy = (
                "Raise resources.limits.memory of the container `trainer`, lower spec.trial.trialsPerPod, or "
                "make the trial use less memory (for example, a smaller batch size)."
            )
            trial.shortage = Failure("OutOfMemory", message, remedy)
            for pid in memory.tree(trial.pid):
                _signal(pid, signal.SIGKILL)

    # --- the fork server

    def _start_fork_server(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        environ = {**os.environ, self._descriptor: str(theirs.fileno())}
        theirs.set_inheritable(True)
        # in a group of its own: while it imports the code, a signal to the group of this process would end it
        pid = os.posix_spawn(self._command[0], self._command, environ, setpgroup=0)
        theirs.close()
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        return pid, ours

    def _listen(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for line in connection.makefile("r"):
                what, first, second = line.split()
                kind = _Started if what == "started" else _Ended
                self._events.put(kind(int(first), int(second)))
        self._events.put("fork server ended")

    def _fork_server_ended(self) -> None:
        """Only the user's code ends it, or its timeout: another one gets the next trial."""
        assert self._fork_server is not None  # noqa: S101  it has run
        pid, connection = self._fork_server
        self._fork_server = None
        connection.close()
        _signal(pid, signal.SIGKILL)  # the user's code may have closed the connection only
        _, status = os.waitpid(pid, 0)
        for trial in list(self._trials.values()):
            if trial.ordered is None:
                continue
            if trial.pid is not None:
                _kill_session(trial.pid)
            self._report_end(trial, status)
            self._forget(trial)

    def _is_late(self, trial: _Trial) -> bool:
        deadline = self._deadline(trial)
        return trial.pid is None and deadline is not None and deadline <= time.monotonic()

    def _kill_fork_server(self) -> None:
        if self._fork_server:
            _signal(self._fork_server[0], signal.SIGKILL)


def _copy_lines(pipe: Path, trial: int) -> None:
    """Copy a trial's lines to standard output, each at once and with a prefix, and mark their end."""
    prefix = log_prefix(trial).encode()
    with pipe.open("rb") as source:
        for line in source:
            pass_on(prefix + line.rstrip(b"\n") + b"\n", sys.stdout.buffer)
    pass_on(f"{log_end(trial)}\n".encode(), sys.stdout.buffer)


def _left_by(trial: _Trial) -> dict[str, Any] | None:
    """Return the end that a trial has left as its termination message: a result, or a failure."""
    try:
        left: dict[str, Any] = json.loads((trial.folder / TERMINATION).read_text())
    except (OSError, ValueError):
        return None
    return left if "state" in left else {"state": "FAIL", "failure": left}


def _why_ended(trial: _Trial, status: int) -> Failure:
    """Return why a process ended that has reported nothing."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    if code == 0:
        return Failure(
            "NoResult",
            "The trial's process exited without an error, but did not report a result.",
            "Make sure that the code runs to its end: os._exit ends the process before the result is "
            "reported.",
        )
    if code > 0:
        message = f"The trial's process exited with code {code} before it had a result."
        return Failure("ExitCode", message, f"See {trial.log}.")
    message = f"The trial's process was killed by signal {-code} ({signal.strsignal(-code)})."
    memory = f"It may have run out of memory: {advice().memory}. "
    return Failure("ExitCode", message, f"{memory if -code == signal.SIGKILL else ''}See {trial.log}.")


def _is_private(folder: Path) -> bool:
    """Return whether a folder belongs to this container alone, and is not on a volume."""
    own = {os.stat(path).st_dev for path in ("/", temporary_folder())}  # noqa: PTH116
    return folder.stat().st_dev in own


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_session(leader: int) -> None:
    """End what a trial has left in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
