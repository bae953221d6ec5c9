"""How far a study is, computed from its resource and its record."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tuning_operator.cli.studies import ENDED, STOPPED, Record, Resource
from tuning_operator.cli.trials import Trial
from tuning_operator.resource.quantity import gpus_of

if TYPE_CHECKING:
    from tuning_operator.protocol import FinishedTrial

RECENT = 20
"""The last finished trials from which the rate is computed."""


class Progress:
    """A study that is being followed."""

    def __init__(self, study: Resource) -> None:
        self.study = study
        self._trials: dict[int, FinishedTrial] = {}

    def read(self, record: Record) -> None:
        """Read what is new in the record."""
        unfinished = (n for n, trial in self._trials.items() if trial.finished is None)
        first = min(unfinished, default=len(self._trials))
        self._trials |= {trial.number: trial for trial in record.read(first).trials}

    @property
    def trials(self) -> Sequence[Trial]:
        """The trials that were run here, by number."""
        own = [trial for _, trial in sorted(self._trials.items()) if trial.copied_from is None]
        return [Trial(trial, self._metrics) for trial in own]

    @property
    def running(self) -> Sequence[Trial]:
        """The trials that are running."""
        return [trial for trial in self.trials if trial.state == "running"]

    @property
    def finished(self) -> int:
        """How many trials have ended, whatever their end."""
        return sum(trial.record.finished is not None for trial in self.trials)

    @property
    def total(self) -> int:
        """How many trials the study will have at most."""
        return int(self.study["spec"]["maxTrials"])

    @property
    def phase(self) -> str | None:
        """The study's phase."""
        phase: str | None = self._status.get("phase")
        return phase

    @property
    def over(self) -> bool:
        """Whether nothing follows: the study has ended, and its refit too if it has one, or was stopped."""
        if self.phase in ("Failed", STOPPED):
            return True
        refit = (self._status.get("refit") or {}).get("phase")
        return self.phase == "Completed" and (not self.study["spec"].get("refit") or refit in ENDED)

    @property
    def failed(self) -> bool:
        """Whether the study or its refit has failed."""
        return "Failed" in (self.phase, (self._status.get("refit") or {}).get("phase"))

    def rate(self, now: datetime | None = None) -> float | None:
        """Return how many trials finish in a second, from the last ones; None if that can't be known."""
        ended = sorted(t.record.finished for t in self.trials if t.record.finished and t.record.started)
        started = [t.record.started for t in self.trials if t.record.started]
        if not ended:
            return None
        recent = ended[-RECENT:]
        since = ended[-RECENT - 1] if len(ended) > RECENT else min(started)
        seconds = ((now or datetime.now(UTC)) - since).total_seconds()
        return len(recent) / seconds if seconds > 0 else None

    def remaining(self, now: datetime | None = None) -> float | None:
        """Return in how many seconds all trials will have finished at this rate; None if it is unknown."""
        rate = self.rate(now)
        return (self.total - self.finished) / rate if rate and self.phase == "Running" else None

    def gpu_hours(self) -> tuple[float, float] | None:
        """Return (used, saved by pruning), in hours; None if the trials have no GPU.

        A pruned trial would have run for as long as the complete ones did on average.
        """
        trial = self.study["spec"].get("trial", {})
        gpus = gpus_of(trial.get("gpus"), trial.get("template"), trial.get("trialsPerPod", 1))
        if not gpus:
            return None
        used = sum(trial.seconds or 0 for trial in self.trials)
        complete = [trial.seconds or 0 for trial in self.trials if trial.state == "complete"]
        mean = sum(complete) / len(complete) if complete else 0
        pruned = [trial.seconds or 0 for trial in self.trials if trial.state == "pruned"]
        saved = sum(max(mean - seconds, 0) for seconds in pruned)
        return used * gpus / 3600, saved * gpus / 3600

    @property
    def _status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.study.get("status", {})
        return status

    @property
    def _metrics(self) -> list[str]:
        return [objective["metric"] for objective in self.study["spec"]["objectives"]]
