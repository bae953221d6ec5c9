"""Runs as processes on this machine: the same port as Jobs of a cluster."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ValidationError
from tuning_trainer.failure import ON_THIS_MACHINE

from tuning_operator.kube.jobs.advice import DISK_FULL, GPU_MEMORY, KILLED, NO_GPU, Advice
from tuning_operator.kube.jobs.ended import exited, timed_out, without_result
from tuning_operator.kube.jobs.evidence import STOPPED, diagnosis
from tuning_operator.kube.jobs.pod_template import environment
from tuning_operator.kube.plan.observation import Diagnosis, Run
from tuning_operator.kube.plan.work import Program as Executed
from tuning_operator.kube.plan.work import Refit, Trial, Work, Worker, program
from tuning_operator.kube.ports.runs import key_of
from tuning_operator.local.gpus import Gpus
from tuning_operator.local.home import StudyFolder, write_private
from tuning_operator.local.pods import Machine, Place, config_folder, place
from tuning_operator.local.processes import Program, sweep
from tuning_operator.protocol import Failure, Problem, StudyKey
from tuning_operator.resource import names
from tuning_operator.resource.duration import seconds
from tuning_operator.resource.study import TuningStudy
from tuning_operator.trainer_archive import trainer_archive

log = logging.getLogger(__name__)

DEADLINE_GRACE = 60.0
"""Seconds that a run may exceed its timeout: the trainer stops itself, and this is in case it can't."""
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds between attempts, doubled each time."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_SECONDS = 2.0
"""How often to look whether a full disk has space for a run that waits for it."""
STOP_SECONDS = 0.5
"""How often to look whether a user has stopped a run."""
NO_FOLDER = Path("/nowhere")
"""In place of a run's folder, while a study is checked."""
OUTPUT_LINES = 5
OUTPUT_BYTES = 4096

PROGRAMS = (
    Advice(
        KILLED,
        f"It may have run out of memory: {ON_THIS_MACHINE.memory}.",
    ),
    Advice(r"(?:insufficient|out of) shared memory|/dev/shm", "Shared memory (/dev/shm) is probably full."),
    Advice(
        NO_GPU,
        "The trial sees no GPU: set spec.trial.gpus if it needs one, and check that nvidia-smi shows it.",
    ),
    GPU_MEMORY,
    Advice(DISK_FULL, "The disk is full: free space, or set the variable TUNING_HOME to use another folder."),
)
"""What advice.PROGRAMS says about pods, for this machine."""

State = Literal["starting", "running", "ended", "stopping"]


class Server(Protocol):
    """What a run needs to know of the study server."""

    @property
    def url(self) -> str:
        """Its address."""

    def run_token(self, run: str) -> str:
        """Return the token of a run."""


@dataclass
class _LocalRun:
    work: Work
    digest: str
    """Of the program, to see when the manifest has changed."""
    state: State = "starting"
    diagnosis: Diagnosis | None = None
    task: asyncio.Task[None] | None = None
    program: Program | None = None
    grace: float = field(default=0.0)


class LocalRuns:
    """Runs of one study as processes. Each has a folder with its log, and its code and results in `work`."""

    def __init__(
        self,
        folder: StudyFolder,
        machine: Machine,
        gpus: Gpus,
        python: str | None,
        server: Server,
        clock: Callable[[], datetime],
        mark: str,
    ) -> None:
        """Start with no runs.

        Args:
            folder: the study's folder.
            machine: what pods would get from this machine.
            gpus: its GPUs.
            python: the interpreter of all runs; None: the one that the manifest names.
            server: the study server.
            clock: returns the time.
            mark: the beginning of the marks of all processes that are started.
        """
        self._folder, self._machine, self._gpus, self._python = folder, machine, gpus, python
        self._server, self._clock = server, clock
        self._runs: dict[StudyKey, dict[str, _LocalRun]] = {}
        """Runs by the name that their Job would have."""
        self._changed: Callable[[StudyKey], None] = lambda _: None
        self._mark = mark

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        """Call `changed` whenever a run starts or ends, until cancelled."""
        self._changed = changed
        to_stop = self._stopped_by_user()
        for key in self._runs:
            changed(key)
        while True:
            await asyncio.sleep(STOP_SECONDS)
            before, to_stop = to_stop, self._stopped_by_user()
            for key, runs in self._runs.items():
                running = {name for name, run in runs.items() if run.state == "running"}
                if to_stop != before or to_stop & running:
                    changed(key)

    def _stopped_by_user(self) -> frozenset[str]:
        """Return the names of runs, or those that trials of workers would have as runs of their own."""
        try:
            return frozenset(file.name for file in self._folder.stops.iterdir())
        except FileNotFoundError:
            return frozenset()

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._runs.pop(key, None)

    async def check(self, study: TuningStudy) -> tuple[Problem, ...]:
        """Return what the templates need and this machine does not have."""
        found = problems(study, self._machine, self._python)
        return tuple(dict.fromkeys(found))

    async def others_waiting(self, study: TuningStudy, *, has_minimum: bool) -> str | None:  # noqa: ARG002
        """Return None: nobody else is known to use this machine's GPUs."""
        return None

    async def list_runs(self, study: TuningStudy, unfinished: Collection[Work]) -> Mapping[Work, Run]:
        """Return the runs of the unfinished work, and those of other work that are not over yet."""
        refit = any(isinstance(work, Refit) for work in unfinished)
        to_stop = self._stopped_by_user()
        works = [names.parse_job_name(name)[1] for name in to_stop]
        trials_to_stop = frozenset(int(work) for work in works if work.isdecimal())
        return {
            run.work: Run(
                run.state,
                run.diagnosis if run.state in ("starting", "ended") else None,
                outdated=_is_outdated(run, study),
                stop_requested=name in to_stop,
                trials_to_stop=trials_to_stop if isinstance(run.work, Worker) else frozenset(),
            )
            for name, run in self._runs.get(key_of(study), {}).items()
            if run.state != "ended"
            or run.work in unfinished
            or isinstance(run.work, Worker)
            or (refit and isinstance(run.work, Refit))
        }

    async def start(self, study: TuningStudy, work: Work) -> None:
        """Have the work's program started, once it has its GPUs."""
        runs = self._runs.setdefault(key_of(study), {})
        name = work.job_name(study.metadata["name"])
        if name not in runs:
            runs[name] = run = _LocalRun(work, program(study, work).digest)
            run.task = asyncio.create_task(self._live(study, run, name))
            self._changed(key_of(study))
            run.task.add_done_callback(lambda task: self._note_end(key_of(study), run, task))

    async def stop(self, key: StudyKey, work: Work) -> None:
        """Send SIGTERM to the work's processes, and SIGKILL after the grace period; return before."""
        run = self._runs.get(key, {}).get(work.job_name(key.name))
        if run is None or run.state == "stopping":
            return
        if run.state == "ended" or run.task is None:
            self._remove(key, run)
            return
        run.state = "stopping"
        run.task.cancel()

    async def finish(self, key: StudyKey, work: Work, *, again: bool) -> None:
        """Do nothing: what a program leaves behind ends with it."""

    async def close(self) -> None:
        """Stop all runs, and return when nothing of them is left."""
        tasks = [
            (key, run) for key, runs in self._runs.items() for run in runs.values() if run.task is not None
        ]
        for key, run in tasks:
            await self.stop(key, run.work)
        await asyncio.gather(*(run.task for _, run in tasks if run.task), return_exceptions=True)
        await asyncio.to_thread(sweep, self._mark)

    def kill(self) -> None:
        """End all runs at once: those that are being stopped get no more time."""
        for runs in self._runs.values():
            for run in runs.values():
                if run.program:
                    run.program.kill()

    async def _live(self, study: TuningStudy, run: _LocalRun, name: str) -> None:
        key = key_of(study)
        try:
            await self._attempts(study, run, name)
        except Exception as error:  # it must not leave the trial without an end
            log.exception("%s of %s could not be started", run.work, key)
            run.state = "ended"
            run.diagnosis = diagnosis("StartError", f"The {run.work.noun} could not be started: {error}")

    def _note_end(self, key: StudyKey, run: _LocalRun, task: asyncio.Task[None]) -> None:
        """A run that was stopped is gone, as a Job is; also one that was stopped before it began."""
        if task.cancelled():
            self._remove(key, run)
        self._changed(key)

    async def _attempts(self, study: TuningStudy, run: _LocalRun, name: str) -> None:
        runs, folder = program(study, run.work), self._folder.runs / name
        found = place(runs, self._machine, folder, _pod_fields(study, run.work))
        run.grace = float(found.grace)
        if found.gpus:
            total = len(self._gpus.devices)
            waits = f"It waits for {found.gpus} of this machine's {total} GPUs; others use them."
            run.diagnosis = diagnosis("Capacity", waits, since=self._clock())
        async with self._gpus.lend(found.gpus) as devices:
            for attempt in range(runs.retries + 1):
                try:
                    code = await self._attempt(study, run, runs, found, devices, folder, attempt)
                except asyncio.CancelledError:
                    if run.program:  # it uses the GPUs until it has ended
                        await run.program.stop(run.grace)
                    raise
                finally:
                    run.program = None
                    shutil.rmtree(folder / "volumes", ignore_errors=True)
                retry = code == STOPPED or (code != 0 and isinstance(run.work, Refit))
                if not retry or attempt == runs.retries:
                    break
                self._set(study, run, "starting")
                await asyncio.sleep(min(FIRST_BACKOFF * 2**attempt, LONGEST_BACKOFF))
        run.state = "ended"

    async def _attempt(
        self,
        study: TuningStudy,
        run: _LocalRun,
        runs: Executed,
        found: Place,
        devices: tuple[str, ...],
        folder: Path,
        attempt: int,
    ) -> int:
        """Run the program once; return its exit code, and set the diagnosis."""
        output, mark = folder / "log", f"{self._mark}{folder.name}:{attempt}:"
        start = output.stat().st_size if output.exists() else 0
        python = _interpreter(self._python or runs.python, self._machine)
        while True:
            try:
                self._prepare(found, folder)
                ours = self._variables(study, run.work, runs, found, folder)
                environ = {**self._machine.environ, **found.environ, **ours}
                environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
                arguments = [found.text(argument, ours) for argument in runs.arguments]
                command = [python, str(self._trainer()), *arguments]
                where = _working_dir(runs, self._machine, found, folder)
                where.mkdir(parents=True, exist_ok=True)
                starting = asyncio.ensure_future(Program.start(command, where, environ, mark, output))
                try:
                    run.program = await asyncio.shield(starting)
                except asyncio.CancelledError:
                    with contextlib.suppress(OSError):
                        run.program = await starting  # it runs already, and gets time to stop
                    raise
                break
            except OSError as error:
                if error.errno not in FULL:
                    raise
                full = f"The {run.work.noun} can't be started: {error}."
                self._set(study, run, "starting", diagnosis("DiskFull", full, "Free up space to start it."))
                await asyncio.sleep(FULL_SECONDS)
        self._set(study, run, "running")
        timeout = None if isinstance(run.work, Worker) else runs.timeout
        limit = seconds(timeout) + DEADLINE_GRACE if timeout else None
        expired = False
        try:
            code = await asyncio.wait_for(
                asyncio.shield(ending := asyncio.ensure_future(run.program.end())), limit
            )
        except TimeoutError:
            expired = True
            run.program.kill()
            code = await ending
        run.diagnosis = _why_ended(run.work, runs, code, expired, folder, _tail(output, start))
        return code

    def _prepare(self, found: Place, folder: Path) -> None:
        """Make the run's folder as its pod would be at its start."""
        for name in ("work", "volumes", "config"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "work").mkdir(parents=True)
        (self._folder.stops / folder.name).unlink(missing_ok=True)
        for name, files in self._machine.config_maps.items():
            target = config_folder(folder, name)
            target.mkdir(parents=True)
            for key, content in files.items():
                (target / key).write_text(content)
        for file, content in found.files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        for mounted in found.mounts.values():
            if not mounted.exists():  # a subPath may be a file
                mounted.mkdir(parents=True, exist_ok=True)
        (folder / "failure.json").write_text("")
        write_private(folder / "token", self._server.run_token(folder.name))

    def _variables(
        self, study: TuningStudy, work: Work, runs: Executed, found: Place, folder: Path
    ) -> dict[str, str]:
        """Return the variables that the trainer runtime reads."""
        place: dict[str, Any] = {"log": str(folder / "log")}
        metrics = study.spec.trial.metrics
        if metrics and metrics.file:
            read = {**metrics.model_dump(exclude_none=True), "file": found.localized(metrics.file)}
            place["metrics"] = read
        if isinstance(work, Worker):
            place["trialFolder"] = str(self._folder.runs / names.job_name(study.metadata["name"], "{trial}"))
        ours = environment(study, work, runs, self._server.url, str(folder / "token"), **place)
        ours["TUNING_TERMINATION_LOG"] = str(folder / "failure.json")
        if runs.source:
            ours["TUNING_SOURCE"] = str(config_folder(folder, runs.source))
        return ours

    def _trainer(self) -> Path:
        """Return the file with the trainer runtime; the name has its digest, as that of a ConfigMap does."""
        archive = trainer_archive()
        file = self._folder.path / f"trainer-{archive.digest[:10]}.zip"
        if not file.exists():
            write_private(file, archive.content)
        return file

    def _set(self, study: TuningStudy, run: _LocalRun, state: State, why: Diagnosis | None = None) -> None:
        run.state, run.diagnosis = state, why
        self._changed(key_of(study))

    def _remove(self, key: StudyKey, run: _LocalRun) -> None:
        runs = self._runs.get(key, {})
        runs.pop(run.work.job_name(key.name), None)


def problems(study: TuningStudy, machine: Machine, python: str | None) -> list[Problem]:
    """Return what the study's runs need and this machine does not have."""
    found = _shared_metrics(study, machine)
    for executed, there in places(study, machine):
        found += there.problems
        name = python or executed.python
        if shutil.which(name, path=machine.environ.get("PATH")) is None:
            where = "--python" if python else "trial.python"
            message = f"{name} is not a program on this machine: set the interpreter with --python."
            found.append(Problem(field=where, message=message))
    return found


def places(study: TuningStudy, machine: Machine) -> list[tuple[Executed, Place]]:
    """Return what the pod templates of a trial and of the refit, if there is one, are on this machine."""
    refit = study.spec.refit
    works: list[Work] = [Trial(0), *([Refit.of(refit, 0)] if refit else [])]
    programs = [(work, program(study, work)) for work in works]
    return [
        (executed, place(executed, machine, NO_FOLDER, _pod_fields(study, work)))
        for work, executed in programs
    ]


def _shared_metrics(study: TuningStudy, machine: Machine) -> list[Problem]:
    """Return the problem of trials that would read each other's metrics."""
    metrics = study.spec.trial.metrics
    if metrics is None or metrics.file is None or study.spec.parallelism == 1:
        return []
    executed, found = places(study, machine)[0]
    file = _working_dir(executed, machine, found, NO_FOLDER) / found.localized(metrics.file)
    if Path(os.path.normpath(file)).is_relative_to(NO_FOLDER):
        return []
    message = (
        f"trials that run at the same time would use the same file, {file}, and read each other's metrics: "
        "use a path in an emptyDir volume, remove this field and have the program write to the file that the "
        "variable TUNING_METRICS_FILE names, or set parallelism to 1."
    )
    return [Problem(field="trial.metrics.file", message=message)]


def _pod_fields(study: TuningStudy, work: Work) -> dict[str, str]:
    """Return the values of fieldRefs."""
    return {
        "metadata.name": work.job_name(study.metadata["name"]),
        "metadata.namespace": study.metadata["namespace"],
        "metadata.uid": study.metadata["uid"],
        "spec.nodeName": "localhost",
        "status.hostIP": "127.0.0.1",
        "status.podIP": "127.0.0.1",
    }


def _working_dir(runs: Executed, machine: Machine, found: Place, folder: Path) -> Path:
    """Return the working directory of a run with this folder."""
    return found.working_dir or (folder / "work" if runs.source else machine.folder)


def _interpreter(name: str, machine: Machine) -> str:
    """Return the path of an interpreter; absolute, since each run has a working directory of its own."""
    found = shutil.which(name, path=machine.environ.get("PATH"))
    return str(Path(found).absolute()) if found else name


def _why_ended(
    work: Work, runs: Executed, code: int, expired: bool, folder: Path, output: str
) -> Diagnosis | None:
    """Return why a program ended, for when no result has come from it."""
    noun, file = work.noun, folder / "log"
    if expired:
        return timed_out(noun, runs.fields.timeout)
    if code == 0:
        return without_result(f"The {noun}'s program", str(file))
    with contextlib.suppress(OSError, ValidationError):
        return Diagnosis(Failure.model_validate_json((folder / "failure.json").read_text()))
    return exited(f"The {noun}'s program", code, output, noun, PROGRAMS, "", str(file))


def _tail(file: Path, start: int) -> str:
    """Return the last lines that were written to a log from a position on."""
    with file.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(start, end - OUTPUT_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-OUTPUT_LINES:])


def _is_outdated(run: _LocalRun, study: TuningStudy) -> bool:
    if isinstance(run.work, Refit) and study.spec.refit is None:
        return False
    return run.digest != program(study, run.work).digest
