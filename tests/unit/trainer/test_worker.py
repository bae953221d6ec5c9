"""A worker on the real study server: it takes one trial after another, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from ctypes.util import find_library
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from tuning_operator.studies.storage.base import MemoryStore
from tuning_trainer.log import log_end
from tuning_trainer.worker.preload import _foreign_modules

from tests.support.study_server import RunningServer, running_server, study_server  # noqa: F401
from tests.unit.trainer.pod import BARE, FULL, Pod, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STUDY = "/v1/studies/ml/mnist"
SPACE = [{"name": "x", "type": "float", "low": 0, "high": 1}]


class Worker:
    """A study, and a worker of it."""

    def __init__(self, server: RunningServer, folder: Path, slot: int = 0) -> None:
        self.server, self.slot = server, slot
        self.pod = Pod(folder, f"{server.url}{STUDY}/workers/{slot}", TUNING_ROLE="worker", SEEN=str(folder))
        self.pod.token.write_text(server.pod_token("ml", "mnist", f"w{slot}"))
        self.operator = server.operator()
        self.seen = folder
        self.process: subprocess.Popen[str] | None = None

    def declare(self, **definition: Any) -> None:
        base = {"objectives": [{"metric": "accuracy", "direction": "maximize"}], "searchSpace": SPACE}
        self.operator.put(STUDY, json={**base, **definition}).raise_for_status()

    def ask(self, trials: int, parallelism: int = 1) -> None:
        """Have trials running until there are this many in total."""
        body = {"parallelism": parallelism, "maxTrials": trials}
        self.operator.post(f"{STUDY}/ask", json=body).raise_for_status()

    def start(
        self, *arguments: str, python: tuple[str, ...] = BARE, output: int | IO[str] = subprocess.PIPE
    ) -> None:
        self.process = self.pod.start(*arguments, python=python, output=output)

    def record(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.operator.get(f"{STUDY}/record").raise_for_status().json()["trials"]
        return found

    def states(self) -> list[str]:
        return [trial["state"] for trial in self.record()]

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process is None or self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"not within four minutes: {what}"
            time.sleep(0.005)

    def run(self, trials: int) -> None:
        """Ask for one trial after another, and wait for the end of each."""
        for count in range(1, trials + 1):
            self.ask(count)
            self.wait("the trial ends", lambda count=count: "RUNNING" not in self.states()[:count])

    def stop(self) -> tuple[int, str, str]:
        """Stop the pod as the kubelet does; return the exit code and the output."""
        assert self.process
        others = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=240)
        for other in others:  # as in a container, whose other processes end with process 1
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        out, err = self.process.communicate(timeout=240)
        return code, out, err

    def lines(self, name: str) -> list[str]:
        file = self.seen / name
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def worker(study_server: RunningServer, tmp_path: Path) -> Iterator[Worker]:  # noqa: F811
    worker = Worker(study_server, tmp_path)
    worker.declare()
    yield worker
    if worker.process and worker.process.poll() is None:
        worker.process.kill()
        worker.process.communicate()


OBJECTIVE = """
import os, pathlib

seen = pathlib.Path(os.environ["SEEN"])

def note(name, text):
    with (seen / name).open("a") as file:
        file.write(f"{text}\\n")

note("imported", os.getpid())
count = 0

def objective(trial):
    global count
    count += 1
    note("ran", f"{os.getpid()}:{os.getppid()}:{count}:{os.environ['TUNING_TRIAL_NUMBER']}")
    assert not pathlib.Path("left").exists()
    pathlib.Path("left").touch()
    return trial.suggest_float("x", 0, 1)
"""


def test_trials_are_forked_from_one_process_that_has_imported_the_code(worker: Worker) -> None:
    worker.pod.write(OBJECTIVE)
    worker.ask(1)
    worker.start()
    worker.run(4)
    assert worker.states() == ["COMPLETE"] * 4
    assert [trial["values"] for trial in worker.record()] == [[t["parameters"]["x"]] for t in worker.record()]
    (imported,) = worker.lines("imported")
    ran = [line.split(":") for line in worker.lines("ran")]
    assert [parent for _, parent, _, _ in ran] == [imported] * 4
    assert len({pid for pid, _, _, _ in ran}) == 4
    assert [count for _, _, count, _ in ran] == ["1"] * 4, "each has clean memory"
    assert [number for _, _, _, number in ran] == ["0", "1", "2", "3"]
    code, out, err = worker.stop()
    assert code == 143, err
    assert "[trial 3] tuning: trial 3 of ml/mnist with x=" in out


def test_what_pytorch_imports_at_its_first_optimizer_is_imported_before_trials_are_forked(
    worker: Worker, tmp_path: Path
) -> None:
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    for name in ("__init__.py", "_dynamo.py"):
        (package / name).touch()
    worker.pod.environ["PYTHONPATH"] = str(package.parent)
    worker.pod.write("""
        import sys
        import torch

        def objective(trial):
            trial.set_user_attr("imported", "torch._dynamo" in sys.modules)
            return 1.0
    """)
    worker.start(python=FULL)
    worker.run(1)
    (trial,) = worker.record()
    assert trial["userAttrs"] == {"imported": True}


def test_a_trial_that_ends_its_process_fails_and_the_next_one_runs(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, signal, sys

        def objective(trial):
            if trial.number == 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            if trial.number == 1:
                os._exit(0)
            if trial.number == 2:
                os._exit(3)
            if trial.number == 3:
                raise ValueError("boom")
            return 1.0
        """
    )
    worker.start()
    worker.run(5)
    assert worker.states() == ["FAIL"] * 4 + ["COMPLETE"]
    failures = [trial["userAttrs"] for trial in worker.record()[:4]]
    assert [found["failure_category"] for found in failures] == [
        "ExitCode",
        "NoResult",
        "ExitCode",
        "Exception",
    ]
    assert "killed by signal 11" in failures[0]["failure_message"]
    assert "exited with code 3" in failures[2]["failure_message"]
    assert failures[3]["failure_message"] == "ValueError: boom"


def test_the_next_pod_of_a_stopped_worker_gets_its_trial(worker: Worker, tmp_path: Path) -> None:
    worker.pod.write(
        """
        import os, pathlib, time

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.report(x, 0)
            with (seen / "ran").open("a") as file:
                file.write(f"{trial.number}:{x}\\n")
            while (seen / "hold").exists():
                time.sleep(0.01)
            return x
        """
    )
    (tmp_path / "hold").touch()
    worker.ask(1)
    worker.start()
    worker.wait("the trial runs", lambda: len(worker.lines("ran")) == 1)
    code, _, err = worker.stop()
    assert code == 143, err
    assert worker.states() == ["RUNNING"]
    (tmp_path / "hold").unlink()
    worker.start()
    worker.run(1)
    assert worker.states() == ["COMPLETE"]
    first, second = worker.lines("ran")
    assert first == second, "the same trial with the same parameters"


def test_a_worker_that_is_stopped_while_it_starts_a_trial_lets_it_end(worker: Worker) -> None:
    """The trial's process runs, but the supervisor learns of it only after it was stopped itself."""
    worker.pod.write(
        """
        import os, pathlib, signal, time

        seen = pathlib.Path(os.environ["SEEN"])

        def wait_for_sigterm():
            while signal.SIGTERM not in signal.sigpending():
                time.sleep(0.01)

        os.register_at_fork(after_in_parent=wait_for_sigterm)

        def objective(trial):
            (seen / "runs").touch()
            try:
                time.sleep(600)
            finally:
                (seen / "cleaned").touch()
        """
    )
    worker.ask(1)
    worker.start()
    worker.wait("the trial runs", (worker.seen / "runs").exists)
    code, _, err = worker.stop()
    assert code == 143, err
    assert (worker.seen / "cleaned").exists(), "its finally blocks have run"
    assert worker.states() == ["RUNNING"]


def test_a_worker_that_is_stopped_does_not_wait_until_the_code_is_imported(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, pathlib, time

        (pathlib.Path(os.environ["SEEN"]) / "imports").write_text(f"{os.getpgrp()}\\n")
        time.sleep(600)
        """
    )
    worker.ask(1)
    worker.start()
    worker.wait("the code is being imported", lambda: bool(worker.lines("imports")))
    assert worker.process
    group = os.getpgid(worker.process.pid)
    assert worker.lines("imports") != [f"{group}"], "a signal to the supervisor's group does not end it"
    code, _, err = worker.stop()
    assert code == 143, err
    assert worker.states() == ["RUNNING"]


def test_a_trial_that_runs_too_long_ends_alone(worker: Worker) -> None:
    worker.pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 4}'
    worker.pod.write(
        """
        import time

        def objective(trial):
            if trial.number == 0:
                time.sleep(600)
            return 1.0
        """
    )
    worker.start()
    worker.run(5)
    first, *others = worker.states()
    assert first == "FAIL"
    assert "COMPLETE" in others, "on a slow machine, some may take too long as well"
    assert worker.record()[0]["userAttrs"]["failure_category"] == "Timeout"


def test_a_trial_that_ends_in_the_record_is_ended(worker: Worker) -> None:
    """As when its study ends, a user stops it, or it ignores its pruner."""
    worker.pod.write(
        """
        import os, pathlib, time

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            (seen / f"runs-{trial.number}").touch()
            try:
                time.sleep(600 if trial.number == 0 else 0)
            finally:
                (seen / f"cleaned-{trial.number}").touch()
            return 1.0
        """
    )
    worker.ask(1)
    worker.start()
    worker.wait("the trial runs", (worker.seen / "runs-0").exists)
    stopped = {"state": "PRUNED", "failure": {"category": "StoppedByUser", "message": "A user stopped it."}}
    worker.operator.post(f"{STUDY}/trials/0/result", json=stopped).raise_for_status()
    worker.run(2)
    assert worker.states() == ["PRUNED", "COMPLETE"]
    assert (worker.seen / "cleaned-0").exists(), "its finally blocks have run"


def test_what_a_trial_leaves_behind_ends_with_it(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, pathlib, subprocess

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            if trial.number == 0:
                left = subprocess.Popen(["sleep", "600"], start_new_session=True)
                (seen / "left").write_text(str(left.pid))
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    left = int((worker.seen / "left").read_text())
    worker.wait("it is gone", lambda: not Path(f"/proc/{left}").exists())


STARTS_DAEMONS = """
    import os, pathlib, signal, subprocess

    seen = pathlib.Path(os.environ["SEEN"])

    def objective(trial):
        if trial.number == 0:
            start = 'setsid sleep 600 > /dev/null 2>&1 & echo $! > "$SEEN/executed"'
            subprocess.run(["sh", "-c", start], check=True)
            if os.fork() == 0:
                os.setsid()
                if pid := os.fork():
                    (seen / "forked").write_text(f"{pid}")
                    os._exit(0)
                signal.pause()
            os.wait()
        (seen / f"runs-{trial.number}").touch()
        if trial.number == 0:
            (seen / "go").read_text()
        return 1.0
"""
STARTS_DAEMONS_BY_HELPERS = """
    if [ $TUNING_TRIAL_NUMBER = 0 ]; then
        sh -c 'sleep 600 > /dev/null 2>&1 & echo $! > "$SEEN/executed"'
        sh -c 'setsid sleep 600 > /dev/null 2>&1 & echo $! > "$SEEN/forked"'
    fi
    touch "$SEEN/runs-$TUNING_TRIAL_NUMBER"
    if [ $TUNING_TRIAL_NUMBER = 0 ]; then read go < "$SEEN/go"; fi
    echo accuracy=1
"""


@pytest.mark.parametrize(
    "arguments",
    [("objective", "train:objective"), ("command", "--", "sh", "-c", STARTS_DAEMONS_BY_HELPERS)],
    ids=["objective", "command"],
)
def test_what_a_trial_leaves_behind_ends_with_it_and_with_no_other(
    worker: Worker, arguments: tuple[str, ...]
) -> None:
    worker.pod.environ["TUNING_CONFIG"] = json.dumps({"trialsPerPod": 2})
    worker.pod.write(STARTS_DAEMONS)
    os.mkfifo(worker.seen / "go")
    worker.ask(2, parallelism=2)
    worker.start(*arguments)
    worker.wait("the second trial ends", lambda: "COMPLETE" in worker.states())
    worker.wait("the first trial runs", (worker.seen / "runs-0").exists)
    worker.ask(3, parallelism=2)
    worker.wait("a third one has its place", (worker.seen / "runs-2").exists)
    daemons = [int(pid) for name in ("executed", "forked") for pid in worker.lines(name)]
    assert psutil.STATUS_ZOMBIE not in [psutil.Process(pid).status() for pid in daemons]
    (worker.seen / "go").write_text("go\n")
    for pid in daemons:
        wait_until_gone(pid)


def test_what_code_starts_when_it_is_imported_stays(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, subprocess

        start = 'setsid sleep 600 > /dev/null 2>&1 & echo $! > "$SEEN/daemon"'
        subprocess.run(["sh", "-c", start], check=True)

        def objective(trial):
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    daemon = psutil.Process(*map(int, worker.lines("daemon")))
    assert daemon.status() != psutil.STATUS_ZOMBIE
    daemon.kill()


def test_a_program_for_each_trial(worker: Worker) -> None:
    worker.start("command", "--", "sh", "-c", "echo accuracy=$TUNING_PARAM_X; touch left; ls", python=FULL)
    worker.run(3)
    assert worker.states() == ["COMPLETE"] * 3
    assert [trial["values"] for trial in worker.record()] == [[t["parameters"]["x"]] for t in worker.record()]


def test_the_process_of_a_command_connects_while_the_program_runs(worker: Worker) -> None:
    port = httpx.URL(worker.server.url).port

    def is_connected() -> bool:
        assert worker.process
        trials = psutil.Process(worker.process.pid).children(recursive=True)
        remote = [connection.raddr for trial in trials for connection in trial.net_connections()]
        return any(address and address.port == port for address in remote)

    os.mkfifo(worker.seen / "go")
    worker.ask(1)
    worker.start("command", "--", "sh", "-c", 'read go < "$SEEN/go"; echo accuracy=1')
    worker.wait("the trial's process has a connection", is_connected)
    (worker.seen / "go").write_text("go\n")
    worker.wait("the trial ends", lambda: worker.states() == ["COMPLETE"])
    worker.stop()


def test_a_script_for_each_trial(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, pathlib, sys
        import optuna

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            with (seen / "ran").open("a") as file:
                file.write(f"{trial.number}:{os.getppid()}\\n")
            return trial.suggest_float("x", 0, 1)

        study = optuna.create_study(direction="maximize")
        study.optimize(objective, n_trials=100)
        """
    )
    worker.start("script", "train.py", python=FULL)
    worker.run(3)
    assert worker.states() == ["COMPLETE"] * 3, worker.stop()
    assert len({line.split(":")[1] for line in worker.lines("ran")}) == 1


def test_code_that_starts_threads_when_it_is_imported_is_imported_for_each_trial(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, pathlib, threading

        seen = pathlib.Path(os.environ["SEEN"])
        work, done = threading.Event(), threading.Event()

        def serve():
            work.wait()
            done.set()

        threading.Thread(target=serve, daemon=True).start()

        def objective(trial):
            work.set()
            assert done.wait(600)
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    assert worker.states() == ["COMPLETE"] * 2
    assert "starts threads when it is imported" in worker.stop()[2]


@pytest.mark.skipif(find_library("gomp") is None, reason="this machine has no libgomp")
@pytest.mark.parametrize(
    "when", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"], ids=["", "no SIGCHLD"]
)
def test_code_that_uses_openmp_when_it_is_imported_is_imported_for_each_trial(
    worker: Worker, when: str
) -> None:
    """A forked process would wait forever for the threads that it does not have."""
    worker.pod.write(
        f"""
        import ctypes, signal

        {when}
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)

        def compute():
            ctypes.CDLL({find_library("gomp")!r}).GOMP_parallel(nothing, None, 2, 0)

        compute()

        def objective(trial):
            compute()
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    assert worker.states() == ["COMPLETE"] * 2
    assert "uses OpenMP when it is imported" in worker.stop()[2]


@pytest.mark.skipif(find_library("gomp") is None, reason="this machine has no libgomp")
def test_trials_are_forked_from_code_that_has_openmp_and_does_not_use_it(worker: Worker) -> None:
    worker.pod.write(
        f"""
        import ctypes

        library = ctypes.CDLL({find_library("gomp")!r})
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)

        def objective(trial):
            library.GOMP_parallel(nothing, None, 2, 0)
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    assert worker.states() == ["COMPLETE"] * 2
    assert "when it is imported" not in worker.stop()[2]


def test_trials_are_forked_from_code_that_has_used_numpys_threads(worker: Worker) -> None:
    worker.pod.environ["OPENBLAS_NUM_THREADS"] = "2"
    worker.pod.write(
        """
        import numpy

        square = numpy.ones((512, 512))
        square @ square

        def objective(trial):
            return float((square @ square)[0, 0])
        """
    )
    worker.start(python=FULL)
    worker.run(2)
    assert [trial["values"] for trial in worker.record()] == [[512.0]] * 2
    assert "when it is imported" not in worker.stop()[2]


def test_trials_are_forked_from_code_that_has_read_data_with_pyarrow(worker: Worker) -> None:
    """Its pools and its memory allocator have threads of their own, which it starts again after a fork."""
    worker.pod.write(
        """
        import pathlib

        import pyarrow
        from pyarrow import parquet

        file = pathlib.Path("data.parquet").absolute()
        parquet.write_table(pyarrow.table({"x": range(1000), "y": range(1000)}), file)

        def read():
            return len(parquet.read_table(file))

        read()
        threads = len(list(pathlib.Path("/proc/self/task").iterdir()))

        def objective(trial):
            return float(read() + (threads > 1))
        """
    )
    worker.start(python=FULL)
    worker.run(2)
    assert [trial["values"] for trial in worker.record()] == [[1001.0]] * 2
    assert "when it is imported" not in worker.stop()[2]


def test_code_that_runs_a_program_when_it_is_imported_gets_its_exit_code(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, subprocess

        program = subprocess.Popen(["sh", "-c", "exit 3"])
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        code = program.wait()
        left = subprocess.Popen(["true"])  # nothing waits for it

        def objective(trial):
            trial.set_user_attr("code", code)
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    assert worker.states() == ["COMPLETE"] * 2
    assert [trial["userAttrs"]["code"] for trial in worker.record()] == [3, 3]


def test_code_that_can_not_be_imported_fails_each_trial(worker: Worker) -> None:
    worker.pod.write("import nothing_of_this_name\n")
    worker.start()
    worker.run(2)
    assert worker.states() == ["FAIL"] * 2
    assert {t["userAttrs"]["failure_category"] for t in worker.record()} == {"ModuleNotFound"}


def test_code_that_ends_the_process_that_imports_it_fails_each_trial(worker: Worker) -> None:
    worker.pod.write("import os; os._exit(7)\n")
    worker.start()
    worker.run(2)
    assert worker.states() == ["FAIL"] * 2
    assert {"exited with code 7" in t["userAttrs"]["failure_message"] for t in worker.record()} == {True}


def test_a_worker_whose_fork_server_is_killed_goes_on_at_once(worker: Worker) -> None:
    worker.pod.write(
        """
        import os, pathlib, time

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            if trial.number == 0:
                (seen / "parent").write_text(f"{os.getppid()}\\n")
                time.sleep(600)
            return 1.0
        """
    )
    worker.ask(1)
    worker.start()
    worker.wait("the trial runs", lambda: bool(worker.lines("parent")))
    os.kill(int(worker.lines("parent")[0]), signal.SIGKILL)
    worker.run(2)
    assert worker.states() == ["FAIL", "COMPLETE"]


SEEDS = """
    import os, pathlib, random
    import numpy

    seen = pathlib.Path(os.environ["SEEN"])
    {seed}

    def objective(trial):
        with (seen / "drew").open("a") as file:
            file.write(f"{{random.random()}}:{{numpy.random.rand()}}\\n")
        return 1.0
"""


@pytest.mark.parametrize(("seed", "different"), [("", 2), ("random.seed(1); numpy.random.seed(1)", 1)])
def test_random_numbers_are_those_of_a_process_of_its_own(worker: Worker, seed: str, different: int) -> None:
    worker.pod.write(SEEDS.format(seed=seed))
    worker.start(python=FULL)
    worker.run(2)
    first, second = (line.split(":") for line in worker.lines("drew"))
    assert [len({one, other}) for one, other in zip(first, second, strict=True)] == [different, different]


def test_packages_see_the_variables_that_the_code_sets_before_it_imports_them(
    worker: Worker, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("first", "second", "third", "fourth"):
        source = f"import os; backend = os.environ.get('{name.upper()}_BACKEND')"
        (packages / f"{name}.py").write_text(source)
    worker.pod.environ["PYTHONPATH"] = str(packages)
    worker.pod.write("""
        import os
        os.environ["FIRST_BACKEND"] = "jax"
    """, "settings.py")  # fmt: skip
    worker.pod.write("""
        import os
        import settings
        import first
        os.environ.setdefault("SECOND_BACKEND", "jax")
        import second
        os.environ.update({"THIRD_BACKEND": "jax"})
        import third
        for name in ["FOURTH"]:
            os.environ[f"{name}_BACKEND"] = "jax"
        import fourth
        import numpy
        numpy.random.seed(1)

        def objective(trial):
            trial.set_user_attr("drew", numpy.random.rand())
            backends = [module.backend for module in (first, second, third, fourth)]
            trial.set_user_attr("backends", backends)
            return 1.0
    """)
    worker.start(python=FULL)
    worker.run(2)
    one, other = [trial["userAttrs"] for trial in worker.record()]
    assert one["backends"] == ["jax"] * 4
    assert one["drew"] == other["drew"], "the code's seed is kept"


def test_a_seed_that_a_package_sets_is_kept(worker: Worker, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "seeding.py").write_text("import numpy\ndef set_seed(seed): numpy.random.seed(seed)\n")
    worker.pod.environ["PYTHONPATH"] = str(packages)
    worker.pod.write("""
        import os
        DATA = os.environ.get("DATA")
        import seeding
        seeding.set_seed(1)

        def objective(trial):
            import numpy
            trial.set_user_attr("drew", numpy.random.rand())
            return 1.0
    """)
    worker.start(python=FULL)
    worker.run(2)
    one, other = [trial["userAttrs"] for trial in worker.record()]
    assert one["drew"] == other["drew"]


def test_code_that_is_imported_sees_the_pods_variables(worker: Worker) -> None:
    worker.pod.environ.update(HOME="/given", TOKEN="t", KEY="k")
    worker.pod.write("""
        import os
        home = os.getenv("HOME")
        os.environ["HOME"] = "/tmp/scratch"
        token: str = os.environ.pop("TOKEN", "")
        key = os.environ.pop("KEY")
        import decimal

        def objective(trial):
            trial.set_user_attr("seen", [home, token, key, os.environ["HOME"]])
            return 1.0
    """)
    worker.start()
    worker.run(1)
    assert worker.record()[0]["userAttrs"] == {"seen": ["/given", "t", "k", "/tmp/scratch"]}


@pytest.mark.parametrize(
    ("statement", "imported"),
    [
        ("x = os.environ.get('X', '/data')", True),
        ("x = os.getenv('X') or os.environ['HOME']", True),
        ("if 'X' in os.environ: print('X')", True),
        ("os.environ['X'] = '1'", True),
        ("os.environ['X'] = os.environ['HOME']", False),
        ("os.environ.pop('X')", False),
        ("x = set_up(os.environ)", False),
        ("if 'X' not in os.environ: os.environ['X'] = '1'", False),
    ],
)
def test_packages_are_imported_ahead_unless_the_code_may_set_unknown_variables(
    tmp_path: Path, statement: str, imported: bool
) -> None:
    (tmp_path / "train.py").write_text(f"import os\n{statement}\nimport package\nimport decimal\n")
    given = dict(os.environ)
    found = list(_foreign_modules(tmp_path / "train.py", [tmp_path]))
    assert found == ["os", *(["package", "decimal"] if imported else [])]
    assert dict(os.environ) == given


def test_trials_run_side_by_side_and_each_has_its_share_of_the_memory(worker: Worker) -> None:
    config = {"trialsPerPod": 3, "memoryLimit": 600 * 2**20}
    worker.pod.environ["TUNING_CONFIG"] = json.dumps(config)
    worker.pod.write(
        """
        import os, pathlib, time

        seen = pathlib.Path(os.environ["SEEN"])

        def objective(trial):
            print("hello from", trial.number)
            (seen / f"runs-{trial.number}").touch()
            while not (seen / "go").exists():
                time.sleep(0.01)
            if trial.number == 1:
                held = bytearray(400 * 2**20)
                time.sleep(600)
            return float(trial.number)
        """
    )
    worker.ask(3, parallelism=3)
    worker.start()
    worker.wait("all run", lambda: all((worker.seen / f"runs-{n}").exists() for n in range(3)))
    (worker.seen / "go").touch()
    worker.wait("all end", lambda: "RUNNING" not in worker.states())
    assert worker.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    failure = worker.record()[1]["userAttrs"]
    assert failure["failure_category"] == "OutOfMemory"
    assert "more than its share of the memory limit" in failure["failure_message"]
    _, out, _ = worker.stop()
    lines = out.splitlines()
    for number in range(3):
        assert lines.index(f"[trial {number}] hello from {number}") < lines.index(log_end(number))


@pytest.mark.parametrize("imported", ["at the top", "in the trial"])
def test_trials_side_by_side_share_the_memory_of_a_gpu(worker: Worker, imported: str) -> None:
    """tests/gpu shows it with PyTorch and JAX; this is what they are asked for."""
    worker.pod.environ["TUNING_CONFIG"] = json.dumps({"trialsPerPod": 3})
    worker.pod.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "false"
    (worker.pod.source / "torch").mkdir()
    worker.pod.write("import torch.cuda", "torch/__init__.py")
    worker.pod.write(
        """
        limits = {}

        def device_count():
            return 2

        def set_per_process_memory_fraction(fraction, device):
            limits[device] = fraction

        def _lazy_call(function):
            function()
        """,
        "torch/cuda.py",
    )
    first = "import torch" if imported == "at the top" else ""
    worker.pod.write(
        f"""
        import os
        {first}

        def objective(trial):
            import torch
            trial.set_user_attr("torch", [torch.cuda.limits[0], torch.cuda.limits[1]])
            trial.set_user_attr("jax", os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
            trial.set_user_attr("tensorflow", os.environ["TF_FORCE_GPU_ALLOW_GROWTH"])
            return 1.0
        """
    )
    worker.start()
    worker.run(2)
    for trial in worker.record():
        attributes = trial["userAttrs"]
        assert attributes["torch"] == pytest.approx([0.3, 0.3])
        assert (attributes["jax"], attributes["tensorflow"]) == ("0.300", "false")


def test_output_that_cannot_be_written_does_not_end_a_trial(worker: Worker) -> None:
    worker.pod.write(
        """
        def objective(trial):
            for _ in range(200):
                print("x" * 1000)
            return 1.0
        """
    )
    with Path("/dev/full").open("w") as full:
        worker.start(output=full)
    worker.run(1)
    assert worker.states() == ["COMPLETE"]


def test_a_worker_is_stopped_while_it_reports_an_end_to_a_study_server_that_is_gone(tmp_path: Path) -> None:
    with running_server(MemoryStore()) as server:
        worker = Worker(server, tmp_path)
        worker.declare()
        worker.pod.environ["TUNING_CONFIG"] = json.dumps({"trialsPerPod": 2})
        worker.pod.write(
            """
            import os, pathlib, signal

            seen = pathlib.Path(os.environ["SEEN"])

            def objective(trial):
                (seen / f"runs-{trial.number}").touch()
                if trial.number == 0:
                    (seen / "go").read_text()
                    os._exit(3)
                try:
                    signal.pause()
                finally:
                    (seen / "cleaned").touch()
            """
        )
        os.mkfifo(tmp_path / "go")
        worker.ask(2, parallelism=2)
        with (tmp_path / "out").open("w") as output:
            worker.start(output=output)
        worker.wait("both run", lambda: all((tmp_path / f"runs-{number}").exists() for number in range(2)))
    (tmp_path / "go").write_text("go\n")
    worker.wait("the end is reported", lambda: "trial 0: FAIL" in (tmp_path / "out").read_text())
    assert worker.process
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(240) == 143
    assert (tmp_path / "cleaned").exists(), "the other trial has got SIGTERM"


def test_a_study_server_that_restarts_loses_no_trial(tmp_path: Path) -> None:
    store = MemoryStore()
    with running_server(store) as server:
        worker = Worker(server, tmp_path)
        worker.declare()
        worker.pod.write(OBJECTIVE)
        worker.start()
        worker.run(1)
        worker.ask(2)
        port = int(server.url.rpartition(":")[2])
    with running_server(store, port) as server:
        worker.operator = server.operator()
        worker.run(3)
        assert worker.states() == ["COMPLETE"] * 3
        assert len(worker.lines("ran")) == 3, "each ran once"
        worker.stop()
