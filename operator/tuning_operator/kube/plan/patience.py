"""How long the operator waits, and when it looks again."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tuning_operator.kube.plan.observation import Run

START_GRACE = timedelta(minutes=5)
"""How long a run that needs a mend to start holds its slot: time to create a secret or push an image."""

HOPELESS = frozenset({"ImagePull", "ContainerConfig", "Evicted", "Volume"})
"""Troubles that only a person can mend. Capacity and quota come back by themselves, so runs wait for them."""

ABSENT_RETRY = timedelta(seconds=30)
"""How soon a study that is refused for what it continues from is tried again: that study may come yet."""


@dataclass
class Clock:
    """The moment of the decision, and the later moments at which it may turn out differently."""

    now: datetime
    upcoming: list[datetime] = field(default_factory=list)

    def passed(self, moment: datetime) -> bool:
        """Tell whether the moment is past; if not, it is one to wake up for."""
        if moment <= self.now:
            return True
        self.upcoming.append(moment)
        return False

    def until_next(self) -> float | None:
        """Return the seconds until the nearest moment asked about."""
        return (min(self.upcoming) - self.now).total_seconds() if self.upcoming else None


def hopeless(run: Run | None, clock: Clock) -> bool:
    """Tell whether a run has waited long enough for a mend that does not come."""
    trouble = run.trouble if run and run.state == "starting" else None
    if trouble is None or trouble.since is None or trouble.failure.category not in HOPELESS:
        return False
    return clock.passed(trouble.since + START_GRACE)
