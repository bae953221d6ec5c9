"""Messages of the API server about a Job's template, in terms of the manifest."""

from __future__ import annotations

import pytest
from tuning_operator.kube.jobs.templates import template_problems
from tuning_operator.kube.ports.kubernetes import nearest_field

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
