"""Scripts in the styles that people write; docs/guide/optuna-scripts.md lists those of others."""

from __future__ import annotations

from tests.unit.trainer.pod import Pod
from tests.unit.trainer.twin import Twin


def test_optunas_artifacts_and_integrations_keep_their_notes_on_the_trial(pod: Pod, twin: Twin) -> None:
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
            return 1.0

        optuna.create_study(direction="maximize").optimize(objective)
    """)
    ended = pod.run("script", "train.py")
    assert ended.code == 0, ended
    attrs = twin.study.trials[0].user_attrs
    assert attrs["system_attrs:terminator:cv_scores"] == [0.5, 0.25]
    assert attrs["recall"] == 0.5
    assert [key for key in attrs if key.startswith("system_attrs:artifacts:")]
