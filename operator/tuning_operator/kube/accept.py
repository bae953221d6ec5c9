"""What the operator itself refuses in a study, before it asks the study server."""

from tuning_operator.protocol import Problem
from tuning_operator.resource import space
from tuning_operator.resource.names import MAX_STUDY_NAME
from tuning_operator.resource.study import TuningStudy


def check(study: TuningStudy) -> tuple[Problem, ...]:
    """Return why the study cannot run as it is written; nothing: it can, as far as the operator can tell."""
    spec = study.spec
    flaws = space.problems(spec.search_space, spec.initial_trials)
    return (
        *_name(study.metadata["name"]),
        *(Problem(field=field, message=message) for field, message in flaws),
    )


def _name(name: str) -> tuple[Problem, ...]:
    if len(name) <= MAX_STUDY_NAME:
        return ()
    message = f"{name!r} has {len(name)} characters, at most {MAX_STUDY_NAME} leave room for its pods' names"
    return (Problem(field="metadata.name", message=message),)
