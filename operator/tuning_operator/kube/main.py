"""The operator process: `tuning-operator operator`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import kopf
import uvloop

from tuning_operator.kube import probes
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.loop.changes import follow_changes, follow_namespaces, follow_runs
from tuning_operator.kube.loop.handlers import register
from tuning_operator.kube.loop.informer import kopf_settings
from tuning_operator.kube.loop.leader import Election, LeadershipLost
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.loop.reconciler import Reconciler
from tuning_operator.kube.loop.server_pod import replace_lost_server
from tuning_operator.kube.loop.worker import until_first_ends, work
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.kubernetes import KubernetesApi, connect
from tuning_operator.kube.ports.namespace_limit import NamespaceLimit
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.study_server import HttpStudyServer
from tuning_operator.kube.ports.study_servers import StudyServers
from tuning_operator.kube.settings import OperatorSettings
from tuning_operator.protocol import StudyKey
from tuning_operator.trainer_archive import trainer_archive

log = logging.getLogger(__name__)

FIRST_WAIT = 1.0  # seconds
LAST_WAIT = 30.0  # seconds


def run() -> None:
    """Run the operator with settings from the environment until a signal stops it or a part of it fails."""
    settings = OperatorSettings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for each event
    try:
        uvloop.run(operate(settings))
    except LeadershipLost as lost:
        log.error("%s This process stops, and waits for its turn once it is restarted.", lost)  # noqa: TRY400
        sys.exit(1)


async def operate(settings: OperatorSettings) -> None:
    """Connect all parts and run them; when one ends, all end, and Kubernetes restarts the process.

    With a Lease, the parts run only while this operator is the leader.
    """
    stopped = _signals()  # first: kopf listens for signals too, but only once it runs
    servers = [
        HttpStudyServer(url, settings.token_file, settings.study_server_ca_file)
        for url in settings.study_server_urls
    ]
    server = StudyServers(servers)
    queue = WorkQueue[StudyKey]()
    metrics = Metrics(lambda: len(queue))
    kube = await connect(metrics.requests)
    trainer_archive()  # made here, so that the first study doesn't wait for it
    registry = kopf.OperatorRegistry()
    runs = JobRuns(kube, lambda key: runtime(settings, server.url(key)), kube.now, settings.namespaces)
    register(registry, queue)
    most = settings.max_trials_per_namespace
    limit = NamespaceLimit(kube, most, settings.installation) if most else None
    observer, actor = Observer(kube, runs, server, check, limit), Actor(runs, server)
    reconciler = Reconciler(kube, server, observer, actor, kube.now, settings.installation)
    listener = await probes.serve(
        probes.application(queue.age, settings.stuck_seconds, metrics),
        settings.probe_host,
        settings.probe_port,
    )

    async def lead() -> None:
        metrics.leader.set(1)
        workers = (work(queue, reconciler, metrics, settings.resync_seconds) for _ in range(settings.workers))
        await until_first_ends(
            _watch(kube, settings, registry),
            follow_runs(runs, queue),
            *(follow_changes(one, queue, settings.namespaces) for one in servers),
            *(follow_namespaces(kube, one, settings.namespaces) for one in servers),
            *workers,
            *_server_pods(kube, settings),
        )

    try:
        await until_first_ends(stopped(), _in_turn(kube, settings, lead))
    finally:
        await listener.cleanup()
        await kube.close()
        for one in servers:
            await one.close()


def runtime(settings: OperatorSettings, server_url: str) -> Runtime:
    """Return what every trial of a study needs; the CA as it is now, since it may be rotated."""
    ca = settings.study_server_ca_file.read_text() if settings.study_server_ca_file else None
    return Runtime(
        trainer_archive().content,
        server_url,
        ca,
        settings.trainer_image,
        settings.gpu_resource,
        f"study-server-ca.{settings.installation.replace('/', '.')}",
    )


async def _in_turn(
    kube: KubernetesApi, settings: OperatorSettings, lead: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    if settings.lease:
        election = Election(kube, settings.lease, settings.identity, kube.now)
        await election.lead(lead)
    else:
        await lead()


def _server_pods(kube: KubernetesApi, settings: OperatorSettings) -> Iterator[Coroutine[Any, Any, None]]:
    for pod in settings.study_server_pods:
        namespace, _, name = pod.partition("/")
        yield replace_lost_server(kube, namespace, name, kube.now)


async def _watch(kube: KubernetesApi, settings: OperatorSettings, registry: kopf.OperatorRegistry) -> None:
    await wait_for_studies(kube)
    await kopf.operator(
        registry=registry,
        settings=kopf_settings(),
        standalone=True,
        # The default has the user's name, and in a container the user may have none.
        identity=cast("Any", "tuning-operator"),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )


async def wait_for_studies(kube: KubernetesApi) -> None:
    """Wait until the API server serves TuningStudies: kopf looks for the CRD only once, as it starts."""
    delay = FIRST_WAIT
    while True:
        try:
            if await kube.serves_studies():
                return
            reason = "the CRD of TuningStudy is not installed"
        except KubeError as error:
            reason = str(error)
        log.warning("Studies can't be watched yet; retrying in %.0f s: %s", delay, reason)
        await asyncio.sleep(delay)
        delay = min(2 * delay, LAST_WAIT)


def _signals() -> Callable[[], Coroutine[Any, Any, None]]:
    """Listen for the signals that stop a process; return a coroutine function that waits for one."""
    received = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received.set)

    async def wait() -> None:
        await received.wait()

    return wait
