"""Where local studies live: a folder for each, with its manifest and status, database, logs and results."""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tuning_operator.local import LocalError
from tuning_operator.local.locks import try_lock
from tuning_operator.resource import names
from tuning_operator.resource.times import rfc3339

NAMESPACE = names.LOCAL_NAMESPACE
"""The namespace of all local studies, whatever the manifest says."""
HOME = "TUNING_HOME"
LOCK_SECONDS = 0.5
"""How long to try: a command that only looks whether another uses the study has the lock for a moment."""
POLL_SECONDS = 0.01

Json = dict[str, Any]


def home(given: Path | None, environ: Mapping[str, str]) -> "Home":
    """Return the home: as given, or TUNING_HOME, or `tuning` in the user's data folder (XDG)."""
    if given is None and environ.get(HOME):
        given = Path(environ[HOME])
    if given is None:
        data = environ.get("XDG_DATA_HOME") or "~/.local/share"
        given = Path(data).expanduser() / "tuning"
    return Home(given.expanduser().absolute())


@dataclass(frozen=True)
class Address:
    """Where a study server is, and a token to read records with."""

    url: str
    token: str


@dataclass(frozen=True)
class Home:
    """The folder with all local studies."""

    path: Path

    @property
    def gpus(self) -> Path:
        """The folder with the locks of GPUs."""
        return self.path / "gpus"

    def study(self, name: str) -> "StudyFolder":
        """Return a study's folder, which may not exist."""
        return StudyFolder(self.path / "studies" / name)

    def studies(self) -> list["StudyFolder"]:
        """Return the folders of all studies, by name."""
        return [StudyFolder(file.parent) for file in sorted(self.path.glob("studies/*/study.json"))]


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The study's name."""
        return self.path.name

    @property
    def database(self) -> Path:
        """The folder of its Postgres."""
        return self.path / "postgres"

    @property
    def runs(self) -> Path:
        """The folder with a folder for each trial, and one for the refit."""
        return self.path / "runs"

    @property
    def stops(self) -> Path:
        """The folder with an empty file for each run that a user has stopped, in place of an annotation."""
        return self.path / "stops"

    @property
    def plots(self) -> Path:
        """The folder of its plots."""
        return self.path / "plots"

    @property
    def log(self) -> Path:
        """The log of `tuning run`."""
        return self.path / "tuning.log"

    @property
    def record(self) -> Path:
        """The record of the study, from the end of the last command that ran it.

        It isn't there while a command runs the study, or after one was killed.
        """
        return self.path / "record.json"

    @property
    def address(self) -> Path:
        """The file with the address of the study server, while there is one."""
        return self.path / "server.json"

    @property
    def server(self) -> Address | None:
        """The study server of the command that runs the study; None while it is starting or stopping."""
        try:
            return Address(**json.loads(self.address.read_text()))
        except FileNotFoundError:
            return None

    @property
    def mark(self) -> str:
        """The beginning of the marks of its processes."""
        return f"{self.path}:"

    def new_mark(self) -> str:
        """Return the beginning of the marks of one command's processes."""
        return f"{self.mark}{uuid.uuid4().hex}:"

    def read(self) -> Json | None:
        """Return the TuningStudy with its status; None if there is none."""
        try:
            found: Json = json.loads((self.path / "study.json").read_text())
        except FileNotFoundError:
            return None
        return found

    def write(self, body: Json) -> None:
        """Keep the TuningStudy; a reader sees the old one or the new one, also after a crash."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_private(self.path / "study.json", json.dumps(body, indent=1))

    def changes(self) -> Json:
        """Return the fields of the spec that commands have changed since, such as `extend`."""
        return {field: change["value"] for field, change in self._changes().items()}

    def change(self, spec: Mapping[str, Any]) -> None:
        """Keep changes of the spec for the command that runs the study, or for the next one."""
        before = (self.read() or {}).get("spec", {})
        kept = self._changes()
        for field, value in spec.items():
            base = kept[field]["manifest"] if field in kept else before.get(field)
            kept[field] = {"value": value, "manifest": base}
        self._keep(kept)

    def changed(self, body: Json) -> Json:
        """Return a manifest with the changes; a field that was edited in the manifest since has its value.

        A study that was suspended when its command ended starts as the manifest says.
        """
        spec = body["spec"]
        kept = {
            field: change
            for field, change in self._changes().items()
            if field != "suspend" and spec.get(field) == change["manifest"]
        }
        if self._file_of_changes.exists():
            self._keep(kept)
        return {**body, "spec": {**spec, **{field: change["value"] for field, change in kept.items()}}}

    @property
    def _file_of_changes(self) -> Path:
        return self.path / "changes.json"

    def _changes(self) -> dict[str, Json]:
        """Return each changed field with its value, and that in the manifest at the time."""
        try:
            found: dict[str, Json] = json.loads(self._file_of_changes.read_text())
        except FileNotFoundError:
            return {}
        return found

    def _keep(self, changes: dict[str, Json]) -> None:
        write_private(self._file_of_changes, json.dumps(changes, indent=1))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only command that runs or removes the study. Raises LocalError."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._open("run.lock") as lock:
            give_up = time.monotonic() + LOCK_SECONDS
            while not try_lock(lock):
                if time.monotonic() >= give_up:
                    raise LocalError(
                        f"Another command is using the study {self.name}: wait until it ends, stop it with "
                        "Ctrl-C, or change metadata.name to start another study."
                    )
                time.sleep(POLL_SECONDS)
            yield

    @property
    def in_use(self) -> bool:
        """Whether a command runs the study now. Raises LocalError."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._open("run.lock") as lock:
            return not try_lock(lock, shared=True)

    def guard_lock(self, waiting: Callable[[], None]) -> IO[str]:
        """Return the guard's lock, locked; `waiting` is called if an earlier guard is not done yet.

        Raises LocalError.
        """
        lock = self._open("guard.lock")
        if not try_lock(lock):
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path)

    def _open(self, name: str) -> IO[str]:
        return (self.path / name).open("a+")  # on NFS, sharing a lock takes a file that may be read


class LocalResources:
    """The TuningStudy of a folder, in place of the API server: `kube.ports.kube_api.Resources`."""

    def __init__(self, folder: StudyFolder, on_event: Callable[[Json], None]) -> None:
        """`on_event` gets what would be an Event on a cluster."""
        self._folder, self._on_event = folder, on_event
        self.body: Json = folder.read() or {}
        """The TuningStudy as it is now."""
        self._writable = True

    async def get(self, kind: str, _namespace: str, _name: str) -> Json | None:
        """Return the study, or its namespace."""
        return {"metadata": {"uid": NAMESPACE}} if kind == "Namespace" else self.body

    async def replace_status(self, body: Json) -> None:
        """Keep the study with its new status. Raises KubeError, of which the user is informed once."""
        try:
            self._folder.write(body)
        except OSError as error:
            from tuning_operator.kube.ports.kube_api import KubeError  # most commands need none of it

            message = f"The status of the study can't be written: {error}. Retrying."
            if self._writable:
                self._on_event({"reason": "NotWritable", "message": message, "type": "Warning"})
            self._writable = False
            raise KubeError(0, "NotWritable", message) from error
        self.body, self._writable = body, True

    def change(self, spec: Mapping[str, Any]) -> bool:
        """Give these fields of the spec these values; return whether one of them is new."""
        if all(self.body["spec"].get(field) == value for field, value in spec.items()):
            return False
        metadata = {**self.body["metadata"], "generation": self.body["metadata"]["generation"] + 1}
        self.body = {**self.body, "metadata": metadata, "spec": {**self.body["spec"], **spec}}
        self._folder.write(self.body)
        return True

    async def record_event(self, body: Json) -> None:
        """Pass on what happened."""
        self._on_event(body)


def applied(body: Json, before: Json | None) -> Json:
    """Return a manifest as the API server would keep it: with a uid, a generation and the status so far.

    The study's time starts again, since nothing ran in between.
    """
    status = dict((before or {}).get("status", {}))
    if status.get("phase") not in ("Completed", "Failed"):
        status.pop("startTime", None)
    new: Json = {"uid": str(uuid.uuid4()), "generation": 0, "creationTimestamp": rfc3339(datetime.now(UTC))}
    metadata = (before or {}).get("metadata") or new
    changed = before is None or before["spec"] != body["spec"]
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            **body["metadata"],
            "namespace": NAMESPACE,
            "uid": metadata["uid"],
            "creationTimestamp": metadata["creationTimestamp"],
            "generation": metadata["generation"] + changed,
            "resourceVersion": "1",
        },
        "spec": body["spec"],
        "status": status,
    }


def write_private(file: Path, content: str | bytes) -> None:
    """Replace a file at once, readable by its owner only."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    new.replace(file)
