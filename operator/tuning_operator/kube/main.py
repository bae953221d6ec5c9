"""The operator process: `tuning-operator operator`."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, cast

import kopf

from tuning_operator.kube import probes
from tuning_operator.kube.jobs.manifests import Runtime
from tuning_operator.kube.loop.handlers import follow_changes, kopf_settings, register
from tuning_operator.kube.loop.reconciler import Reconciler
from tuning_operator.kube.loop.worker import work
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.kubernetes import KubernetesApi, connect
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.study_server import HttpStudyServer
from tuning_operator.kube.settings import OperatorSettings
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.trainer_archive import trainer_archive

log = logging.getLogger(__name__)

CRD_SECONDS = 2.0


def run() -> None:
    """Run the operator with the settings of the environment, until a signal ends it or a part of it fails."""
    settings = OperatorSettings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("httpx", "kopf.objects"):  # a line for each request, for each event
        logging.getLogger(chatty).setLevel(logging.WARNING)
    asyncio.run(operate(settings))


async def operate(settings: OperatorSettings) -> None:
    """Connect all parts and run them; when one ends, all end, and Kubernetes starts the process anew."""
    told_to_end = _signals()  # first: kopf listens for signals too, but only once it runs
    server = HttpStudyServer(settings.study_server_url, settings.token_file, settings.study_server_ca_file)
    kube = await connect()
    queue: WorkQueue[StudyKey] = WorkQueue()
    metrics = probes.Metrics(queue.__len__)
    actor = Actor(kube, server, runtime(settings))
    reconciler = Reconciler(kube, server, Observer(kube, server, check, _now), actor, _now)
    listener = await probes.serve(
        probes.application(queue.age, settings.stuck_seconds, metrics),
        settings.probe_host,
        settings.probe_port,
    )
    try:
        parts = [work(queue, reconciler, metrics, settings.resync_seconds) for _ in range(settings.workers)]
        await _until_first_ends(
            _watch(kube, settings, queue),
            follow_changes(server, queue, settings.namespaces),
            told_to_end(),
            *parts,
        )
    finally:
        await listener.cleanup()
        await kube.close()
        await server.close()


def runtime(settings: OperatorSettings) -> Runtime:
    """Return what every trial gets."""
    ca = settings.study_server_ca_file.read_text() if settings.study_server_ca_file else None
    return Runtime(trainer_archive().content, settings.study_server_url, ca)


async def _watch(kube: KubernetesApi, settings: OperatorSettings, queue: WorkQueue[StudyKey]) -> None:
    while not await kube.serves_studies():  # kopf looks for the CRD once, and then never again
        log.warning("The CRD of TuningStudy is not installed; looking again in %.0f s", CRD_SECONDS)
        await asyncio.sleep(CRD_SECONDS)
    registry = kopf.OperatorRegistry()
    register(registry, queue)
    await kopf.operator(
        registry=registry,
        settings=kopf_settings(),
        standalone=True,
        identity=cast(
            "Any", "tuning-operator"
        ),  # kopf asks for the user's name else; a container may have none
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )


def _signals() -> Callable[[], Coroutine[Any, Any, None]]:
    """Listen for the signals that end a process; return what waits for one."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)

    async def wait() -> None:
        await told.wait()

    return wait


async def _until_first_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts side by side; when one ends or fails, end the others and pass its failure on."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _now() -> datetime:
    return datetime.now(UTC)
