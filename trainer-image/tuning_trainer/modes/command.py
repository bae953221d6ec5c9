"""Command mode: runs any program, reads its metrics, and stops it if it is pruned."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tuning_trainer.exceptions import advice
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.metrics.reader import MetricReader, quoted, shown
from tuning_trainer.metrics.steps import Progress
from tuning_trainer.modes.parameters import fill_in, variables
from tuning_trainer.modes.process import Program
from tuning_trainer.outcome import Outcome, outcome_of_value
from tuning_trainer.temporary import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.settings import Settings

SHELL_SIGNALS = 128
COMPARED = 4096  # bytes at a file's start that show whether it was written again
LOOK_EVERY = 0.5  # seconds between looks at the metrics file
PRUNE_GRACE = 30.0  # seconds, if TUNING_CONFIG has no pruneGrace
SHARE_OF_GRACE = 0.8  # of pruneGrace for the program; at its end, the pod itself is deleted
RESULT = "result.json"
STOP_GRACE = 20.0  # seconds of the pod's own grace period (30 by default) for the program


def run_command(arguments: list[str], settings: Settings, trial: Trial, metrics: list[str]) -> Outcome:
    """Return the outcome of running a program with the trial's parameters.

    Raises:
        TrialFailure: the program cannot be run, failed, or did not write its metrics.
    """
    wanted = settings.config.get("metrics") or {}
    with tempfile.TemporaryDirectory(prefix="tuning-", dir=temporary_folder()) as folder:
        file = Path(wanted.get("file") or Path(folder) / "metrics.jsonl")
        command = [_in_source(argument, settings.source) for argument in fill_in(arguments, trial.params)]
        reader, follower = MetricReader(metrics, wanted.get("pattern")), _Follower(file)
        program = _start(command, _environment(trial, Path(folder), file))
        watch = _Watch(program, trial, metrics, reader, follower)
        grace = float(settings.config.get("pruneGraceSeconds", PRUNE_GRACE)) * SHARE_OF_GRACE
        try:
            pruned = watch.until_end(grace)
        except BaseException:
            program.stop(STOP_GRACE)
            raise
        if pruned:
            return Outcome("PRUNED")
        outcome = _outcome(program, reader, metrics, settings, trial)
        for key, value in _attributes(Path(folder) / RESULT).items():
            trial.set_user_attr(key, value)
        return outcome


def _in_source(argument: str, source: str | None) -> str:
    """Let `python train.py` find a train.py of trial.source, whatever the working directory."""
    if source is None or not argument or argument.startswith(("/", "-")):
        return argument
    file = Path(source) / argument
    return str(file) if file.is_file() else argument


def _attributes(file: Path) -> dict[str, Any]:
    """Return the user attributes that the program has written, if any."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    try:
        attributes = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise TrialFailure(_bad_result(str(error))) from None
    if not isinstance(attributes, dict):
        raise TrialFailure(_bad_result(f"it is a {type(attributes).__name__}"))
    return attributes


def _bad_result(what: str) -> Failure:
    message = f"The program succeeded, but the file named by TUNING_RESULT_FILE is not a JSON object: {what}."
    return Failure("ResultFile", message, 'Write one object, for example {"model": "/models/final.pt"}.')


class _Watch:
    """Follows a program and reports its intermediate values as they come."""

    def __init__(
        self, program: Program, trial: Trial, metrics: list[str], reader: MetricReader, file: _Follower
    ) -> None:
        self._program = program
        self._trial = trial
        self._metrics = metrics
        self._reader = reader
        self._file = file
        self._progress = Progress()
        self._logged: set[str] = set()

    def until_end(self, grace: float) -> bool:
        """Return when the program has ended; true if it was stopped because the trial is unpromising."""
        while True:
            lines, ended = self._program.new_lines(LOOK_EVERY)
            values = [found for line in lines for found in self._read(line.text, line.on_error)]
            values += [found for line in self._file.new_lines(to_the_end=ended) for found in self._read(line)]
            if ended:
                self._trial.report_all([*values, *self._progress.rest()])
                self._program.signal(signal.SIGKILL)  # child processes that still run
                return False
            self._trial.report_all(values)
            if values and self._trial.should_prune():
                step, value = values[-1]
                log(f"pruned at step {step} with {self._metrics[0]}={value}: stopping the program")
                self._program.stop(grace)
                return True

    def _read(self, line: str, on_error: bool = False) -> list[tuple[int, float]]:
        """Read a line; return the values that are now known to be intermediate ones, with their steps."""
        reading = self._reader.read(line, on_error=on_error)
        for name, reason in self._reader.unreadable.items():
            self._log_once(f"the value of {name} can't be read in the line {reason}", about=name)
        if len(self._metrics) > 1:  # Optuna has intermediate values for one objective only
            return []
        values = self._progress.add(reading.position, reading.values.get(self._metrics[0]))
        if self._progress.repeats:
            self._log_once(
                f"the line {quoted(line)} repeats a step, and only the first value of each step is used for "
                "pruning: print a step that grows",
                about="step",
            )
        return values

    def _log_once(self, text: str, about: str) -> None:
        if about not in self._logged:
            self._logged.add(about)
            log(text)


class _Follower:
    """Reads the lines that are added to a file from now on; all of a file that is written again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._start = b""
        self._offset = 0
        self._rest = b""
        self._found: tuple[int, int] | None = None
        """The version of the file that was there before, until something is read."""
        if file.exists():
            with file.open("rb") as opened:
                self._start = opened.read(COMPARED)
                self._offset = opened.seek(0, os.SEEK_END)
                self._found = _version(opened)

    def new_lines(self, to_the_end: bool) -> Iterator[str]:
        """Yield the new lines, without an unfinished one unless the file has reached its end."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            start = file.read(COMPARED)
            size = file.seek(0, os.SEEK_END)
            # An equal result is all that some programs write. While one runs, it may only touch the file.
            same = to_the_end and size == self._offset and self._found not in (None, _version(file))
            if size < self._offset or not start.startswith(self._start) or same:
                self._offset, self._rest = 0, b""
            self._start = start
            file.seek(self._offset)
            content = file.read()
        self._offset += len(content)
        if content:
            self._found = None
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in [*lines, self._rest] if to_the_end else lines:
            yield line.decode(errors="replace")


def _version(file: IO[bytes]) -> tuple[int, int]:
    """Return what differs after a file was written, even with the same content."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_mtime_ns


def _environment(trial: Trial, folder: Path, metrics_file: Path) -> dict[str, str]:
    parameters = folder / "parameters.json"
    parameters.write_text(json.dumps(trial.params))
    return {
        "PYTHONUNBUFFERED": "1",  # or else a Python program's lines would come at its end, too late to prune
        **os.environ,
        **variables(trial.params),
        "TUNING_PARAMETERS_FILE": str(parameters),
        "TUNING_METRICS_FILE": str(metrics_file),
        "TUNING_RESULT_FILE": str(folder / RESULT),
    }


def _start(command: list[str], environ: dict[str, str]) -> Program:
    try:
        return Program(command, environ)
    except OSError as error:
        raise TrialFailure(
            Failure(
                "Command",
                f"The program {command[0]!r} can't be run: {error.strerror}.",
                f"Correct its name, or {advice().program}; for shell syntax, [sh, -c, '...'].",
            )
        ) from None


def _outcome(
    program: Program, reader: MetricReader, metrics: list[str], settings: Settings, trial: Trial
) -> Outcome:
    output = "".join(f"{shown(line)}\n" for line in program.last_lines)
    if program.exit_code:
        work = "refit" if settings.final else trial.number
        in_cluster = f"`kubectl logs job/{settings.study.rpartition('/')[2]}-{work} -c trainer`"
        log_place = settings.config.get("log") or in_cluster
        raise TrialFailure(_exit_failure(program.exit_code, output, log_place))
    missing = reader.missing()
    if missing and settings.final:
        return Outcome("COMPLETE")
    file = (settings.config.get("metrics") or {}).get("file")
    if missing and file and not Path(file).exists():
        message = f"{missing.message} The file {file} (spec.trial.metrics.file) does not exist."
        missing = missing._replace(message=message)
    if missing:
        raise TrialFailure(missing._replace(traceback=output or None))
    values: list[Any] = [reader.last[name] for name in metrics]
    return outcome_of_value(values, metrics)


def _exit_failure(code: int, output: str, log_place: str) -> Failure:
    last = output.rstrip().rpartition("\n")[2].strip()
    number = (
        -code if code < 0 else code - SHELL_SIGNALS
    )  # a shell reports its program's signal as 128 + number
    what = f"exited with code {code}"
    if code < 0:
        what = f"was killed by signal {number} ({signal.strsignal(number)})"
    message = f"The program {what}{': ' + last if last else ''}; see {log_place}"
    remedy = "Exit with code 0 on success."
    if number == signal.SIGKILL:
        remedy = f"If it ran out of memory, {advice().memory}."
    return Failure("Killed" if code < 0 else "ExitCode", message, remedy, output)
