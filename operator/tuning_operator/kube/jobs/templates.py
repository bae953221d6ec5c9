"""What is wrong with the template of a Job, and why a Job is refused, in terms of the manifest."""

import re
from collections.abc import Callable

from tuning_operator.kube.jobs.advice import REFUSALS, advise
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.jobs.starting import QUOTA_REMEDY
from tuning_operator.kube.plan.work import Fields, Program, Refit, Work, program
from tuning_operator.protocol import Failure, Problem
from tuning_operator.resource import names
from tuning_operator.resource.podshape import shape_problems
from tuning_operator.resource.study import TuningStudy

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


def unreadable(runs: Program) -> Failure | None:
    """Return why a template can't be read: it was changed after the trial began. None: it can."""
    problem = next(iter(shape_problems(runs.template)), None)
    if problem is None:
        return None
    path, message = problem
    return Failure(category="JobRefused", message=f"{runs.fields.template}.{path}: {message}")


def why_refused(message: str, study: TuningStudy, work: Work) -> Failure:
    """Return what the API server's message means that refuses the work's Job, and how to fix it."""
    if "exceeded quota" in message:
        return Failure(category="Quota", message=message, remedy=QUOTA_REMEDY)
    template = fields_of(study, work).template
    if re.search(r"denied (?:the )?request", message):
        remedy = (
            f"Set what the policy asks for in {template}, or, for the Job's own labels and annotations, in "
            "spec.trial.job."
        )
    elif advice := advise(REFUSALS, message, template):
        remedy = advice.remedy
    else:
        remedy = f"Correct {template}; `kubectl explain job.spec.template.spec` describes its fields."
    return Failure(
        category="JobRefused", message=f"The {work.noun}'s Job is refused: {message}", remedy=remedy
    )


def fields_of(study: TuningStudy, work: Work) -> Fields:
    """Return where the manifest says what the work runs; a refit that was removed from it ran the trial's."""
    return Fields() if isinstance(work, Refit) and study.spec.refit is None else program(study, work).fields
