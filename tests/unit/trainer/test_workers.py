"""Scripts whose workers, processes or threads, share a study: a pod runs its one trial once."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest
from tuning_trainer.modes.workers import Workers

from tests.unit.trainer.pod import FULL, Pod

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.trainer.twin import Twin

OBJECTIVE = """
import multiprocessing, os, sys, threading, time
import optuna

def objective(trial):
    with open("runs", "a") as file:
        file.write("run\\n")
    time.sleep(0.3)
    trial.set_user_attr("process", os.getpid())
    return trial.suggest_float("x", 0, 1)

def create():
    return optuna.create_study(study_name="shared", storage="sqlite:////nowhere/shared.db",
                               load_if_exists=True, direction="maximize")

def work(number=0):
    create().optimize(objective, n_trials=6)
    return number
"""

WORKERS = {
    "process pool executor, fork": """
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
                list(pool.map(work, range(3)))
            print(create().best_value)
    """,
    "process pool executor, spawn": """
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(work, range(3)))
            print(create().best_value)
    """,
    "forkserver": """
        if __name__ == "__main__":
            with multiprocessing.get_context("forkserver").Pool(2) as pool:
                print(pool.map(work, range(2)))
            print(create().best_value)
    """,
    "pool, fork": """
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(4)))
            print(create().best_value)
    """,
    "pool, spawn, whose workers are replaced": """
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                print(pool.map(work, range(2), chunksize=1))
            print(create().best_value)
    """,
    "pool whose workers read the result": """
        def best(number):
            work(number)
            return create().best_value
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(3) as pool:
                print(list(pool.imap_unordered(best, range(3))))
    """,
    "processes of one study": """
        if __name__ == "__main__":
            study = create()
            fork = multiprocessing.get_context("fork")
            workers = [fork.Process(target=study.optimize, args=(objective, 5)) for _ in range(3)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            print(study.best_value)
    """,
    "spawned processes of one study without a name": """
        if __name__ == "__main__":
            study = optuna.create_study(direction="maximize")
            spawn = multiprocessing.get_context("spawn")
            workers = [spawn.Process(target=study.optimize, args=(objective, 5)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            print(study.best_value)
    """,
    "processes that are not joined": """
        if __name__ == "__main__":
            for _ in range(2):
                multiprocessing.get_context("spawn").Process(target=work).start()
    """,
    "thread pool": """
        from concurrent.futures import ThreadPoolExecutor
        study = create()
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(study.optimize, objective, 2)
        print(study.best_value)
    """,
    "thread pool whose results are read": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            print(list(pool.map(work, range(4))))
    """,
    "thread pool that is not shut down": """
        from concurrent.futures import ThreadPoolExecutor
        study = create()
        pool = ThreadPoolExecutor(2)
        futures = [pool.submit(study.optimize, objective, 2) for _ in range(3)]
    """,
    "thread that is not joined": """
        threading.Thread(target=work).start()
    """,
    "thread that the main thread polls": """
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            time.sleep(0.01)
        print(create().best_value)
    """,
    "a thread and the main thread": """
        study = create()
        thread = threading.Thread(target=study.optimize, args=(objective,))
        thread.start()
        study.optimize(objective, n_trials=5)
        print(study.best_value)
    """,
    "asyncio.to_thread": """
        import asyncio
        async def main():
            study = create()
            await asyncio.to_thread(study.optimize, objective, n_trials=3)
            print(study.best_value)
        asyncio.run(main())
    """,
    "asyncio.gather": """
        import asyncio
        async def main():
            study = create()
            await asyncio.gather(*[asyncio.to_thread(study.optimize, objective, 3) for _ in range(3)])
            print(study.best_value)
        asyncio.run(main())
    """,
    "ask and tell in processes": """
        def ask_and_tell(number):
            study = create()
            for _ in range(5):
                trial = study.ask()
                study.tell(trial, objective(trial))
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(ask_and_tell, range(2))
    """,
}


@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
def test_workers_run_the_trial_once(pod: Pod, twin: Twin, workers: str) -> None:
    pod.write(OBJECTIVE + textwrap.dedent(workers))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert (pod.folder / "runs").read_text() == "run\n"
    record = twin.study.trials[0]
    assert record.value == record.params["x"]
    assert len(twin.of("/result")) == 1
    assert "signal only works" not in ended.err
    assert not list(pod.folder.glob("shared.db"))


def test_a_forked_worker_delivers_the_result_of_a_trial_with_a_timeout(pod: Pod, twin: Twin) -> None:
    pod.environ["TUNING_CONFIG"] = '{"timeoutSeconds": 500}'
    pod.write(OBJECTIVE + textwrap.dedent(WORKERS["pool, fork"]))
    ended = pod.run("script", "train.py", python=FULL, timeout=240)
    assert ended.code == 0, ended
    assert [result["state"] for result in twin.of("/result")] == ["COMPLETE"]


CONFLICT = """
    import multiprocessing

    def tune(name):
        study = optuna.create_study(study_name=name, direction="maximize")
        study.optimize(objective, n_trials=3)
        return study.best_value

    if __name__ == "__main__":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(tune, ["a", "b"]))
"""


def test_workers_of_different_studies_are_rejected(pod: Pod, twin: Twin) -> None:
    pod.write(OBJECTIVE + textwrap.dedent(CONFLICT))
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 1, ended
    assert "workers optimize several studies" in twin.failure.message
    assert "same study_name" in (twin.failure.remedy or "")


def test_the_exit_code_is_that_of_the_first_result(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import threading
        import optuna

        training = threading.Event()

        def objective(trial):
            training.set()
            second.join()
            return trial.suggest_float("x", 0, 1)

        def tune(name):
            study = optuna.create_study(study_name=name, direction="maximize")
            study.optimize(objective, n_trials=3)

        def tune_later():
            training.wait()
            tune("b")

        second = threading.Thread(target=tune_later)
        second.start()
        tune("a")
    """)
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert "workers optimize several studies" in twin.failure.message


def test_a_worker_that_is_killed_is_a_failure(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import os, signal
        from concurrent.futures import ProcessPoolExecutor
        import optuna

        def objective(trial):
            os.kill(os.getpid(), signal.SIGKILL)

        def work(number):
            optuna.create_study(study_name="a", direction="maximize").optimize(objective)

        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as pool:
                list(pool.map(work, range(2)))
    """)
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert "BrokenProcessPool" in twin.failure.message


def test_workers_exceptions_are_the_trials(pod: Pod, twin: Twin) -> None:
    pod.write("""
        from concurrent.futures import ThreadPoolExecutor
        import optuna

        def objective(trial):
            raise RuntimeError("the loss exploded")

        study = optuna.create_study(direction="maximize")
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(study.optimize, objective) for _ in range(2)]
    """)
    assert pod.run("script", "train.py", python=FULL).code == 1
    assert twin.failure.message == "RuntimeError: the loss exploded"


def test_the_objectives_own_workers_use_plain_optuna(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import multiprocessing, threading
        from concurrent.futures import ThreadPoolExecutor
        import optuna

        def inner(number):
            study = optuna.create_study(direction="maximize")
            study.optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=3)
            return len(study.trials)

        def objective(trial):
            with ThreadPoolExecutor(2) as pool:
                total = sum(pool.map(inner, range(2)))
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    total += sum(pool.map(inner, range(2)))
            study = optuna.create_study()
            study.optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=4, n_jobs=2)
            return total + len(study.trials)

        if __name__ == "__main__":
            optuna.create_study(direction="maximize").optimize(objective)
    """)
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 22


def test_threads_of_the_objective_share_the_trial(pod: Pod, twin: Twin) -> None:
    pod.write("""
        from concurrent.futures import ThreadPoolExecutor
        import optuna

        def objective(trial):
            def fold(number):
                weight = trial.suggest_float(f"weight{number}", 0, 1)
                same = trial.suggest_float("shared", 0, 1)
                for again in range(3):
                    trial.set_user_attr(f"score{number}-{again}", weight)
                trial.report(weight, number)
                return weight, same

            with ThreadPoolExecutor(8) as pool:
                folds = list(pool.map(fold, range(24)))
            assert len({same for _, same in folds}) == 1
            for number, (weight, _) in enumerate(folds):
                assert trial.params[f"weight{number}"] == weight
            return sum(weight for weight, _ in folds)

        optuna.create_study(direction="maximize").optimize(objective, n_trials=4)
    """)
    ended = pod.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    record = twin.study.trials[0]
    assert len(record.params) == 25
    assert len(record.user_attrs) == 72
    assert len(record.intermediate_values) == 24


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_refits_workers_have_the_finished_study(refit: Pod, method: str) -> None:
    refit.write(
        OBJECTIVE
        + textwrap.dedent(f"""
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(2, multiprocessing.get_context("{method}")) as pool:
                list(pool.map(work, range(2)))
            study = optuna.load_study(study_name="shared", storage="sqlite:////nowhere/shared.db")
            print(study.best_params, len(study.trials))
        """)
    )
    ended = refit.run("script", "train.py", python=FULL)
    assert ended.code == 0, ended
    assert ended.out == "{'x': 0.25} 1\n"


def test_a_stopped_pod_whose_worker_runs_the_trial_reports_nothing(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import threading
        import optuna

        def objective(trial):
            trial.set_user_attr("started", True)
            threading.Event().wait(600)

        study = optuna.create_study(direction="maximize")
        thread = threading.Thread(target=study.optimize, args=(objective,), daemon=True)
        thread.start()
        thread.join()
    """)
    process = pod.start("script", "train.py", python=FULL)
    twin.wait_for(lambda: bool(twin.of("/attributes")))
    process.terminate()
    assert process.wait(240) == 143
    assert twin.result is None


def test_a_thread_that_asks_again_leaves_the_owner_as_it_is(tmp_path: Path) -> None:
    workers = Workers(tmp_path, os.getpid())
    assert workers.take_trial("first")
    assert not workers.take_trial("second")
    assert workers.owner() == (os.getpid(), "first", False)


@pytest.mark.parametrize("asked", [True, False])
def test_who_waits_for_study_tell_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    monkeypatch.setattr("tuning_trainer.modes.workers.ASK_SECONDS", 0.0)
    asks, waits = (Workers(tmp_path, 0) for _ in range(2))
    assert asks.take_trial("shared", asked)
    polls = iter([lambda: None, lambda: None, lambda: asks.finish(0)])
    monkeypatch.setattr("tuning_trainer.modes.workers.time.sleep", lambda _: next(polls)())
    assert waits.wait() == 0
    assert capsys.readouterr().err.count(f"process {os.getpid()} has asked for the trial") == asked
