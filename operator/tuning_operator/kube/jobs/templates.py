"""What is wrong with the template of a Job, in terms of the manifest."""

import re
from collections.abc import Callable

from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.plan.work import Program
from tuning_operator.protocol import Problem
from tuning_operator.resource import names

IN_A_JOB = "spec.template"


def trainer_problems(runs: Program, runtime: Runtime) -> list[Problem]:
    """Return what the container `trainer` lacks, or has in contradiction to the spec beside the template."""
    containers = [container["name"] for container in runs.template["spec"]["containers"]]
    position = containers.index(names.TRAINER_CONTAINER)
    trainer = runs.template["spec"]["containers"][position]
    problems = []
    if trainer.get("image") is None and not runtime.image:
        field = f"{runs.fields.template.removeprefix('spec.')}.spec.containers[{position}].image"
        message = "Required value: the operator is installed without a default image (TUNING_TRAINER_IMAGE)."
        problems.append(Problem(field=field, message=message))
    limit = ((trainer.get("resources") or {}).get("limits") or {}).get(runtime.gpu_resource)
    if runs.gpus is not None and limit is not None and str(limit) != str(runs.gpus):
        message = (
            f"{runs.gpus} contradicts the template's limit of {limit} for {runtime.gpu_resource}: "
            "remove one of the two."
        )
        problems.append(Problem(field="trial.gpus", message=message))
    return problems


def template_problems(message: str, field: str, nearest: Callable[[str], str | None]) -> list[Problem]:
    """Return the problems in the API server's message about a Job.

    Args:
        message: of the reply 400 or 422.
        field: where the manifest has the Job's template, for example `spec.trial.template`.
        nearest: the known field of a Job that is spelled most like an unknown one.
    """
    field = field.removeprefix("spec.")
    if unknown := re.findall(r'unknown field "([^"]+)"', message):
        return [_unknown(path, field, nearest(path)) for path in unknown]
    if "denied" in message:  # by an admission policy or webhook: it may decide otherwise later
        return []
    text = re.sub(r'^Job\.batch "[^"]*" is invalid: ', "", message)
    if found := re.match(rf"{re.escape(IN_A_JOB)}(\S*): (.*)", text, re.DOTALL):
        return [Problem(field=field + found[1], message=found[2])]
    return [Problem(field=field, message=text.replace(IN_A_JOB, f"spec.{field}"))]


def _unknown(path: str, field: str, nearest: str | None) -> Problem:
    hint = f"did you mean {nearest}?" if nearest else "remove it, or correct its place."
    name = path.rpartition(".")[2]
    return Problem(
        field=path.replace(IN_A_JOB, field, 1), message=f"Kubernetes has no field {name} here: {hint}"
    )
