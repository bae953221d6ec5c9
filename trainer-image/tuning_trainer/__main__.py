"""The runtime's command line: `objective module:function`."""

from __future__ import annotations

import io
import os
import sys

from tuning_trainer.console import say
from tuning_trainer.settings import Settings, SettingsError, read_settings
from tuning_trainer.stopping import EXIT_CODE, EXIT_GRACE, Stopped, Stopping, exit_within

USAGE = "usage: trainer.zip objective MODULE:FUNCTION"
USAGE_ERROR = 2


def main(arguments: list[str]) -> int:
    """Run the trial that the environment names; return the exit code."""
    if len(arguments) != 2 or arguments[0] != "objective":
        say(USAGE)
        return USAGE_ERROR
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        say(str(error))
        return USAGE_ERROR
    stopping = Stopping()
    stopping.install()
    try:
        return _run_objective(settings, stopping, arguments[1])
    except Stopped:
        return EXIT_CODE


def _run_objective(settings: Settings, stopping: Stopping, target: str) -> int:
    from tuning_trainer.objective import prepare_path, run_objective
    from tuning_trainer.runner import Run

    prepare_path(settings.source)
    return Run(settings, stopping).execute(lambda trial, metrics: run_objective(target, trial, metrics))


def start() -> None:
    """Run and end the process, also if the user's code left threads running."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # logs are read while the trial runs
    code = main(sys.argv[1:])
    exit_within(EXIT_GRACE, code)
    sys.exit(code)


if __name__ == "__main__":
    start()
