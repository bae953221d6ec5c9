"""Messages of the API server about a Job's template, in terms of the manifest."""

from __future__ import annotations

import pytest
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.jobs.templates import template_problems, trainer_problems
from tuning_operator.kube.plan.work import Refit, Trial, program
from tuning_operator.kube.ports.kubernetes import nearest_field

from tests.unit.kube.builders import study

POD = "spec.template.spec"
TRAINER = f"{POD}.containers[0]"


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        (f"{POD}.nodeSelecter", "nodeSelector"),
        (f"{TRAINER}.resource", "resources"),
        (f"{TRAINER}.resources.limit", "limits"),
        (f"{TRAINER}.volumeMount", "volumeMounts"),
        (f"{TRAINER}.enviroment", "envFrom"),
        (f"{TRAINER}.gpus", None),
        (f"{TRAINER}.env[1].valueFrom.secretKeyReff", "secretKeyRef"),
        (f"{POD}.affinity.nodeAffinity.preferedDuringSchedulingIgnoredDuringExecution",
         "preferredDuringSchedulingIgnoredDuringExecution"),
        ("spec.template.metadata.label", "labels"),
        ("spec.template.spec.nonsense.inner", None),
    ],
)  # fmt: skip
def test_the_nearest_field(unknown: str, nearest: str | None) -> None:
    assert nearest_field(unknown) == nearest


def test_each_unknown_field_is_a_problem() -> None:
    message = (
        'Job in version "v1" cannot be handled as a Job: strict decoding error: '
        f'unknown field "{TRAINER}.resource", unknown field "{POD}.xyz"'
    )
    problems = template_problems(message, "spec.trial.template", nearest_field)
    assert [(problem.field, problem.message) for problem in problems] == [
        ("trial.template.spec.containers[0].resource",
         "Kubernetes has no field resource here: did you mean resources?"),
        ("trial.template.spec.xyz", "Kubernetes has no field xyz here: remove it, or correct its place."),
    ]  # fmt: skip


def test_an_invalid_value() -> None:
    message = f'Job.batch "mnist-0" is invalid: {TRAINER}.image: Required value'
    [problem] = template_problems(message, "spec.refit.template", nearest_field)
    assert problem.field == "refit.template.spec.containers[0].image"
    assert problem.message == "Required value"


def test_several_invalid_values() -> None:
    message = (
        f'Job.batch "mnist-0" is invalid: [{TRAINER}.image: Required value, {POD}.hostname: Invalid value]'
    )
    [problem] = template_problems(message, "spec.trial.template", nearest_field)
    assert problem.field == "trial.template"
    assert (
        "spec.trial.template.spec.containers[0].image: Required value, spec.trial.template" in problem.message
    )


def test_what_a_policy_denies_may_be_allowed_later() -> None:
    message = 'jobs.batch "mnist-0" is forbidden: ValidatingAdmissionPolicy "gpu" denied request: no GPU'
    assert template_problems(message, "spec.trial.template", nearest_field) == []


def test_a_trainer_without_an_image_where_none_is_installed() -> None:
    own = {"spec": {"containers": [{"name": "logger", "image": "l"}, {"name": "trainer"}]}}
    without = study(trial={"template": None}, refit={"template": own})
    fields = [
        [problem.field for problem in trainer_problems(program(without, work), Runtime(b"", "", None, image))]
        for work in (Trial(0), Refit.of(without.spec.refit, 0))  # type: ignore[arg-type]
        for image in (None, "tuning-trainer:1")
    ]
    assert fields == [
        ["trial.template.spec.containers[0].image"],
        [],
        ["refit.template.spec.containers[1].image"],
        [],
    ]


@pytest.mark.parametrize(("gpus", "found"), [(None, 0), (1, 0), (2, 1), (0, 1)])
def test_gpus_that_contradict_the_template(gpus: int | None, found: int) -> None:
    problems = trainer_problems(program(study(trial={"gpus": gpus}), Trial(0)), Runtime(b"", ""))
    assert len(problems) == found
    if found:
        assert problems[0].field == "trial.gpus"
        assert f"{gpus} contradicts the template's limit of 1 for nvidia.com/gpu" in problems[0].message
