"""The runtime's command line: what a trial runs."""

from __future__ import annotations

import io
import os
import sys

from tuning_trainer.console import say
from tuning_trainer.settings import Settings, SettingsError, read_settings
from tuning_trainer.stopping import EXIT_CODE, EXIT_GRACE, Stopped, Stopping, exit_within

USAGE = "usage: trainer.zip objective MODULE:FUNCTION | command -- PROGRAM [ARGUMENT...]"
USAGE_ERROR = 2


def main(arguments: list[str]) -> int:
    """Run the trial that the environment names; return the exit code."""
    mode, rest = arguments[:1], arguments[1:]
    if not rest or mode not in (["objective"], ["command"]):
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
        return _run(mode[0], rest, settings, stopping)
    except Stopped:
        return EXIT_CODE


def _run(mode: str, arguments: list[str], settings: Settings, stopping: Stopping) -> int:
    from tuning_trainer.runner import Run

    run = Run(settings, stopping)
    if mode == "command":
        from tuning_trainer.command import run_command

        program = arguments[1:] if arguments[0] == "--" else arguments
        return run.execute(lambda trial, metrics: run_command(program, settings, trial, metrics))
    from tuning_trainer.objective import prepare_path, run_objective

    prepare_path(settings.source)
    return run.execute(lambda trial, metrics: run_objective(arguments[0], trial, metrics))


def start() -> None:
    """Run and end the process, also if the user's code left threads running."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # logs are read while the trial runs
    code = main(sys.argv[1:])
    exit_within(EXIT_GRACE, code)
    sys.exit(code)


if __name__ == "__main__":
    start()
