"""`optimize(callbacks=[...])`: those whose effect belongs to the trial run in its pod, after its end."""

from __future__ import annotations

import pytest

from tests.unit.trainer.pod import BARE, FULL, Pod
from tests.unit.trainer.twin import Twin


@pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])
def test_callbacks_get_the_ended_trial_after_its_result_is_recorded(
    pod: Pod, twin: Twin, python: tuple[str, ...]
) -> None:
    pod.write("""
        import optuna

        def objective(trial):
            for step in range(2):
                trial.report(step / 2, step)
            trial.set_user_attr("epochs", 2)
            return trial.suggest_float("x", 1, 2, log=True) * 0 + trial.suggest_categorical("c", [7, 7])

        class Logger:
            def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
                print("logged", study.study_name, study.directions[0].name, study.user_attrs, trial.number,
                      trial.state.name, trial.state.is_finished(), trial.value, sorted(trial.params),
                      trial.user_attrs, trial.intermediate_values, sorted(trial.distributions),
                      trial.system_attrs,
                      trial.datetime_start is not None, isinstance(study, optuna.Study), len(study.trials),
                      len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))), flush=True)

        study = optuna.create_study(study_name="mine", direction="maximize")
        study.set_user_attr("team", "a")
        study.optimize(objective, callbacks=[Logger(), lambda study, trial: print("second")])
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    assert (
        "logged mine MAXIMIZE {'team': 'a'} 0 COMPLETE True 7.0 ['c', 'x'] {'epochs': 2} {0: 0.0, 1: 0.5} "
        "['c', 'x'] {} True True 1 1\nsecond\n" in ended.out
    ), ended
    assert twin.result


def test_callbacks_that_concern_the_study_are_not_run_and_the_log_names_the_fields(
    pod: Pod, twin: Twin
) -> None:
    pod.write("""
        import optuna
        from optuna.study import MaxTrialsCallback
        from optuna.terminator import TerminatorCallback

        def stops(study, trial):
            study.enqueue_trial({"x": 1})
            study.set_user_attr("best", trial.number)
            if trial.value > 0:
                study.stop()
            print("after stop")

        class EarlyStopping:
            def __call__(self, study, trial):
                if study.best_value > 0.9:
                    print("never")

        def fails(study, trial):
            raise SystemExit("broken")

        study = optuna.create_study(direction="maximize")
        study.optimize(lambda trial: 1.0, callbacks=[
            MaxTrialsCallback(3), TerminatorCallback(), stops, EarlyStopping(), fails,
            lambda study, trial: print("last"),
        ])
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 1.0
    assert ended.out == "after stop\nlast\n"
    for line in (
        "the callback MaxTrialsCallback is not run, since it ends the study: use spec.maxTrials\n",
        "the callback TerminatorCallback is not run, since it ends the study: "
        "use spec.maxTrialsWithoutImprovement\n",
        "study.stop is ignored: spec.objectives[].target",
        "study.enqueue_trial is ignored: put known good points into spec.initialTrials",
        "study.set_user_attr('best') is ignored in a callback",
        "the callback EarlyStopping stopped at study.best_value: a trial can't read other trials; "
        "spec.maxTrialsWithoutImprovement and spec.objectives[].target end a study early",
        "SystemExit: broken",
        "the callback fails failed with the exception above; the trial's result is kept",
    ):
        assert line in ended.err, (line, ended)


@pytest.mark.parametrize(
    ("objective", "catch", "printed"),
    [
        ("raise optuna.TrialPruned", "()", "PRUNED None\n"),
        ("raise KeyError('a')", "(KeyError,)", "FAIL None\n"),
        ("return float('nan')", "()", "FAIL None\n"),
        ("raise KeyError('a')", "()", ""),
    ],
)
def test_callbacks_run_after_the_same_ends_of_a_trial_as_in_optuna(
    pod: Pod, objective: str, catch: str, printed: str
) -> None:
    pod.write(f"""
        import optuna

        def objective(trial):
            {objective}

        def log(study, trial):
            print(trial.state.name, trial.value)

        study = optuna.create_study(direction="maximize")
        study.optimize(objective, catch={catch}, callbacks=[log])
    """)
    ended = pod.run("script", "train.py", python=BARE)
    assert ended.out == printed, ended


def test_callbacks_run_in_the_worker_that_ran_the_trial_before_the_script_ends(pod: Pod) -> None:
    pod.write("""
        import multiprocessing, time
        import optuna

        def log(study, trial):
            time.sleep(0.3)
            print("logged", trial.number, flush=True)

        def work(_):
            study = optuna.create_study(study_name="one", direction="maximize")
            study.optimize(lambda trial: 1.0, callbacks=[log])

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                pool.map(work, range(2))
    """)
    ended = pod.run("script", "train.py")
    assert (ended.code, ended.out) == (0, "logged 0\n"), ended
