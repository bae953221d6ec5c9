"""Runs one trial, from its start to the delivery of its result."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.failure import Failure, result_message, termination_message
from tuning_trainer.log import log, write, write_termination_message
from tuning_trainer.optuna_api.trial import PATIENCE, Trial
from tuning_trainer.outcome import Outcome, outcome_of_exception
from tuning_trainer.stopping import EXIT_CODE, Stopped, Stopping, TimeLimit
from tuning_trainer.wire.client import Client, Refused, Unreachable
from tuning_trainer.wire.codec import WARNING
from tuning_trainer.wire.outbox import UNACCEPTABLE, Outbox, SilentOutbox
from tuning_trainer.workspace import lost_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.settings import Settings

VIEW = "TUNING_TRIAL_VIEW"
"""Environment variable of a worker's trial: a file with the protocol's TrialView."""
FINISHED = ("COMPLETE", "PRUNED", "FAIL")


class TrialOver(SystemExit):
    """Ends the user's code once the trial's result is delivered."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Run:
    """The trial of this process: connects to the study server and delivers the result."""

    def __init__(self, settings: Settings, stopping: Stopping) -> None:
        self.settings = settings
        self._stopping = stopping
        self._limit = TimeLimit(settings.config.get("timeoutSeconds"), self._announce_timeout)
        reached = VIEW in os.environ  # by the worker's supervisor, which got the trial
        self._client = Client(settings.trial_url, settings.token_file, settings.ca_file, reached=reached)
        self._started = time.time()
        self._process = os.getpid()
        self._trial: Trial | None = None
        self.recorded: dict[str, Any] | None = None
        """The protocol's TrialRecord of the trial, once its result is delivered."""
        self._outbox = (SilentOutbox if settings.follower else Outbox)(self._client)

    def execute(self, work: Callable[[Trial, list[str]], Outcome]) -> int:
        """Run the trial and return the exit code; `work` gets the trial and the names of the metrics."""
        try:
            return self._execute(work)
        except TrialOver as over:
            self._limit.cancel()
            return over.exit_code
        except Stopped:
            if not self._limit.expired:
                raise
            return self.deliver(Outcome("FAIL", failure=self._timeout))

    def _execute(self, work: Callable[[Trial, list[str]], Outcome]) -> int:
        try:
            trial, metrics = self.open_trial()
        except (Refused, Unreachable) as error:
            return self._give_up(error)
        log(f"trial {trial.number} of {self.settings.study}{_listed(trial.params)}")
        try:
            outcome = work(trial, metrics)
        except TrialOver:
            raise
        except BaseException as error:  # whatever ends the user's code ends the trial
            if self._in_forked_process:
                raise
            outcome = outcome_of_exception(error)
        if self._in_forked_process:
            raise SystemExit
        return self.deliver(outcome)

    @property
    def _in_forked_process(self) -> bool:
        """Whether the user's code has forked this process, whose end is not the trial's."""
        return os.getpid() != self._process

    def open_trial(self) -> tuple[Trial, list[str]]:
        """Return the trial and the names of the metrics.

        Raises:
            TrialOver: the trial has ended before.
            Refused: the server rejects the pod.
            Unreachable: the server did not answer.
        """
        view = self._given_view() or self._client.call("GET", "", patience=PATIENCE)
        self._client.trial_started = view["trial"].get("started")
        state = view["trial"]["state"]
        if state in FINISHED:
            log(f"trial {view['trial']['number']} has already ended: {state}")
            raise TrialOver(_exit_code(state))
        self._trial = trial = Trial(self._client, self._outbox, self.settings.study, view)
        return trial, [objective["metric"] for objective in view["objectives"]]

    def connect(self) -> None:
        """Connect to the study server beside the trial's code, which may report nothing before its end.

        This saves time for short trials, which are the ones where it counts. The server closes a connection
        on which it gets no request within 10 seconds; the first call after that opens a new one.
        """
        threading.Thread(target=self._client.connect, daemon=True).start()

    def _given_view(self) -> dict[str, Any] | None:
        """Return the view that a worker's supervisor got with the trial, once: it becomes outdated."""
        file = os.environ.pop(VIEW, None)
        return json.loads(Path(file).read_text()) if file else None

    def deliver(self, outcome: Outcome) -> int:
        """Send everything the trial reported, then how it ended; return the exit code.

        Sends nothing if the pod is being stopped, because that may have caused the outcome.
        """
        self._limit.cancel()
        if self._limit.expired:
            outcome = Outcome("FAIL", failure=self._timeout)
        if self._stopping.received and not self._limit.expired:
            log("stopped by SIGTERM, no result reported; the trial may be resumed later")
            return EXIT_CODE
        if self.settings.follower:
            _announce(outcome)
            return _exit_code(outcome.state)
        return self._send_result(outcome)

    def finished_study(self) -> dict[str, Any]:
        """Return the protocol's FinishedStudy, for the refit of a script."""
        study: dict[str, Any] = self._client.call("GET", "/study", patience=PATIENCE)
        return study

    @property
    def _timeout(self) -> Failure:
        noun, field = ("refit", "spec.refit") if self.settings.final else ("trial", "spec.trial")
        message = f"The {noun} ran longer than its timeout ({field}.timeout) and was stopped."
        return Failure("Timeout", message, f"Raise {field}.timeout, or make the {noun} faster.")

    def _announce_timeout(self) -> None:
        """The pod may be unable to report it."""
        log(f"FAIL: {self._timeout.message}")
        self._leave(termination_message(self._timeout))

    def _send_result(self, outcome: Outcome) -> int:
        self._stopping.start_delivery()
        _announce(outcome)
        if outcome.state == "COMPLETE":
            self._warn_of_lost_files()
        message = self._message(outcome)
        if message is not None:
            self._leave(message)
        try:
            self._outbox.drain(PATIENCE)
            self.recorded = self._client.call("POST", "/result", outcome.to_wire(), patience=PATIENCE)
        except Unreachable as error:
            if message is None:
                return self._give_up(error)
            log(f"{error}; the result is in the pod's termination message, and the operator records it later")
            return 1
        except Refused as error:
            if outcome.failure or message is None or error.status in UNACCEPTABLE:
                return self._give_up(error)
            log(f"the study server refused the result, which is in the pod's termination message: {error}")
            return 1
        if self.recorded["state"] != outcome.state:
            log(f"the trial already has a result, which is kept: {self.recorded['state']}")
        return _exit_code(outcome.state)

    def _warn_of_lost_files(self) -> None:
        trial, storage = self._trial, self.settings.config.get("storage")
        if trial is not None and storage is not None:
            attributes = {**trial.study.user_attrs, **trial.user_attrs}
            if warning := lost_files(attributes, storage, self._started):
                log(warning)
                trial.set_user_attr(WARNING, warning)

    def _message(self, outcome: Outcome) -> bytes | None:
        """Return the termination message: the pod may end before the study server answers."""
        if outcome.failure is not None:
            return termination_message(outcome.failure)
        return result_message(outcome.to_wire(), *self._outbox.unsent())

    def _leave(self, message: bytes) -> None:
        write_termination_message(self.settings.termination_log, message)

    def _give_up(self, error: Refused | Unreachable) -> int:
        if isinstance(error, Refused):
            failure = Failure("StudyServerRefused", str(error))
        else:
            failure = Failure("StudyServerUnreachable", str(error), error.remedy)
        log(f"{failure.category}: {failure.message}")
        self._leave(termination_message(failure))
        return 1


def _exit_code(state: str) -> int:
    return 1 if state == "FAIL" else 0


def _listed(params: dict[str, Any]) -> str:
    return "".join(f"{' with' if not i else ','} {name}={params[name]}" for i, name in enumerate(params))


def _announce(outcome: Outcome) -> None:
    """Write to the pod's log how the trial ended."""
    if outcome.failure is None:
        values = "" if outcome.values is None else f": {', '.join(map(str, outcome.values))}"
        log(f"{outcome.state}{values}")
        return
    write(outcome.failure.traceback or "")
    remedy = f" {outcome.failure.remedy}" if outcome.failure.remedy else ""
    log(f"FAIL: {outcome.failure.message}{remedy}")
