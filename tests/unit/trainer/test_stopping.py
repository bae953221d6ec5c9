"""SIGTERM and the end of the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from tests.unit.trainer.pod import BARE, Pod

if TYPE_CHECKING:
    from tests.unit.trainer.twin import Handler, Twin

WAITING = """
    import threading

    def objective(trial):
        trial.set_user_attr("begun", True)
        threading.Event().wait(600)
        return 1.0
"""


def begun(twin: Twin) -> None:
    twin.wait_for(lambda: bool(twin.of("/attributes")))


def test_sigterm_ends_the_pod_at_once_and_reports_nothing(pod: Pod, twin: Twin) -> None:
    pod.write(WAITING)
    process = pod.start(python=BARE)
    begun(twin)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert twin.result is None
    assert twin.study.trials[0].state.name == "RUNNING"
    assert pod.log.read_bytes() == b""


def test_sigterm_lets_finally_blocks_run(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import threading
        from pathlib import Path

        def objective(trial):
            try:
                trial.set_user_attr("begun", True)
                threading.Event().wait(600)
            finally:
                Path("checkpoint").write_text("saved")
    """)
    process = pod.start(python=BARE)
    begun(twin)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert (pod.folder / "checkpoint").read_text() == "saved"


def test_sigterm_handled_by_the_users_code_reports_nothing_either(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import signal, threading

        def stop(*_):
            raise RuntimeError("a framework's own way to stop")

        def objective(trial):
            signal.signal(signal.SIGTERM, stop)
            trial.set_user_attr("begun", True)
            threading.Event().wait(600)
    """)
    process = pod.start(python=BARE)
    begun(twin)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert twin.result is None


def test_sigterm_leaves_time_to_deliver_a_result(pod: Pod, twin: Twin) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        held.set()
        assert go.wait(240)
        return False

    twin.faults.extend([lambda _: False, hold])  # the view is served, the result is held up
    pod.write("""
        import tuning_trainer.stopping

        tuning_trainer.stopping.DELIVERY_GRACE = 600

        def objective(trial):
            return 0.5
    """)
    process = pod.start(python=BARE)
    assert held.wait(240)
    process.send_signal(signal.SIGTERM)
    go.set()
    assert process.wait(240) == 0
    assert twin.study.trials[0].value == 0.5


def test_sigterm_of_a_forked_worker_does_not_stop_the_trial(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import multiprocessing, threading

        def objective(trial):
            fork = multiprocessing.get_context("fork")
            for _ in range(20):
                worker = fork.Process(target=threading.Event().wait)
                worker.start()
                worker.terminate()
                worker.join()
                assert worker.exitcode == -15, worker.exitcode
            with fork.Pool(2) as pool:
                return sum(pool.map(abs, [-1, -2]))
    """)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 3


def test_the_next_pod_of_a_stopped_trial_goes_on(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import os, signal, threading

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            seen = dict(trial.user_attrs)
            for step in range(4):
                trial.report(x + step, step)
                trial.should_prune()
                if step == 2 and not seen:
                    trial.set_user_attr("x", x)
                    os.kill(os.getpid(), signal.SIGTERM)
            assert seen["x"] == x
            return x
    """)
    assert pod.run(python=BARE).code == 143
    first = dict(twin.study.trials[0].intermediate_values)
    ended = pod.run(python=BARE)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert list(record.intermediate_values) == [0, 1, 2, 3]
    assert {step: record.intermediate_values[step] for step in first} == first
    assert "already reported" not in ended.err


def test_should_prune_after_a_restart_asks_the_server(pod: Pod, twin: Twin) -> None:
    for _ in range(5):
        done = twin.study.ask()
        for step in range(10):
            done.report(0.9, step)
        twin.study.tell(done, 0.9)
    twin.trial.report(0.1, 3)
    pod.write("""
        import tuning_trainer

        def objective(trial):
            if trial.should_prune():
                raise tuning_trainer.TrialPruned
    """)
    assert pod.run(python=BARE).code == 0
    assert twin.study.trials[0].state.name == "PRUNED"


def test_what_the_users_code_leaves_running_does_not_keep_the_process() -> None:
    code = """
import threading
from tuning_trainer.stopping import exit_within
threading.Thread(target=threading.Event().wait).start()
exit_within(0.1, 5)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 5


def test_sigterm_while_the_process_forks_stops_the_trial(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import os, signal, threading
        from pathlib import Path

        def arrive():
            if not Path("forked").exists():
                Path("forked").touch()
                os.kill(os.getpid(), signal.SIGTERM)

        os.register_at_fork(before=arrive)

        def objective(trial):
            try:
                if not os.fork():
                    os._exit(0)
                threading.Event().wait(600)
            finally:
                Path("checkpoint").write_text("saved")
            return 1.0
    """)
    assert pod.run(python=BARE, timeout=240).code == 143
    assert (pod.folder / "checkpoint").read_text() == "saved"
    assert twin.result is None


def test_sigterm_handled_by_asyncio_reports_nothing_either(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import asyncio, signal

        async def train(trial):
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            trial.set_user_attr("begun", True)
            await stop.wait()
            return 0.1

        def objective(trial):
            return asyncio.run(train(trial))
    """)
    process = pod.start(python=BARE)
    begun(twin)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 143
    assert twin.result is None
