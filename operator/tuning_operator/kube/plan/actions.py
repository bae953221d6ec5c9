"""What `decide` may order, in a trial's and a study's terms: nothing here knows Jobs or HTTP."""

from dataclasses import dataclass
from typing import Literal

from tuning_operator.protocol import Failure
from tuning_operator.resource.study import TuningStudyStatus


@dataclass(frozen=True)
class Tell:
    """End a trial in the record. The first telling holds, so this never overwrites a result."""

    trial: int
    state: Literal["PRUNED", "FAIL"]
    failure: Failure | None = None


@dataclass(frozen=True)
class Stop:
    """End a trial's run; nothing happens when there is none."""

    trial: int


@dataclass(frozen=True)
class Start:
    """Give a trial its run; nothing happens when it has one."""

    trial: int


@dataclass(frozen=True)
class Ask:
    """Top the running trials up to `parallelism`, the study's trials up to `max_trials`."""

    parallelism: int
    max_trials: int


@dataclass(frozen=True)
class BeginRefit:
    """Have the record take results of a refit; the same trial and digest change nothing."""

    trial: int
    digest: str


@dataclass(frozen=True)
class StartRefit:
    """Give the refit its run; nothing happens when it has one."""

    trial: int
    digest: str


@dataclass(frozen=True)
class StopRefit:
    """End the refit's run and have it removed; nothing happens when there is none."""


@dataclass(frozen=True)
class FailRefit:
    """End the refit in the record. Never overwrites a result."""

    failure: Failure | None = None


Action = Tell | Stop | Start | Ask | BeginRefit | StartRefit | StopRefit | FailRefit


@dataclass(frozen=True)
class Event:
    """A line of the story in `kubectl describe`.

    Events of the same reason and key are one: posting it again raises `count` and replaces the message.
    """

    reason: str
    message: str
    key: str = ""
    count: int = 1
    warning: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do, what to show, and when to look again (seconds; None: when something happens)."""

    actions: tuple[Action, ...]
    status: TuningStudyStatus
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
