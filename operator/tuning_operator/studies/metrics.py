"""The study server's metrics for Prometheus."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tuning_operator.protocol import Counts, StudyKey
from tuning_operator.studies.storage.base import Store

ALL = "*"
"""In place of a namespace: all of them."""
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class StudyCounts(NamedTuple):
    """A study's trials by state."""

    key: StudyKey
    counts: Counts


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, counts: Callable[[], Iterable[StudyCounts]], store: Store) -> None:
        self._counts = counts
        self._registry = CollectorRegistry()
        self._registry.register(_Commits(store))
        self.rejected = Counter(
            "tuning_rejected_requests",
            "Requests without a valid token (401), for what the caller may not use (403), too slow (408) or "
            "too large (413).",
            labelnames=("status",),
            registry=self._registry,
        )
        self.ask = Histogram(
            "tuning_ask_seconds",
            "Time from a request to start trials to its reply, sampling and commit included.",
            buckets=SLOW,
            registry=self._registry,
        )
        self.report = Histogram(
            "tuning_report_seconds",
            "Time from a report of intermediate values to its reply, pruning decision and commit included.",
            buckets=FAST,
            registry=self._registry,
        )
        self.tell = Histogram(
            "tuning_tell_seconds",
            "Time from a trial's result to its reply, commit included.",
            buckets=SLOW,
            registry=self._registry,
        )

        self.turnaround = Histogram(
            "tuning_slot_turnaround_seconds",
            "Time from a trial's result to the first request of the trial that takes its place.",
            buckets=WAITS,
            registry=self._registry,
        )
        self.first_trial = Histogram(
            "tuning_time_to_first_trial_seconds",
            "Time from a study's creation to the first request of its first trial.",
            buckets=WAITS,
            registry=self._registry,
        )
        self.prune_reaction = Histogram(
            "tuning_prune_reaction_seconds",
            "Time from the request to stop a trial to its end.",
            buckets=WAITS,
            registry=self._registry,
        )

    def render(self, namespace: str | None) -> bytes:
        """Return the metrics in the text format of Prometheus.

        Args:
            namespace: the one whose studies are named, or ALL; None: only their totals.
        """
        trials = CollectorRegistry()
        trials.register(_Trials(self._counts, namespace))
        return generate_latest(self._registry) + generate_latest(trials)


class _Commits(Collector):
    """Transactions: reports and results per transaction are the size of a batch."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "tuning_commits",
            "Transactions committed; requests at the same time share one.",
            self._store.commits,
        )


class _Trials(Collector):
    """Trials by state, and by study for those who may know the studies; collected when scraped."""

    def __init__(self, counts: Callable[[], Iterable[StudyCounts]], namespace: str | None) -> None:
        self._counts = counts
        self._namespace = namespace

    def collect(self) -> Iterator[Metric]:
        text = "Trials of the studies in memory, by state."
        studies = list(self._counts())
        yield GaugeMetricFamily("tuning_studies", "Studies in memory.", len(studies))
        if self._namespace is None:
            totals = GaugeMetricFamily("tuning_trials", text, labels=("state",))
            for state in Counts.model_fields:
                totals.add_metric((state,), sum(getattr(counts, state) for _, counts in studies))
            yield totals
            return
        family = GaugeMetricFamily("tuning_trials", text, labels=("namespace", "study", "state"))
        for (namespace, study), counts in studies:
            if self._namespace in (ALL, namespace):
                for state, number in counts:
                    family.add_metric((namespace, study, state), number)
        yield family
