"""The command line of the trainer runtime: what a trial runs."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from tuning_trainer.log import log
from tuning_trainer.settings import SettingsError, read_settings
from tuning_trainer.stopping import EXIT_CODE, EXIT_GRACE, Stopped, Stopping, exit_within
from tuning_trainer.workspace import prepare

if TYPE_CHECKING:
    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.outcome import Outcome
    from tuning_trainer.runner import Run
    from tuning_trainer.settings import Settings

DESCRIPTOR = "TUNING_FORK_SERVER"
"""Environment variable of a worker's fork server: the descriptor of its socket to the supervisor."""
USAGE = (
    "usage: trainer.zip objective MODULE:FUNCTION | script FILE [ARGUMENT...] | command -- PROGRAM... "
    "| init --output FILE [--study NAME] SCRIPT [ARGUMENT...]"
)
USAGE_ERROR = 2


def main(arguments: list[str]) -> int:
    """Run the trial that the environment variables describe, or `init`; return the exit code."""
    mode, rest = arguments[:1], arguments[1:]
    if mode == ["init"]:
        from tuning_trainer.modes.init import init

        return init(rest)
    if not rest or mode[0] not in MODES:
        log(USAGE)
        return USAGE_ERROR
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        log(str(error))
        return USAGE_ERROR
    if settings.worker:
        return _work(settings, arguments)
    settings = settings._replace(source=prepare(settings.source))
    side_by_side = settings.config.get("trialsPerPod", 1)
    if side_by_side > 1:
        from tuning_trainer.worker.gpu_memory import share_gpu_memory

        share_gpu_memory(side_by_side)
    stopping = Stopping()
    stopping.install()
    from tuning_trainer.runner import Run

    try:
        run = Run(settings, stopping)
        return run.execute(lambda trial, metrics: MODES[mode[0]](rest, run, trial, metrics))
    except Stopped:
        return EXIT_CODE


def _work(settings: Settings, arguments: list[str]) -> int:
    """Be the supervisor of a worker's pod, or its fork server."""
    given = getattr(sys, "orig_argv", [sys.executable, *sys.argv])
    command = [sys.executable, *given[1 : len(given) - len(sys.argv)], *sys.argv]
    descriptor = os.environ.pop(DESCRIPTOR, None)
    if descriptor is None:
        from tuning_trainer.worker.supervisor import Supervisor

        return Supervisor(settings, command, DESCRIPTOR).run()
    from tuning_trainer.worker.fork_server import ForkServer

    ForkServer(int(descriptor), arguments, main, command).serve()
    return 0


def _objective(arguments: list[str], run: Run, trial: Trial, metrics: list[str]) -> Outcome:
    from tuning_trainer.modes.objective import prepare_path, run_objective
    from tuning_trainer.outcome import outcome_of_refit, outcome_of_value

    prepare_path(run.settings.source)
    if not run.settings.final:
        return run_objective(arguments[0], trial, metrics, outcome_of_value)
    from tuning_trainer.modes.figures import Figures

    figures = Figures()
    figures.install()
    outcome = run_objective(arguments[0], trial, metrics, outcome_of_refit)
    figures.record(trial)
    return outcome


def _script(arguments: list[str], run: Run, trial: Trial, metrics: list[str]) -> Outcome:
    if run.settings.final:
        from tuning_trainer.modes.refit import refit_script

        return refit_script(arguments, run.settings, trial, run.finished_study())
    from tuning_trainer.modes.script import run_script

    return run_script(arguments, run, trial, metrics)


def _command(arguments: list[str], run: Run, trial: Trial, metrics: list[str]) -> Outcome:
    from tuning_trainer.modes.command import run_command

    run.connect()
    program = arguments[1:] if arguments[0] == "--" else arguments
    return run_command(program, run.settings, trial, metrics)


MODES = {"objective": _objective, "script": _script, "command": _command}


def start() -> None:
    """Run the trial and end the process, even if the user's code left threads running."""
    # Lightning's `ddp` starts more processes with the command line of this one, `python trainer.zip ...`.
    # With a spec it would try `python -m __main__`; with __file__, spawned ones would run a missing file.
    main_module = sys.modules["__main__"]
    main_module.__spec__ = None
    main_module.__dict__.pop("__file__", None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # logs are read while the trial runs
    code = main(sys.argv[1:])
    exit_within(EXIT_GRACE, code)
    sys.exit(code)


if __name__ == "__main__":
    start()
