"""Command mode: runs any program, reads its metrics, stops it when it is hopeless."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.log import log
from tuning_trainer.modes.metrics import MetricReader, Steps
from tuning_trainer.modes.parameters import fill_in, variables
from tuning_trainer.modes.process import Program
from tuning_trainer.outcome import Outcome, outcome_of_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuning_trainer.optuna_api.trial import Trial
    from tuning_trainer.settings import Settings

SHELL_SIGNALS = 128
LOOK_EVERY = 0.5  # seconds between looks at the metrics file
PRUNE_GRACE = 30.0  # seconds, where the manifest's pruneGrace does not come along
SHARE_OF_GRACE = 0.8  # of pruneGrace for the program; after all of it the pod itself is deleted
RESULT = "result.json"
STOP_GRACE = 20.0  # seconds of the pod's own grace period (30 by default) for the program


def run_command(arguments: list[str], settings: Settings, trial: Trial, metrics: list[str]) -> Outcome:
    """Return the outcome of running a program with the trial's parameters.

    Raises:
        TrialFailure: the program cannot be run, failed, or did not write its metrics.
    """
    wanted = settings.config.get("metrics") or {}
    with tempfile.TemporaryDirectory(prefix="tuning-") as folder:
        file = Path(wanted.get("file") or Path(folder) / "metrics.jsonl")
        source = Path(settings.source) if settings.source else None
        command = fill_in(arguments, trial.params, source)
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
        outcome = _outcome(command, program, watch.last, metrics, settings.final)
        for key, value in _attributes(Path(folder) / RESULT).items():
            trial.set_user_attr(key, value)
        return outcome


def _attributes(file: Path) -> dict[str, Any]:
    """Return the user attributes that a program has written; it need not write any."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    try:
        attributes = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise TrialFailure(_bad_result(str(error))) from None
    if not isinstance(attributes, dict):
        raise TrialFailure(_bad_result(f"it is a {type(attributes).__name__}"))
    return attributes


def _bad_result(what: str) -> Failure:
    message = f"The program ended well, but what it wrote to TUNING_RESULT_FILE is no JSON object: {what}."
    return Failure("ResultFile", message, 'Write one object, for example {"model": "/models/final.pt"}.')


class _Watch:
    """Follows a program: reports its metrics as they come, and keeps the last of each."""

    def __init__(
        self, program: Program, trial: Trial, metrics: list[str], reader: MetricReader, file: _Follower
    ) -> None:
        self.last: dict[str, float] = {}
        self._program = program
        self._trial = trial
        self._metrics = metrics
        self._reader = reader
        self._file = file
        self._steps = Steps()

    def until_end(self, grace: float) -> bool:
        """Return when the program has ended; true if it was told to stop."""
        while True:
            event = self._program.next_event(LOOK_EVERY)
            ended = event is not None and event.line is None
            lines = [event.line] if event and event.line is not None else []
            hopeless = [self._take(line) for line in (*lines, *self._file.new_lines(to_the_end=ended))]
            if ended:
                self._program.signal(signal.SIGKILL)  # children that it left behind
                return False
            if any(hopeless):
                log("the trial is hopeless: stopping the program")
                self._program.stop(grace)
                return True

    def _take(self, line: str) -> bool:
        """Report what a line says; return whether the trial should stop."""
        reading = self._reader.read(line)
        self.last.update(reading.values)
        step = self._steps.of(reading)
        if step is None or len(self._metrics) > 1:
            return False
        self._trial.report(reading.values[self._metrics[0]], step)
        return self._trial.should_prune()


class _Follower:
    """Reads the lines that are added to a file, from its present end on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = file.stat().st_size if file.exists() else 0
        self._rest = b""

    def new_lines(self, to_the_end: bool) -> Iterator[str]:
        """Yield the whole lines that have come; at the file's end also one without its newline."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # written anew
                self._offset, self._rest = 0, b""
            file.seek(self._offset)
            content = file.read()
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in [*lines, self._rest] if to_the_end else lines:
            yield line.decode(errors="replace")


def _environment(trial: Trial, folder: Path, metrics_file: Path) -> dict[str, str]:
    parameters = folder / "parameters.json"
    parameters.write_text(json.dumps(trial.params))
    return {
        "PYTHONUNBUFFERED": "1",  # else a Python program's lines come when it ends: too late to prune
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
                f"The program {command[0]!r} cannot be run: {error.strerror}.",
                "trial.command needs a program that the image has; a shell line is [sh, -c, '...'].",
            )
        ) from None


def _outcome(
    command: list[str], program: Program, last: dict[str, float], metrics: list[str], final: bool
) -> Outcome:
    output = "".join(program.last_lines)
    if program.exit_code:
        raise TrialFailure(_exit_failure(command[0], program.exit_code, output))
    missing = [name for name in metrics if name not in last]
    if missing and final:
        return Outcome("COMPLETE")
    if missing:
        raise TrialFailure(_no_metric(missing, metrics, output))
    values: list[Any] = [last[name] for name in metrics]
    return outcome_of_value(values, metrics)


def _exit_failure(name: str, code: int, output: str) -> Failure:
    said = output.rstrip().rpartition("\n")[2].strip()
    number = -code if code < 0 else code - SHELL_SIGNALS  # a shell tells its program's signal as 128 + number
    if number == signal.SIGKILL:
        remedy = "Was there too little memory? Give the container a larger limit."
    else:
        remedy = "Its last lines tell more; exit code 0 means success."
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by signal {number} ({signal.strsignal(number)})"
    message = f"The program {name!r} {how}; its last line: {said}"
    return Failure("Killed" if code < 0 else "ExitCode", message, remedy, output)


def _no_metric(missing: list[str], metrics: list[str], output: str) -> Failure:
    message = f"The program ended well but never wrote the metric {', '.join(missing)}."
    remedy = (
        f"Print a line such as {metrics[0]}=0.93 on standard output, or append a JSON line to the file "
        "named by TUNING_METRICS_FILE; the name must be that of spec.objectives."
    )
    return Failure("MetricMissing", message, remedy, output or None)
