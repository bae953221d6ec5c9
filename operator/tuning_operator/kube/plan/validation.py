"""What the operator itself rejects in a spec, before the study server checks it."""

import shlex
from collections.abc import Iterator

from tuning_trainer.failure import TrialFailure
from tuning_trainer.metrics.reader import MetricReader
from tuning_trainer.modes.parameters import PLACEHOLDER, variables

from tuning_operator.kube.plan.usage import gpus
from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.resource.names import MAX_STUDY_NAME
from tuning_operator.resource.podshape import shape_problems, without_nulls
from tuning_operator.resource.space.check import unknown
from tuning_operator.resource.study import TuningStudy, TuningStudySpec


def definition(study: TuningStudy, namespace_uid: str | None = None) -> StudyDefinition:
    """Return what the study server needs to know of a spec."""
    spec = study.spec
    return StudyDefinition(
        objectives=spec.objectives,
        search_space=spec.search_space,
        sampler=spec.sampler,
        pruner=spec.pruner_in_effect,
        initial_trials=spec.initial_trials,
        warm_start=spec.warm_start.study if spec.warm_start else None,
        deletion_policy=spec.deletion_policy,
        existing_record=spec.existing_record,
        namespace_uid=namespace_uid,
        uid=study.metadata["uid"],
    )


def check(study: TuningStudy) -> tuple[Problem, ...]:
    """Return the problems of the spec that the operator can find without the study server."""
    spec = study.spec
    problems = space.problems(spec.search_space, spec.initial_trials)
    return (
        *_name(study.metadata["name"]),
        *(Problem(field=field, message=message) for field, message in problems),
        *_commands(spec),
        *_scripts(spec),
        *_metrics(spec),
        *_metrics_file(spec),
        *_warm_start(study),
        *_gpus(study),
        *_templates(spec),
    )


def _templates(spec: TuningStudySpec) -> Iterator[Problem]:
    templates = {"trial.template": spec.trial.template, "refit.template": spec.refit and spec.refit.template}
    for field, template in templates.items():
        for path, message in shape_problems(without_nulls(template)) if template else ():
            yield Problem(field=f"{field}.{path}", message=message)


def _gpus(study: TuningStudy) -> Iterator[Problem]:
    """Yield the fields that have no meaning for trials without GPUs."""
    fields = {
        "maxGpuHours": (study.spec.max_gpu_hours, "use timeout"),
        "minParallelism": (study.spec.min_parallelism, "remove minParallelism"),
    }
    for field, (value, instead) in fields.items():
        if value is not None and not gpus(study):
            message = (
                f"the trials request no GPUs: {instead}, or request GPUs in trial.gpus or trial.template"
            )
            yield Problem(field=field, message=message)


def _name(name: str) -> tuple[Problem, ...]:
    if len(name) <= MAX_STUDY_NAME:
        return ()
    message = (
        f"{name!r} has {len(name)} characters; the maximum is {MAX_STUDY_NAME}, since the names of pods are "
        "longer: choose a shorter name"
    )
    return (Problem(field="metadata.name", message=message),)


def _commands(spec: TuningStudySpec) -> Iterator[Problem]:
    """Yield what every trial would fail on: parameters that the command can't get."""
    commands = {"trial.command": spec.trial.command, "refit.command": spec.refit and spec.refit.command}
    parameters = [parameter.name for parameter in spec.search_space or ()]
    for field, command in commands.items():
        for index, argument in enumerate(command or ()):
            for name in PLACEHOLDER.findall(argument):
                if spec.search_space is not None and name not in parameters:
                    message = f"{{{{{name}}}}} refers to a missing parameter: {unknown(name, parameters)}"
                    yield Problem(field=f"{field}[{index}]", message=message)
    if any(commands.values()):
        try:
            variables(dict.fromkeys(parameters))
        except TrialFailure as error:
            yield Problem(field="searchSpace", message=f"{error.failure.message} {error.failure.remedy}")


def _scripts(spec: TuningStudySpec) -> Iterator[Problem]:
    for field, script in {
        "trial.script": spec.trial.script,
        "refit.script": spec.refit and spec.refit.script,
    }.items():
        try:
            shlex.split(script or "")
        except ValueError as error:
            yield Problem(field=field, message=f"{error}: arguments are separated and quoted as in a shell.")


def _metrics(spec: TuningStudySpec) -> Iterator[Problem]:
    """Yield the errors of the pattern that every trial would fail on."""
    pattern = spec.trial.metrics.pattern if spec.trial.metrics else None
    try:
        MetricReader([objective.metric for objective in spec.objectives], pattern)
    except TrialFailure as error:
        message = f"{error.failure.message} {error.failure.remedy}"
        yield Problem(field="trial.metrics.pattern", message=message)
    except (OverflowError, RecursionError) as error:
        message = (
            f"The pattern {pattern!r} is too complex for Python's regular expressions ({error}): simplify it."
        )
        yield Problem(field="trial.metrics.pattern", message=message)


def _metrics_file(spec: TuningStudySpec) -> Iterator[Problem]:
    """Yield the problem of trials of a pod that would read each other's metrics."""
    file = spec.trial.metrics.file if spec.trial.metrics else None
    if file and file.startswith("/") and min(spec.parallelism, spec.trial.trials_per_pod) > 1:
        message = (
            f"Trials that share a pod would use the same file, {file}, and read each other's metrics: use a "
            "relative path, remove this field and have the program write to the file that the variable "
            "TUNING_METRICS_FILE names, or set trialsPerPod to 1."
        )
        yield Problem(field="trial.metrics.file", message=message)


def _warm_start(study: TuningStudy) -> Iterator[Problem]:
    start = study.spec.warm_start
    if start and start.study == study.metadata["name"]:
        message = f"{start.study} is this study itself: use the name of another study, or remove warmStart."
        yield Problem(field="warmStart.study", message=message)
