"""Workers take keys from the queue and reconcile them; an error costs a back-off, never the worker."""

import asyncio
import logging
import time
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from tuning_operator.kube.loop.reconciler import NoProgress
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.act import RunRefused
from tuning_operator.kube.ports.kubernetes import KubeError
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import StudyKey

log = logging.getLogger(__name__)

PASSES = Counter("tuning_operator_passes_total", "Passes over a study, by outcome.", ["outcome"])
PASS_SECONDS = Histogram("tuning_operator_pass_seconds", "How long a pass takes.")
LAST_PASS = Gauge("tuning_operator_last_pass_timestamp_seconds", "When a pass last came to its end.")
WAITING = Gauge("tuning_operator_queue_length", "Studies waiting for a pass or in one.")

EXPECTED = (KubeError, StudyServerUnavailable, RunRefused)
"""Errors whose message tells all; for others the log has the traceback."""


class Reconciles(Protocol):
    """What a worker needs of a reconciler."""

    async def reconcile(self, key: StudyKey) -> float | None:
        """Do a pass; return in how many seconds to look again, None if the study is gone."""


class Pulse:
    """How long work has been waiting without any pass coming to its end."""

    def __init__(self, queue: WorkQueue[StudyKey]) -> None:
        self._queue = queue
        self._beat = time.monotonic()

    def beat(self) -> None:
        """Note that a pass came to its end."""
        self._beat = time.monotonic()
        LAST_PASS.set_to_current_time()

    def age(self) -> float:
        """Return the seconds since the last pass; 0 while there is nothing to do."""
        if not len(self._queue):
            self._beat = time.monotonic()
        return time.monotonic() - self._beat


async def work(
    queue: WorkQueue[StudyKey], reconciler: Reconciles, pulse: Pulse, resync_seconds: float
) -> None:
    """Reconcile key after key, for ever."""
    while True:
        key = await queue.get()
        WAITING.set(len(queue))
        try:
            with PASS_SECONDS.time():
                outcome = await _once(queue, reconciler, key, resync_seconds)
            PASSES.labels(outcome).inc()
        finally:
            queue.done(key)
            pulse.beat()


async def _once(
    queue: WorkQueue[StudyKey], reconciler: Reconciles, key: StudyKey, resync_seconds: float
) -> str:
    try:
        after = await reconciler.reconcile(key)
    except NoProgress:
        queue.retry(key)
        return "no_progress"
    except asyncio.CancelledError:
        raise
    except Exception as error:
        delay = queue.retry(key)
        known = isinstance(error, EXPECTED)
        log.warning("%s: again in %.2f s: %s", key, delay, error, exc_info=None if known else error)
        return "error"
    queue.succeeded(key)
    if after is None:
        queue.forget(key)
        log.info("%s: its resource is gone, the study server knows", key)
    else:
        queue.add_after(key, min(after, resync_seconds))
    return "done"
