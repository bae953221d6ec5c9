"""Turns changes of runs and at the study server into keys in the queue; follows the end of namespaces."""

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.kube_api import Resources
from tuning_operator.kube.ports.runs import Runs, RunsUnavailable
from tuning_operator.kube.ports.study_server import Feed, StudyServerUnavailable
from tuning_operator.protocol import StudyKey

log = logging.getLogger(__name__)

POLL_SECONDS = 25.0
"""How long the study server may wait for changes before it replies: less than proxies' usual idle timeout."""
RECONNECT_SECONDS = 2.0
NAMESPACE_SECONDS = 60.0
"""Seconds between two looks for namespaces that were deleted after their studies."""
LASTING = 2
"""Attempts in a row that have to fail before studies are informed: a restart takes a moment."""
RUN_EVENT_SECONDS = 0.1
"""Delay before a pass over the study of a Job or pod that changed. A Job and its pod change several times as
they start and end, and a study's runs often do so together: one pass serves all. No result waits for it, as
results come through the study server's change feed."""
RUNS_SHARE = 0.1
"""The share of the time that passes over a study may take because of its runs' changes."""
RESULTS_SHARE = 0.5
"""The same because of changes at the study server: a slot is idle until the result is acted on."""


async def follow_runs(runs: Runs, queue: WorkQueue[StudyKey]) -> None:
    """Add a study's key shortly after one of its runs changed."""
    await runs.watch(lambda key: queue.add_within(key, RUNS_SHARE, RUN_EVENT_SECONDS))


async def follow_changes(server: Feed, queue: WorkQueue[StudyKey], namespaces: Collection[str] = ()) -> None:
    """Add the key of each study that changed at the study server, so that results are acted on at once.

    With `namespaces`, studies in other namespaces are ignored: other operators serve them.
    """
    cursor, failures = None, 0
    while True:
        try:
            changes = await server.changes(cursor, 0 if failures else POLL_SECONDS)
            problem = changes.unavailable
        except StudyServerUnavailable as error:
            changes, problem = None, str(error)
        if changes is None or problem:
            log.warning("The study server is unavailable; retrying in %.0f s: %s", RECONNECT_SECONDS, problem)
            failures += 1
            if failures == LASTING:
                queue.hurry()  # a pass over each study reports it
            await asyncio.sleep(RECONNECT_SECONDS)
            continue
        if failures:
            queue.retry_now()
        cursor, failures = changes.cursor, 0
        for namespace, name in changes.studies:
            if not namespaces or namespace in namespaces:
                queue.add_within(StudyKey(namespace, name), RESULTS_SHARE)


async def follow_namespaces(resources: Resources, server: Feed, namespaces: Collection[str] = ()) -> None:
    """Report namespaces that were deleted after their studies, so that later ones do not see the records.

    With `namespaces`, others are ignored: this operator may not read them.
    """
    while True:
        with _failures_logged():
            for name, uid in await server.namespaces():
                if not namespaces or name in namespaces:
                    with _failures_logged():  # the operator may have lost its rights in this one only
                        namespace = await resources.get("Namespace", "", name)
                        if namespace is None or namespace["metadata"]["uid"] != uid:
                            await server.forget_namespace(name, uid)
        await asyncio.sleep(NAMESPACE_SECONDS)


@contextmanager
def _failures_logged() -> Iterator[None]:
    try:
        yield
    except (RunsUnavailable, StudyServerUnavailable) as error:
        log.warning("Can't look for deleted namespaces yet: %s", error)
