"""The operator's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)


class Metrics:
    """The operator's metrics, in a registry of their own."""

    def __init__(self, studies_in_work: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.passes = Counter(
            "tuning_operator_passes_total",
            "Passes over a study, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self.pass_seconds = Histogram(
            "tuning_operator_pass_seconds", "Duration of a pass over a study.", registry=self._registry
        )
        self.last_pass = Gauge(
            "tuning_operator_last_pass_timestamp_seconds",
            "When a pass over a study last ended.",
            registry=self._registry,
        )
        self.requests = Counter(
            "tuning_operator_kubernetes_requests_total",
            "Requests to the Kubernetes API, watches excluded, by verb, kind of object and status code "
            "(0: no reply).",
            ["verb", "kind", "code"],
            registry=self._registry,
        )
        self.leader = Gauge(
            "tuning_operator_leader",
            "1 if this operator is the leader, 0 while it waits.",
            registry=self._registry,
        )
        queue_length = Gauge(
            "tuning_operator_queue_length", "Studies waiting for a pass or in one.", registry=self._registry
        )
        queue_length.set_function(studies_in_work)

    def render(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self._registry)
