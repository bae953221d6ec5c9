"""Workers take keys from the queue and reconcile them, beside the other parts of the process.

An error delays a study, and never ends the worker.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.loop.result import ActionsFailed, Result
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.runs import RunsUnavailable
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import StudyKey

log = logging.getLogger(__name__)

EXPECTED = (RunsUnavailable, StudyServerUnavailable, ActionsFailed)
"""Errors whose message is enough; others are logged with their traceback."""


OVER_SECONDS = 3600.0
"""How often a study that is over gets a pass at least.

Less often than others, since the study server has its record in memory only while it is used, and reads all
of its trials again for a pass.
"""


class Reconciles(Protocol):
    """What a worker needs of a reconciler."""

    async def reconcile(self, key: StudyKey) -> Result:
        """Do a pass."""


async def work(
    queue: WorkQueue[StudyKey], reconciler: Reconciles, metrics: Metrics, resync_seconds: float
) -> None:
    """Reconcile one key after another, forever."""
    while True:
        key = await queue.get()
        try:
            with metrics.pass_seconds.time():
                outcome = await _once(queue, reconciler, key, resync_seconds)
            metrics.passes.labels(outcome).inc()
        finally:
            queue.done(key)
            metrics.last_pass.set_to_current_time()


async def _once(
    queue: WorkQueue[StudyKey], reconciler: Reconciles, key: StudyKey, resync_seconds: float
) -> str:
    try:
        result = await reconciler.reconcile(key)
    except Exception as error:
        delay = queue.retry(key)
        unexpected = None if isinstance(error, EXPECTED) else error
        log.warning("%s: the pass failed; retrying in %.2f s: %s", key, delay, error, exc_info=unexpected)
        return "error"
    if result.outcome == "gone":
        queue.forget(key)
        log.info("%s: the study was deleted; the study server has been informed", key)
    elif result.outcome == "no_progress":
        queue.retry(key)
    else:
        queue.succeeded(key)
        longest = max(resync_seconds, OVER_SECONDS) if result.over else resync_seconds
        queue.add_after(key, longest if result.after is None else min(result.after, longest))
    return result.outcome


async def until_first_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts concurrently; when one ends or fails, cancel the others and raise its failure."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
