"""What the API server finds wrong with a Job, in terms of the manifest."""

import re
from collections.abc import Callable

from tuning_operator.protocol import Problem

IN_A_JOB = "spec.template"


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
