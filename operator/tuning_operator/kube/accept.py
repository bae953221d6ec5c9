"""What the operator itself refuses in a study, beyond what the API server and the study server check."""

from tuning_operator.protocol import Problem
from tuning_operator.resource import space
from tuning_operator.resource.names import MAX_STUDY_NAME
from tuning_operator.resource.study import TuningStudy


def check(study: TuningStudy) -> tuple[Problem, ...]:
    """Return why the study cannot run as it is written; nothing: it can, as far as the operator can tell."""
    flaws = space.problems(study.spec.search_space, study.spec.initial_trials)
    found = tuple(Problem(field=flaw.field, message=flaw.message) for flaw in flaws)
    name = study.metadata["name"]
    if len(name) <= MAX_STUDY_NAME:
        return found
    message = (
        f"{name!r} has {len(name)} characters, at most {MAX_STUDY_NAME} leave room for the names of its pods"
    )
    return (Problem(field="metadata.name", message=message), *found)
