"""Runs a study on this machine, to its end or until it is stopped, by the operator's passes."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuning_operator.kube.loop.changes import follow_changes
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.loop.reconciler import Reconciler
from tuning_operator.kube.loop.result import Result
from tuning_operator.kube.loop.worker import until_first_ends, work
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.study_server import HttpStudyServer
from tuning_operator.kube.status.conditions import find
from tuning_operator.local import LocalError, postgres
from tuning_operator.local.gpus import Gpus
from tuning_operator.local.guard import Guard
from tuning_operator.local.home import NAMESPACE, LocalResources, StudyFolder, applied, write_private
from tuning_operator.local.pods import Machine, unused_fields
from tuning_operator.local.processes import sweep
from tuning_operator.local.runs import LocalRuns, places, problems
from tuning_operator.local.server import LocalServer, serving
from tuning_operator.local.warm_start import provide_source
from tuning_operator.protocol import Problem, StudyKey
from tuning_operator.resource.study import TuningStudy

RESYNC_SECONDS = 180.0
CHANGE_SECONDS = 0.2
"""How often to look whether a command has changed the spec."""
ENDED = ("Completed", "Failed")

Json = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A study that was found to be valid, and its file."""

    file: Path
    body: Json

    @property
    def study(self) -> TuningStudy:
        """The study as it would be on a new cluster."""
        return TuningStudy.model_validate(applied(self.body, None))


@dataclass(frozen=True)
class Settings:
    """What a study runs on."""

    machine: Machine
    gpus: Gpus
    python: str | None = None


@dataclass
class Listener:
    """Functions that are called when something happens; they return at once."""

    on_event: Callable[[Json], None] = lambda _: None
    """Gets what would be an Event on a cluster."""
    on_waiting: Callable[[], None] = lambda: None
    """The processes of a command that was killed are still being ended."""
    on_stopping: Callable[[int], None] = lambda _: None
    """A signal came: the runs are being stopped."""


@dataclass
class Session:
    """A study that runs."""

    resources: LocalResources
    server: LocalServer
    runs: LocalRuns
    stopped_by: int | None = None
    """The signal that stopped it before its end."""
    trials_before: Json | None = field(init=False)
    """The numbers of trials when it began."""

    def __post_init__(self) -> None:
        self.trials_before = self.body["status"].get("trials")

    @property
    def body(self) -> Json:
        """The TuningStudy with its status as it is now."""
        return self.resources.body

    @property
    def has_changed(self) -> bool:
        """Whether trials have ended since it began."""
        return bool(self.body["status"].get("trials") != self.trials_before)

    @property
    def is_over(self) -> bool:
        """Whether the study has ended, and its refit, too."""
        return _is_over(TuningStudy.model_validate(self.body))


def check_machine(manifest: Manifest, settings: Settings) -> None:
    """Check that the study can run here. Raises LocalError with everything that keeps it from running."""
    study = manifest.study
    found = problems(study, settings.machine, settings.python)
    if study.spec.suspend:
        found.append(Problem(field="suspend", message="the study is suspended: set this to false to run it."))
    if found:
        lines = [
            f"  {p.field if p.field.startswith('--') else f'spec.{p.field}'}: {p.message}" for p in found
        ]
        raise LocalError("\n".join([f"{manifest.file} can't run on this machine:", *dict.fromkeys(lines)]))


def ignored_fields(manifest: Manifest, settings: Settings) -> list[str]:
    """Return the fields of the manifest that have no effect here."""
    return unused_fields([found for _, found in places(manifest.study, settings.machine)])


def remove(folder: StudyFolder) -> None:
    """Delete a study and all its data. Raises LocalError while a command runs it."""
    with folder.locked(), folder.guard_lock(lambda: None):
        sweep(folder.mark)
        postgres.stop(folder.database)
        folder.remove()


@contextlib.contextmanager
def opened(
    folder: StudyFolder, manifest: Manifest, settings: Settings, listener: Listener
) -> Iterator[Session]:
    """Provide everything that the study needs during the block. Raises LocalError.

    A command that was killed has left nothing that still runs once the block begins.
    """
    with folder.locked(), _guarded(folder, listener) as mark:
        _log_to(folder)
        folder.record.unlink(missing_ok=True)
        folder.write(applied(manifest.body, folder.read()))
        with serving(folder, lambda url: provide_source(folder, manifest.study, url)) as server:
            runs = LocalRuns(folder, settings.machine, settings.gpus, settings.python, server, _now, mark)
            yield Session(LocalResources(folder, listener.on_event), server, runs)


async def run(session: Session, folder: StudyFolder, listener: Listener) -> None:
    """Run the study until it is over, or a signal stops it. Raises LocalError if it is not accepted."""
    key = StudyKey(NAMESPACE, folder.name)
    queue = WorkQueue[StudyKey]()
    stopping, over = asyncio.Event(), asyncio.Event()
    write_private(folder.path / "operator-token", session.server.operator_token())
    async with _server(session, folder) as server, _signals(session, listener, stopping):
        observer = Observer(session.resources, session.runs, server, check)
        reconciler = Reconciler(session.resources, server, observer, Actor(session.runs, server), _now)
        passes = _Passes(key, reconciler, lambda: over.set() if _settled(session) else None)
        queue.add(key)
        try:
            await until_first_ends(
                work(queue, passes, Metrics(lambda: len(queue)), RESYNC_SECONDS),
                follow_changes(server, queue),
                session.runs.watch(queue.add),
                _take_changes(session, folder, lambda: queue.add(key)),
                _wait(over),
                _wait(stopping),
            )
        finally:
            await session.runs.close()


async def _take_changes(session: Session, folder: StudyFolder, changed: Callable[[], None]) -> None:
    """Apply what other commands change in the spec, until cancelled."""
    while True:
        await asyncio.sleep(CHANGE_SECONDS)
        if session.resources.change(folder.changes()):
            changed()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


class _Passes:
    """A reconciler that calls a function after each pass."""

    def __init__(self, key: StudyKey, reconciler: Reconciler, after: Callable[[], None]) -> None:
        self._key, self._reconciler, self._after = key, reconciler, after

    async def reconcile(self, key: StudyKey) -> Result:
        """Do a pass."""
        if key != self._key:  # the source of a warm start, whose record was copied to this study's database
            return Result("gone")
        result = await self._reconciler.reconcile(key)
        self._after()
        return result


def _settled(session: Session) -> bool:
    """Return whether nothing more will happen: the study is over, or was not accepted."""
    study = TuningStudy.model_validate(session.body)
    accepted = find(study.status.conditions, "Accepted")
    return _is_over(study) or (accepted is not None and accepted.status == "False")


def _is_over(study: TuningStudy) -> bool:
    status, trials = study.status, study.status.trials
    if status.phase not in ENDED or (trials and (trials.running or trials.pending)):
        return False
    if status.phase == "Failed" or study.spec.refit is None:
        return True
    return status.refit is not None and status.refit.phase in ENDED


@contextlib.contextmanager
def _guarded(folder: StudyFolder, listener: Listener) -> Iterator[str]:
    """Start a guard, once that of an earlier command has ended; yield the prefix of the marks of runs."""
    mark = folder.new_mark()
    with folder.guard_lock(listener.on_waiting) as lock:
        guard = Guard.start(folder, mark, lock.fileno())
    try:
        sweep(folder.mark)
        yield mark
    finally:
        guard.end()


@contextlib.asynccontextmanager
async def _server(session: Session, folder: StudyFolder) -> AsyncIterator[HttpStudyServer]:
    server = HttpStudyServer(session.server.url, folder.path / "operator-token")
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def _signals(session: Session, listener: Listener, stopping: asyncio.Event) -> AsyncIterator[None]:
    """The first signal stops the runs gently, the next one at once."""
    loop = asyncio.get_running_loop()

    def received(number: int) -> None:
        if session.stopped_by is not None:
            session.runs.kill()
            return
        session.stopped_by = number
        listener.on_stopping(number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _log_to(folder: StudyFolder) -> None:
    """Send the log of all parts to the study's folder: the terminal has the view."""
    logging.basicConfig(
        filename=folder.log,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk must not fill the terminal with tracebacks


def _now() -> datetime:
    return datetime.now(UTC)
