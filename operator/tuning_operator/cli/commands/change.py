"""The commands that change a study: `suspend`, `resume`, `extend`, `stop` and `retry`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tuning_operator.cli import NotFoundError, PluginError
from tuning_operator.cli.commands.options import Study, TrialNumber
from tuning_operator.cli.commands.trials import find_trial
from tuning_operator.cli.studies import ENDED, Resource, Studies
from tuning_operator.cli.text import status_text
from tuning_operator.cli.text.values import pairs
from tuning_operator.resource.text import count

INITIAL = "spec.initialTrials"
WAYS_ON = {
    "MaxTrialsReached": ("maxTrials", "use --trials"),
    "AllTrialsFailed": ("maxTrials", "use --trials"),
    "TimeoutReached": ("timeout", "use --timeout"),
    "TooManyFailedTrials": ("maxFailedTrials", "use --failed-trials"),
    "GpuHoursUsed": ("maxGpuHours", "raise spec.maxGpuHours"),
    "NoImprovement": ("maxTrialsWithoutImprovement", "raise spec.maxTrialsWithoutImprovement"),
    "TargetReached": ("objectives", "change the target in spec.objectives"),
}
"""The field that a study which ended for a reason needs changed, and how."""


def suspend(studies: Studies, study: Study) -> None:
    """Suspend a study: no new trials start, and running trials finish.

    Examples:

        {program} suspend mnist
    """
    found = studies.get(study)
    if _phase(found) in ENDED:
        raise PluginError(f"{study} has already ended\n{status_text.headline(found)}")
    studies.change(found, {"suspend": True})
    typer.echo(f"{study} is suspended: no new trials start, and running trials finish.")


def resume(studies: Studies, study: Study) -> None:
    """Continue a suspended study. Its timeout counts from now.

    Examples:

        {program} resume mnist
    """
    found = studies.get(study)
    if not found["spec"].get("suspend"):
        hint = f"; to continue it, use {studies.program} extend {study}" if _phase(found) in ENDED else ""
        raise PluginError(f"{study} is not suspended{hint}\n{status_text.headline(found)}")
    studies.change(found, {"suspend": False})
    typer.echo(f"{study} continues.")


def extend(
    studies: Studies,
    study: Study,
    trials: Annotated[
        str | None, typer.Option(metavar="N|+N", help="maxTrials: the total, or how many more.")
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|+TIME",
            help="timeout: a new value, or how much to add, for example +2h. If the study has ended, the "
            "whole timeout counts from now.",
        ),
    ] = None,
    failed_trials: Annotated[
        str | None, typer.Option(metavar="N|+N", help="maxFailedTrials: the total, or how many more.")
    ] = None,
) -> None:
    """Raise the limits of a study. A study that ended at a limit continues when that limit is raised.

    Examples:

        {program} extend mnist --trials +50

        {program} extend mnist --timeout 12h --failed-trials +5
    """
    found = studies.get(study)
    spec = found["spec"]
    changes: dict[str, Any] = {}
    if trials is not None:
        changes["maxTrials"] = _raised("--trials", trials, spec["maxTrials"])
    if failed_trials is not None:
        allowed = spec.get("maxFailedTrials", 10)
        changes["maxFailedTrials"] = _raised("--failed-trials", failed_trials, allowed)
    if timeout is not None:
        changes["timeout"] = _longer(timeout, found)
    if not changes:
        raise typer.BadParameter("use --trials, --timeout or --failed-trials")
    studies.change(found, changes)
    typer.echo(f"{study}: {pairs(changes.items())}")
    if note := _why_over(found, changes):
        typer.echo(note, err=True)
    elif "timeout" in changes and _phase(found) in ENDED:
        typer.echo(
            f"{study} has ended. When it continues, its timeout of {changes['timeout']} counts from then."
        )


def _why_over(study: Resource, changes: Mapping[str, Any]) -> str | None:
    """Return a note on a study that has ended and doesn't continue after these changes."""
    end = status_text.end_of(study)
    if end is None:
        return None
    field, how = WAYS_ON.get(end["reason"], (None, None))
    if field in changes:
        return None
    note = f"{study['metadata']['name']} ended for another reason, so it doesn't continue: {end['message']}"
    return f"note: {note}" + (f" To continue it, {how}." if how else "")


def _raised(option: str, text: str, now: int) -> int:
    """Return the limit that a text like 120 or +20 means."""
    if not text.removeprefix("+").isdecimal():
        raise typer.BadParameter(f"{text} is not a number such as 120 or +20", param_hint=option)
    limit = int(text) + (now if text.startswith("+") else 0)
    if limit <= now:
        raise PluginError(f"{option} {text}: the limit is {now}; use a higher one, or +N to add to it")
    return limit


def _longer(text: str, study: Resource) -> str:
    """Return the timeout that a text like 12h or +2h means."""
    from tuning_operator.resource.duration import seconds  # here, since it takes a while

    now = study["spec"].get("timeout")
    if now is None:
        raise PluginError("the study has no timeout, so it runs until its trials have finished")
    try:
        limit = seconds(text.removeprefix("+")) + (seconds(now) if text.startswith("+") else 0)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None
    if limit <= seconds(now):
        raise PluginError(f"--timeout {text}: the timeout is {now}; use a longer one, or +TIME to add to it")
    return f"{limit}s" if text.startswith("+") else text


def stop(
    studies: Studies,
    study: Study,
    trial: Annotated[
        int | None, typer.Argument(metavar="[TRIAL]", min=0, help="Stop this trial only.")
    ] = None,
) -> None:
    """Stop a trial, or suspend the study and stop all its running trials. They are recorded as pruned.

    Examples:

        {program} stop mnist 7

        {program} stop mnist && {program} resume mnist
    """
    found = studies.get(study)
    if trial is not None:
        chosen = find_trial(studies, found, trial)
        if chosen.state != "running":
            raise PluginError(f"trial {trial} is not running: it is {chosen.state}")
        studies.stop(found, [trial])
        typer.echo(f"Trial {trial} of {study} is being stopped.")
        return
    if _phase(found) in ENDED:
        raise PluginError(f"{study} has already ended\n{status_text.headline(found)}")
    studies.change(found, {"suspend": True})
    running = _running(studies, found)
    if running:
        studies.stop(found, running)
    ends = "is" if len(running) == 1 else "are"
    typer.echo(f"{study} is suspended, and {count(len(running), 'running trial')} {ends} being stopped.")
    typer.echo(f"To continue: {studies.program} resume {study}")


def _running(studies: Studies, study: Resource) -> list[int]:
    from tuning_operator.cli.trials import trials_of

    try:
        with studies.record(study) as reader:
            record = reader.read()
    except NotFoundError:  # no trial has been started
        return []
    return [trial.number for trial in trials_of(study, record) if trial.state == "running"]


def retry(studies: Studies, study: Study, number: TrialNumber) -> None:
    """Retry the parameters of a finished trial in a new trial, by adding them to initialTrials.

    If maxTrials leaves no room for the new trial, it is raised by one.

    Examples:

        {program} retry mnist 7
    """
    found = studies.get(study)
    chosen = find_trial(studies, found, number)
    parameters = chosen.record.parameters
    if chosen.state in ("running", "waiting"):
        raise PluginError(f"trial {number} has not finished: it is {chosen.state}")
    if not parameters:
        raise PluginError(f"trial {number} has no parameters to try again")
    if others := [name for name, value in parameters.items() if isinstance(value, list | dict)]:
        raise PluginError(f"the value of {others[0]} is a list or an object, which {INITIAL} can't hold")
    initial = found["spec"].get("initialTrials") or []
    if parameters in initial:
        raise PluginError(
            f"the parameters of trial {number} are already in {INITIAL}, where each entry is tried only once"
        )
    changes: dict[str, Any] = {"initialTrials": [*initial, parameters]}
    most, total = found["spec"]["maxTrials"], (found.get("status", {}).get("trials") or {}).get("total", 0)
    if total + len(initial) >= most:  # the others, earlier retries too, may wait as well, and start first
        changes["maxTrials"] = max(most, total) + 1
    studies.change(found, changes)
    typer.echo(f"{study} tries the parameters of trial {number} again, in its next trial.")
    if "maxTrials" in changes:
        typer.echo(f"maxTrials was raised to {changes['maxTrials']}.")
    if _phase(found) == "Failed":
        typer.echo(
            "The study has failed. To continue it, fix the cause and, if too many trials failed, raise "
            f"maxFailedTrials:\n{status_text.headline(found)}"
        )


def _phase(study: Resource) -> str | None:
    phase: str | None = study.get("status", {}).get("phase")
    return phase
