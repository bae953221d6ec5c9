"""Worker processes and threads of a script: the first that asks runs the pod's trial, the others wait for it.

The workers of a pod share a folder of two files: `trial` says who runs the trial, `result` how it ended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuning_trainer.log import log
from tuning_trainer.optuna_api import hook
from tuning_trainer.runner import TrialOver
from tuning_trainer.temporary import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FOLDER = "TUNING_WORKERS"
"""Environment variable: the folder, for processes that the script spawns."""
IN_OBJECTIVE = "TUNING_IN_OBJECTIVE"
"""Environment variable: set while the objective runs, whose processes use plain Optuna."""
WAKE_UP = signal.SIGURG  # ignored by default, and hardly used by anyone
POLL = 0.1  # seconds
ASK_SECONDS = 60.0
"""How long to wait for a trial that a worker asked for before that is logged."""


class Owner(NamedTuple):
    """Who runs the trial."""

    process: int
    study: str
    asked: bool
    """Whether by study.ask: its code may end without study.tell, while its process or thread goes on."""


class TrialOverInWorker(Exception):  # noqa: N818  not an error: it ends the worker's code
    """Ends the code of a worker process, as TrialOver ends the script's.

    SystemExit would end the process, for whose result a multiprocessing.Pool would wait forever.
    """


class Workers:
    """What one of the pod's processes knows about the others."""

    def __init__(self, folder: Path, main_process: int) -> None:
        self._main_process = main_process
        self._exit_code: int | None = None
        self._thread: threading.Thread | None = None  # the one that runs the trial, if it is this process's
        self._trial = folder / "trial"
        self._result = folder / "result"

    @property
    def in_main_process(self) -> bool:
        """Whether this process runs the script, rather than one that the script started."""
        return os.getpid() == self._main_process

    def take_trial(self, study: str, asked: bool = False) -> bool:
        """Return whether the caller gets the trial, for the study with this key."""
        draft = self._trial.with_name(f"trial-{os.getpid()}-{threading.get_ident()}")
        try:
            draft.write_text(f"{os.getpid()} {int(asked)}\n{study}")
            os.link(draft, self._trial)
        except (FileExistsError, FileNotFoundError):  # not found: the script's process has ended
            return False
        finally:
            draft.unlink(missing_ok=True)  # written again by the thread's next call, it would be `trial` too
        self._thread = threading.current_thread()
        return True

    @property
    def in_owning_thread(self) -> bool:
        """Whether the current thread runs the trial, or has run it."""
        return self._thread is threading.current_thread()

    def owner(self) -> Owner | None:
        """Return who runs the trial, or has run it; None if nobody has asked for it."""
        try:
            first, _, study = self._trial.read_text().partition("\n")
        except FileNotFoundError:
            return None
        process, asked = map(int, first.split())
        return Owner(process, study, bool(asked))

    def finish(self, exit_code: int) -> int:
        """Let all workers know that the trial's result is delivered; return the code of the first result.

        A worker thread wakes the main thread. A worker process does not: the main process would terminate
        a multiprocessing.Pool while its workers send results, which can leave the pool in a deadlock.
        """
        if (first := self.exit_code()) is None:
            self._exit_code = first = exit_code
            draft = self._result.with_name(f"result-{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):  # the script's process has ended
                draft.write_text(str(exit_code))
                draft.replace(self._result)
        main = threading.main_thread()
        if self.in_main_process and threading.current_thread() is not main:
            signal.pthread_kill(main.ident or 0, WAKE_UP)
        return first

    def exit_code(self) -> int | None:
        """Return the exit code for the trial's result; None if there is no result yet."""
        if self._exit_code is None:
            with contextlib.suppress(FileNotFoundError):
                self._exit_code = int(self._result.read_text())
        return self._exit_code

    def wait(self) -> int | None:
        """Return the exit code once there is a result; None if the worker that runs the trial has ended.

        None also if it is the current thread, which would wait for itself.
        """
        owner = self.owner()
        log_at: float | None = time.monotonic() + ASK_SECONDS
        while (code := self.exit_code()) is None and owner is not None and self._goes_on(owner):
            if owner.asked and log_at is not None and time.monotonic() >= log_at:
                log(
                    f"this worker waits for the trial's result: process {owner.process} has asked for the "
                    "trial (study.ask), but has not called study.tell yet; if its code raises an exception "
                    "in between, it has to call study.tell with state=TrialState.FAIL"
                )
                log_at = None
            time.sleep(POLL)
        if code is None:
            code = (
                self.exit_code() if self.owner() else 0
            )  # the folder is removed when the script's process ends
        return code

    def _goes_on(self, owner: Owner) -> bool:
        if owner.process == os.getpid() and self._thread is not None:
            return not self.in_owning_thread and self._thread.is_alive()
        return _runs(owner.process)

    def wait_for_leftovers(self) -> None:
        """Wait until there is a result or all workers are gone."""
        wait_for_leftovers(lambda: self.exit_code() is not None)


def wait_for_leftovers(is_over: Callable[[], bool] = lambda: False) -> None:
    """Wait for the script's threads and processes, as Python does at the end of a script."""
    end_executors()
    while not is_over() and (_children() or _threads()):
        time.sleep(POLL)


def end_executors() -> None:
    """Let executors run what is submitted, and end their workers."""
    for name in ("concurrent.futures.process", "concurrent.futures.thread"):
        if name in sys.modules:
            sys.modules[name]._python_exit()  # noqa: SLF001  what Python calls at the end of a script


def start_workers() -> Workers:
    """Return the workers of a script that this process, the main one, is about to run."""
    folder = new_folder("tuning-workers-")
    workers = Workers(Path(folder), os.getpid())
    atexit.register(_remove, folder, os.getpid())  # after the threads, which may still ask for the trial
    os.environ[FOLDER] = f"{os.getpid()}:{folder}"
    connect_spawned_processes()

    def wake_up(_signal: int, _frame: FrameType | None) -> None:
        if (code := workers.exit_code()) is not None:
            raise TrialOver(code)

    signal.signal(WAKE_UP, wake_up)
    return workers


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def connect_spawned_processes() -> None:
    """Let processes that the script spawns load a patched Optuna."""
    os.environ.pop(IN_OBJECTIVE, None)
    sys.path.insert(0, hook.SPAWNED)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # not on Linux
        return True
    return state != "Z"  # a zombie: ended, but not yet noticed by its parent


def _children() -> bool:
    """Return whether the script has started processes that Python waits for at the end."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing else []
    return any(not child.daemon for child in children)


def _threads() -> bool:
    others = set(threading.enumerate()) - {threading.main_thread(), threading.current_thread()}
    return any(not thread.daemon for thread in others)
