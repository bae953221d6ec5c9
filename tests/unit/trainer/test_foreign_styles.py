"""Scripts in the styles that people write; docs/guide/optuna-scripts.md lists those of others."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from tuning_operator.studies.auth.tokens import mint_pod

from tests.support.study_server import SECRET, RunningServer, study_server  # noqa: F401
from tests.unit.trainer.pod import BARE, FULL, Pod
from tests.unit.trainer.twin import Twin


def test_optunas_artifacts_and_integrations_store_attributes_of_the_trial(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna, numpy
        from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
        from optuna.terminator import report_cross_validation_scores

        def objective(trial):
            report_cross_validation_scores(trial, numpy.array([0.5, 0.25]))
            store = FileSystemArtifactStore(".")
            upload_artifact(artifact_store=store, file_path=__file__, study_or_trial=trial)
            assert [meta.filename for meta in get_all_artifact_meta(trial)] == ["train.py"]
            trial.set_user_attr("recall", numpy.float32(0.5))
            assert trial.study._is_multi_objective() is False  # as Hugging Face's Trainer asks
            return 1.0

        optuna.create_study(direction="maximize").optimize(objective)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    attrs = twin.study.trials[0].user_attrs
    assert attrs["system_attrs:terminator:cv_scores"] == [0.5, 0.25]
    assert attrs["recall"] == 0.5
    assert [key for key in attrs if key.startswith("system_attrs:artifacts:")]


def test_storages_stay_closed_and_settings_of_the_whole_study_are_logged_and_ignored(
    pod: Pod, twin: Twin
) -> None:
    pod.write("""
        import optuna
        from optuna.storages import JournalStorage, RDBStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.study import MaxTrialsCallback

        def objective(trial):
            if trial.suggest_float("x", 0, 1) > 0:
                study.stop()
                trial.study.stop()
            return 0.5

        RDBStorage("postgresql://nobody@nowhere.invalid/none", heartbeat_interval=60)
        journal = JournalStorage(JournalFileBackend("/nowhere/journal.log"))
        optuna.delete_study(study_name="mine", storage="sqlite:////nowhere/study.db")
        study = optuna.create_study(study_name="mine", storage=journal, direction="maximize")
        study.enqueue_trial({"x": 0.25})
        study.optimize(objective, n_trials=3, callbacks=[MaxTrialsCallback(3)], catch=(ValueError,),
                       gc_after_trial=True, show_progress_bar=True)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == 0.5
    assert "spec.initialTrials, here: {'x': 0.25}" in ended.err
    assert ended.err.count("study.stop is ignored") == 2
    assert "the script's storage is ignored" in ended.err


@pytest.mark.parametrize("python", [BARE, FULL], ids=["bare", "optuna"])
def test_the_samplers_constraints_func_runs_in_the_pod(pod: Pod, twin: Twin, python: tuple[str, ...]) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"sampler": {"name": "TPESampler", "args": {}}})
    pod.write("""
        import optuna

        def objective(trial):
            trial.set_user_attr("size", trial.suggest_int("n", 1, 8))
            return 1.0

        def constraints(trial):
            return trial.user_attrs["size"] - 8, 3

        sampler = optuna.samplers.TPESampler(constraints_func=constraints)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective)
    """)
    ended = pod.run("script", "train.py", python=python)
    assert ended.code == 0, ended
    trial = twin.study.trials[0]
    assert trial.constraints == {"0": trial.params["n"] - 8, "1": 3}


def test_a_constraints_func_that_fails_is_the_trials_failure(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        sampler = optuna.samplers.TPESampler(constraints_func=lambda trial: [trial.user_attrs["size"]])
        optuna.create_study(direction="maximize", sampler=sampler).optimize(lambda trial: 1.0)
    """)
    assert pod.run("script", "train.py").code == 1
    assert twin.failure.message == "KeyError: 'size'"


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        ("Mine()", "The script's sampler Mine is not one of optuna.samplers"),
        (
            "optuna.samplers.TPESampler(gamma=lambda n: 3)",
            "has gamma of type function, which a manifest can't",
        ),
        ("optuna.samplers.CmaEsSampler(source_trials=[object()])", "spec.warmStart"),
    ],
)
def test_a_sampler_that_a_manifest_cannot_express_is_rejected(
    pod: Pod, twin: Twin, sampler: str, says: str
) -> None:
    pod.environ["TUNING_CONFIG"] = json.dumps({"sampler": {"name": "TPESampler", "args": {}}})
    pod.write(f"""
        import optuna

        class Mine(optuna.samplers.RandomSampler):
            pass

        optuna.create_study(direction="maximize", sampler={sampler}).optimize(lambda trial: 1.0)
    """)
    assert pod.run("script", "train.py").code == 1
    assert says in f"{twin.failure.message} {twin.failure.remedy}"


def test_a_study_built_in_several_steps_is_rejected(pod: Pod, twin: Twin) -> None:
    package = pod.source / "optuna_integration" / "lightgbm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def run(study, objective):\n    study.optimize(objective)\n")
    pod.write("""
        import optuna, optuna_integration.lightgbm

        optuna_integration.lightgbm.run(optuna.create_study(direction="maximize"), lambda trial: 1.0)
    """)
    assert pod.run("script", "train.py").code == 1
    assert "LightGBMTuner optimizes in several steps" in twin.failure.message


def test_the_sampler_that_an_integration_chooses_contradicts_nothing(pod: Pod, twin: Twin) -> None:
    package = pod.source / "optuna_integration" / "sklearn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import optuna, random\n\n\n"
        "def search(objective):\n"
        "    sampler = optuna.samplers.TPESampler(seed=random.randint(0, 2**31))\n"
        "    optuna.create_study(direction='maximize', sampler=sampler).optimize(objective)\n"
    )
    pod.environ["TUNING_CONFIG"] = json.dumps({"sampler": {"name": "TPESampler", "args": {}}})
    pod.write("""
        import optuna_integration.sklearn

        optuna_integration.sklearn.search(lambda trial: 0.5)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended


def test_ask_with_distributions_and_tell_by_number(pod: Pod, twin: Twin) -> None:
    pod.write("""
        import optuna

        study = optuna.create_study(direction="maximize")
        space = {"x": optuna.distributions.FloatDistribution(0.5, 1)}
        for _ in range(3):
            trial = study.ask(space)
            for step in range(2):
                trial.report(trial.params["x"], step)
                if trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            study.tell(trial.number, trial.params["x"])
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert twin.study.trials[0].value == twin.study.trials[0].params["x"] >= 0.5


def test_the_refit_has_attributes_and_constraints_and_one_study_however_it_is_loaded(
    pod: Pod, twin: Twin
) -> None:
    twin.study.tell(twin.trial, state=optuna.trial.TrialState.FAIL)
    for value in (1.0, 2.0):
        trial = twin.study.ask()
        trial.set_user_attr("system_attrs:artifacts:a", json.dumps({"artifact_id": "a", "filename": "m.pt"}))
        trial.set_constraint("0", -1)
        twin.study.tell(trial, value)
    twin.finished = twin.study.trials
    twin.trial = twin.study.ask()
    twin.final = True
    pod.environ["TUNING_ROLE"] = "final"
    pod.write("""
        import optuna
        from optuna.study import MaxTrialsCallback

        storage = optuna.storages.RDBStorage("sqlite:///study.db")
        study = optuna.create_study(study_name="mine", storage=storage, load_if_exists=True)
        study.enqueue_trial({"x": 1})
        study.optimize(None, n_trials=50, callbacks=[MaxTrialsCallback(10)])
        again = optuna.load_study(study_name="mine", storage=storage)
        assert len(again.trials) == len(study.trials) == 3
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        assert all(trial.system_attrs["constraints"] == [-1] for trial in complete)
        assert all(trial.constraints == {"0": -1} for trial in complete)
        assert "artifacts:a" in storage.get_trial_system_attrs(study.best_trial._trial_id)
        assert study.best_trial.user_attrs == {}
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert not (pod.folder / "study.db").exists()


def test_several_objectives_with_constraints_and_their_pareto_front_in_the_refit(
    study_server: RunningServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    operator = study_server.operator()
    directions = ("minimize", "maximize")
    objectives = [{"metric": f"v{i}", "direction": one} for i, one in enumerate(directions)]
    initial = [{"x": 2.0}, {"x": 1.0}, {"x": 0.5}]
    definition = {"objectives": objectives, "initialTrials": initial}
    operator.put("/v1/studies/ml/front", json=definition).raise_for_status()
    code = """
        import optuna

        def objective(trial):
            x = trial.suggest_float("x", 0, 5)
            return x, x

        sampler = optuna.samplers.NSGAIISampler(constraints_func=lambda trial: [trial.params["x"] - 1.5])
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        study.optimize(objective, n_trials=100, timeout=600)
        print([trial.values for trial in sorted(study.best_trials, key=lambda trial: trial.values)])
        study.set_user_attr("model", "/models/front")
    """
    for number in range(3):
        ask = {"parallelism": 1, "maxTrials": 3}
        operator.post("/v1/studies/ml/front/ask", json=ask).raise_for_status()
        pod = Pod(tmp_path, study_server.trial_url("ml", "front", number))
        pod.token.write_text(study_server.pod_token("ml", "front", number))
        pod.write(code)
        assert pod.run("script", "train.py").code == 0
    operator.put("/v1/studies/ml/front/refit", json={"trial": 1, "digest": "1"}).raise_for_status()
    pod = Pod(tmp_path, f"{study_server.url}/v1/studies/ml/front/refit", TUNING_ROLE="final")
    pod.token.write_text(mint_pod(SECRET, "ml", "front-refit-x7k2p"))
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1] == "[[0.5, 0.5], [1.0, 1.0]]", "x=2 violates the constraint"
    refit = operator.get("/v1/studies/ml/front").raise_for_status().json()["refit"]
    assert refit["state"] == "COMPLETE"
    assert refit["userAttrs"]["model"] == "/models/front"
