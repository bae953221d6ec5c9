"""What `decide` can order. Every action may be repeated without harm."""

from dataclasses import dataclass
from datetime import datetime

from tuning_operator.kube.plan.verdict import Verdict
from tuning_operator.kube.plan.work import Refit, Trial, Work
from tuning_operator.protocol import AskRequest, RefitRequest, TellRequest


@dataclass(frozen=True)
class Tell:
    """End a trial or a refit in the record. The first result holds, so this never overwrites one."""

    work: Trial | Refit
    request: TellRequest


@dataclass(frozen=True)
class Stop:
    """End the work's run; nothing happens when there is none."""

    work: Work


@dataclass(frozen=True)
class Finish:
    """End what keeps a run alive after its program has exited; its logs are kept."""

    work: Work
    again: bool
    """Whether the run may try again: its program failed, and it has attempts left."""


@dataclass(frozen=True)
class Start:
    """Give the work a run; nothing happens when it has one."""

    work: Work


@dataclass(frozen=True)
class Ask:
    """Have the record start trials until as many run as requested."""

    request: AskRequest


@dataclass(frozen=True)
class Begin:
    """Have the record take results of a refit; the same request again changes nothing."""

    request: RefitRequest


Action = Tell | Stop | Finish | Start | Ask | Begin


@dataclass(frozen=True)
class Wait:
    """There may be something to do at this moment, and not before."""

    until: datetime


Step = Action | Wait


def once(moment: datetime, now: datetime, *actions: Action) -> tuple[Step, ...]:
    """Return the actions if the moment has come, else the wait for it."""
    return actions if moment <= now else (Wait(moment),)


@dataclass(frozen=True)
class Plan:
    """What to do about a study, and what the decision was based on."""

    actions: tuple[Action, ...] = ()
    verdict: Verdict | None = None
    """Why the study is over; None: it is not."""
    refit: Refit | None = None
    """The refit that the study should have, whether it has begun or not."""
    blocked: tuple[Work, ...] = ()
    """The work whose run cannot start, for long enough to be reported: trials by number, then the refit."""
    queued: tuple[Work, ...] = ()
    """The same for trials that wait their turn, while others run."""
    wake: datetime | None = None
    """When to decide again at the latest; None: not before something happens."""
    parallelism: int | None = None
    """How many trials may run at the same time; None: as many as the spec says."""
