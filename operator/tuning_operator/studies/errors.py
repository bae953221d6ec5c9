"""Errors of the study server, independent of HTTP."""

from tuning_operator.protocol import Problem


class StudyError(Exception):
    """A request that cannot be served; `problems` say why and how to fix it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = list(problems)


class NotFound(StudyError):  # noqa: N818
    """The study or trial does not exist."""


class Conflict(StudyError):  # noqa: N818
    """The request contradicts the recorded study."""


class Refused(StudyError):  # noqa: N818
    """The request is invalid and would fail again."""


class Elsewhere(StudyError):  # noqa: N818
    """Another study server has the study."""

    def __init__(self, namespace: str, name: str, server: int) -> None:
        message = f"study server {server} has the record of {namespace}/{name}: send the request to it"
        super().__init__(Problem(field="study", message=message))
        self.server = server


class TooLarge(StudyError):  # noqa: N818
    """The request is larger than any that is served."""


class TooSlow(StudyError):  # noqa: N818
    """The request did not arrive in time."""


class Unauthenticated(StudyError):  # noqa: N818
    """The caller did not prove who it is."""


class Forbidden(StudyError):  # noqa: N818
    """The caller is known, but not allowed to do this."""


class Unavailable(StudyError):  # noqa: N818
    """The server cannot serve now; the same request may work later."""


def unknown_study(namespace: str, name: str) -> NotFound:
    """Return the error for a study that was never declared, or whose record was deleted."""
    return NotFound(Problem(field="study", message=f"{namespace}/{name} not found; declare it first (PUT)"))


def unknown_trial(number: int, study: str) -> NotFound:
    """Return the error for a trial that does not exist."""
    return NotFound(Problem(field="trial", message=f"{study} has no trial {number}"))
