"""How long places of trials are free, how soon a study begins, and how soon trials obey their pruner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tuning_operator.protocol import Counts, StudyKey, StudySummary, TrialRecord
from tuning_operator.studies.metrics import Metrics
from tuning_operator.studies.pace import Pace
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.study_server import running_server

KEY = StudyKey("ml", "mnist")
NOW = datetime(2026, 11, 26, tzinfo=UTC)


class Times:
    """A pace with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics(list, MemoryStore())
        self.pace = Pace(self.metrics, lambda: self.now)

    def begins(self, number: int, at: float) -> None:
        self.now = at
        self.pace.seen(KEY, TrialRecord(number=number, state="RUNNING"))

    def ends(self, number: int, at: float, state: Any = "COMPLETE", **fields: Any) -> None:
        self.now = at
        self.pace.ended(KEY, TrialRecord(number=number, state=state, finished=NOW, **fields))

    def observed(self, name: str) -> tuple[int, float]:
        """Return how many times were observed, and their sum."""
        lines = self.metrics.render(None).decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith(f"tuning_{name}_seconds_"))
        count, total = (values[f"tuning_{name}_seconds_{what}"] for what in ("count", "sum"))
        return int(float(count)), float(total)


def test_the_first_trial_and_the_places_of_others() -> None:
    times = Times()
    times.pace.declared(KEY, StudySummary())
    times.begins(0, at=3)
    times.begins(1, at=4)
    times.begins(0, at=5)  # its next pod, or a retry
    assert times.observed("time_to_first_trial") == (1, 3)
    times.ends(0, at=10)
    times.ends(0, at=11)  # sent again
    times.begins(2, at=10.5)
    assert times.observed("slot_turnaround") == (1, 0.5)
    times.begins(3, at=20)  # another place, for example since parallelism was raised
    assert times.observed("slot_turnaround") == (1, 0.5)


def test_a_study_from_before_a_restart_does_not_begin_again() -> None:
    times = Times()
    times.pace.declared(KEY, StudySummary(counts=Counts(complete=3)))
    times.begins(3, at=100)
    times.ends(2, at=101)  # whoever began it is unknown
    times.begins(4, at=102)
    assert times.observed("time_to_first_trial") == (0, 0)
    assert times.observed("slot_turnaround") == (0, 0)


def test_a_study_that_was_deleted_and_created_again() -> None:
    times = Times()
    times.pace.declared(KEY, StudySummary())
    times.begins(0, at=1)
    times.pace.forget(KEY)
    times.now = 50
    times.pace.declared(KEY, StudySummary())
    times.begins(0, at=52)
    assert times.observed("time_to_first_trial") == (2, 3)


def test_how_soon_a_trial_obeys_its_pruner() -> None:
    times = Times()
    for number in (0, 1):
        times.begins(number, at=1)
    times.ends(0, at=2, state="PRUNED", prune_requested=NOW - timedelta(seconds=2))
    times.ends(1, at=2, state="PRUNED")  # by a user
    assert times.observed("prune_reaction") == (1, 2)


def test_the_requests_of_pods_are_observed() -> None:
    definition = {
        "objectives": [{"metric": "loss", "direction": "minimize"}],
        "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
    }
    with running_server() as server:
        operator = server.operator()
        operator.put("/v1/studies/ml/pace", json=definition).raise_for_status()
        for number in (0, 1):
            ask = {"parallelism": 1, "maxTrials": 2}
            operator.post("/v1/studies/ml/pace/ask", json=ask).raise_for_status()
            pod, url = server.pod("ml", "pace", number), server.trial_url("ml", "pace", number)
            pod.get(url).raise_for_status()
            pod.post(f"{url}/result", json={"state": "COMPLETE", "values": [1.0]}).raise_for_status()
        metrics = operator.get("/metrics").text.splitlines()
    assert "tuning_time_to_first_trial_seconds_count 1.0" in metrics
    assert "tuning_slot_turnaround_seconds_count 1.0" in metrics
