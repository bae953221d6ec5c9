"""The studies on this machine, in place of a cluster's: the port that commands use."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from tuning_operator.cli import NotFoundError, NotReachableError, PluginError
from tuning_operator.cli.studies import ENDED, STOPPED, Resource, Run, subject
from tuning_operator.local import NOT_INSTALLED, LocalError
from tuning_operator.local.home import NAMESPACE, Address, Home, StudyFolder
from tuning_operator.resource import names

if TYPE_CHECKING:
    from tuning_operator.protocol import FinishedStudy

REPLY_SECONDS = 120.0
POLL_SECONDS = 0.5
"""How often to look whether a log has grown."""


def require_local_mode() -> None:
    """Raise PluginError if the packages that run a study are not installed."""
    if find_spec("fastapi") is None:
        raise PluginError(NOT_INSTALLED)


class LocalRecord:
    """The record of a study."""

    def __init__(self, read: "Callable[[int], FinishedStudy]") -> None:
        self._read = read

    def read(self, first: int = 0) -> "FinishedStudy":
        """Return the trials as they are now, from the one with this number on. Raises PluginError."""
        return self._read(first)


class LocalStudies:
    """Studies whose trials are processes on this machine."""

    program = "tuning"
    place_of_runs = "folder"

    def __init__(self, home: Home) -> None:
        self._home = home

    def list_studies(self, *, everywhere: bool = False) -> Sequence[Resource]:  # noqa: ARG002  one namespace
        """Return all studies."""
        return [body for folder in self._home.studies() if (body := _body(folder))]

    def get(self, name: str) -> Resource:
        """Return a study. Raises NotFoundError."""
        body = _body(self._home.study(name))
        if body is None:
            raise NotFoundError(
                f'study "{name}" not found in {self._home.path}: `tuning list` lists all studies'
            )
        return body

    @contextlib.contextmanager
    def record(self, study: Resource) -> Iterator[LocalRecord]:
        """Open the record that the last command has left, or connect to the study server.

        The server is started if no command runs the study, and the last one was killed.
        """
        name = study["metadata"]["name"]
        folder = self._home.study(name)
        if kept := _kept_record(folder):
            yield LocalRecord(lambda first: _from(kept, first))
            return
        require_local_mode()
        from tuning_operator.local.server import reading  # here, since it takes a while

        try:
            with reading(folder) as address:
                yield LocalRecord(lambda first: parsed(fetch(address, name, first)))
        except LocalError as error:
            raise NotReachableError(str(error)) from None

    def runs(self, study: Resource) -> Mapping[Run, str]:
        """Return each run's folder."""
        name = study["metadata"]["name"]
        found: dict[Run, str] = {}
        for folder in sorted(self._home.study(name).runs.glob(f"{name}-*")):
            _, run = names.parse_job_name(folder.name)
            if run == names.REFIT or run.isdecimal():
                found["refit" if run == names.REFIT else int(run)] = str(folder)
        return found

    def log(self, study: Resource, run: Run, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a run's log. Raises NotFoundError."""
        name = study["metadata"]["name"]
        folder = self._home.study(name)
        file = folder.runs / names.job_name(name, run) / "log"
        while not file.exists():
            if not (follow and folder.in_use):
                raise NotFoundError(f"{subject(run)} has no log: it has not started yet")
            time.sleep(POLL_SECONDS)
        with file.open(errors="replace") as stream:
            while True:
                ended = not follow or _has_ended(folder, run)
                yield from stream
                if ended:
                    return
                time.sleep(POLL_SECONDS)

    def change(self, study: Resource, spec: Mapping[str, Any]) -> None:
        """Replace these fields of the study's spec, in the command that runs it or for the next one."""
        name = study["metadata"]["name"]
        folder = self._home.study(name)
        if folder.in_use:
            folder.change(spec)
            self._wait_for(name, spec)
            return
        if "suspend" in spec:
            raise PluginError(f"{name} is not running: to continue it, use `tuning run` with its manifest")
        with folder.locked():
            folder.change(spec)
            body = folder.read() or {}
            folder.write({**body, "spec": {**body["spec"], **spec}})
        typer.echo(f"{name} is not running: the change takes effect with the next `tuning run`.", err=True)

    def _wait_for(self, name: str, spec: Mapping[str, Any]) -> None:
        """Return when the command that runs the study has the changes."""
        deadline = time.monotonic() + REPLY_SECONDS
        while any(self.get(name)["spec"].get(field) != value for field, value in spec.items()):
            if time.monotonic() > deadline or not self._home.study(name).in_use:
                raise NotReachableError(f"the command running {name} does not answer or has ended: try again")
            time.sleep(POLL_SECONDS)

    def stop(self, study: Resource, trials: Sequence[int]) -> None:
        """Have these running trials end: the command that runs the study looks for the files."""
        name = study["metadata"]["name"]
        folder = self._home.study(name)
        for trial in trials:
            run = names.job_name(name, trial)
            if (folder.runs / run).is_dir():
                folder.stops.mkdir(exist_ok=True)
                (folder.stops / run).touch()


def _body(folder: StudyFolder) -> dict[str, Any] | None:
    """Return a study as it is now; its file has what the command that ran it wrote last."""
    body = folder.read()
    if body is None or body.get("status", {}).get("phase") in ENDED or folder.in_use:
        return body
    return {**body, "status": {**body.get("status", {}), "phase": STOPPED}}


def _has_ended(folder: StudyFolder, run: Run) -> bool:
    """Return whether a run prints no more: it has ended, or the command that ran it has."""
    if not folder.in_use:
        return True
    if run == "refit":
        refit = (folder.read() or {}).get("status", {}).get("refit") or {}
        return refit.get("phase") in ENDED
    try:
        trials = parsed(fetch(address, folder.name, run)).trials if (address := folder.server) else []
    except PluginError:  # the command is stopping
        return False
    return any(trial.number == run and trial.finished for trial in trials)


def _kept_record(folder: StudyFolder) -> "FinishedStudy | None":
    """Return the record that the last command has left; None if it can't be used."""
    try:
        return parsed(folder.record.read_bytes())
    except (FileNotFoundError, ValueError):  # another version of this program may have written it
        return None


def _from(record: "FinishedStudy", first: int) -> "FinishedStudy":
    return record.model_copy(update={"trials": [t for t in record.trials if t.number >= first]})


def parsed(record: bytes) -> "FinishedStudy":
    """Return a record as the study server replied it. Raises ValueError."""
    from tuning_operator.protocol import FinishedStudy  # here, since it takes a while

    return FinishedStudy.model_validate_json(record)


def fetch(address: Address, name: str, first: int = 0) -> bytes:
    """Return the reply of a study server with a study's trials from a number on. Raises PluginError."""
    import httpx  # here, since it takes a while

    url = f"{address.url}/v1/studies/{NAMESPACE}/{name}/record"
    try:
        with httpx.Client(timeout=REPLY_SECONDS, trust_env=False) as client:
            headers = {"Authorization": f"Bearer {address.token}"}
            reply = client.get(url, params={"first": first}, headers=headers)
    except httpx.TransportError as error:
        raise NotReachableError(f"the study server of {name} does not answer: {error}") from None
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise NotFoundError(f"{name} has no record yet: no trial has started")
    if reply.status_code != httpx.codes.OK:
        raise PluginError(f"the study server replied {reply.status_code}: {reply.text[:500]}")
    return reply.content
