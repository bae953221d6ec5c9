"""The command `logs`."""

from typing import Annotated

import typer

from tuning_operator.cli.commands.options import Study
from tuning_operator.cli.studies import Run, Studies
from tuning_operator.resource import names


def logs(
    studies: Studies,
    study: Study,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Number of the trial, or `refit`.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for the trial to start, and print until it ends.")
    ] = False,
) -> None:
    """Print the log of a trial or of the refit, also after it has finished, while its pod exists.

    Examples:

        {program} logs mnist 7 -f

        {program} logs mnist refit
    """
    studies.logs(studies.get(study), _run(trial), follow=follow)


def _run(text: str) -> Run:
    if text == names.REFIT:
        return "refit"
    if not text.isdecimal():
        raise typer.BadParameter("use the number of a trial, or refit", param_hint="TRIAL")
    return int(text)
