"""What the study server refuses, apart from HTTP."""

from tuning_operator.protocol import Problem


class StudyError(Exception):
    """A request that cannot be served; `problems` say why and what to do about it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = list(problems)


class NotFound(StudyError):  # noqa: N818
    """There is no such study or trial."""


class Conflict(StudyError):  # noqa: N818
    """The request contradicts what the record holds already."""


class Refused(StudyError):  # noqa: N818
    """The request can never work as it is."""


class Unauthenticated(StudyError):  # noqa: N818
    """The caller did not prove who it is."""


class Forbidden(StudyError):  # noqa: N818
    """The caller is known, but may not do this."""


class Unavailable(StudyError):  # noqa: N818
    """The server cannot serve now; the same request may work later."""


def unknown_study(namespace: str, name: str) -> NotFound:
    """Return the error for a study that was never declared, or whose record was deleted."""
    return NotFound(
        Problem(field="study", message=f"the study {namespace}/{name} is not known: declare it first (PUT)")
    )


def unknown_trial(number: int, study: str) -> NotFound:
    """Return the error for a trial that was never asked for."""
    return NotFound(Problem(field="trial", message=f"the study {study} has no trial {number}"))
